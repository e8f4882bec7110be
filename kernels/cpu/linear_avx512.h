/* Unpacking of codes and scales for 16 rows, shared by linear_avx512.c and linear_amx.c. */
#ifndef INFERD_KERNELS_CPU_LINEAR_AVX512_H
#define INFERD_KERNELS_CPU_LINEAR_AVX512_H

#include "kernels/cpu/kernels_isa.h"
#include "kernels/cpu/vec_avx512.h"

/* In front of a loop with few, constant rounds over arrays that must become registers: gcc unrolls
 * only the smallest by itself; clang does, and takes a request that it need not follow for an
 * error. Not under sanitizers, where the unrolled code takes minutes to compile. */
#if defined(__clang__) || defined(__SANITIZE_ADDRESS__)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

VEC_INLINE __m512i load_codes(const uint8_t *c, int i) {
    return _mm512_loadu_si512(c + 64 * i);
}

/* Shifts want an immediate even in builds that do not unroll. */
VEC_INLINE __m512i shift_right(__m512i v, int n) {
    switch (n) {
    case 0:
        return v;
    case 2:
        return _mm512_srli_epi16(v, 2);
    case 4:
        return _mm512_srli_epi16(v, 4);
    default:
        return _mm512_srli_epi16(v, 6);
    }
}

/* Vector j (0..7) of a block's codes; layouts in pack.h. */
VEC_INLINE __m512i unpack(pack_codes codes, const uint8_t *table, const uint8_t *c, int j) {
    const __m512i nibble = _mm512_set1_epi8(15), two_bits = _mm512_set1_epi8(3);
    const __m512i bit = _mm512_set1_epi8((char)(1 << j));
    if (codes == CODES_8) return load_codes(c, j);
    if (codes == CODES_2 || codes == CODES_3) {
        const __m512i low =
            _mm512_and_si512(shift_right(load_codes(c, j / 4), 2 * (j % 4)), two_bits);
        if (codes == CODES_2) return low;
        return _mm512_mask_add_epi8(low, _mm512_test_epi8_mask(load_codes(c, 2), bit), low,
                                    _mm512_set1_epi8(4));
    }
    const __m512i low = _mm512_and_si512(shift_right(load_codes(c, j % 4), j / 4 * 4), nibble);
    if (codes == CODES_4_TABLE)
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)),
                                   low);
    if (codes == CODES_5)
        return _mm512_mask_add_epi8(low, _mm512_test_epi8_mask(load_codes(c, 4), bit), low,
                                    _mm512_set1_epi8(16));
    if (codes == CODES_6) {
        const __m512i high = shift_right(load_codes(c, 4 + j / 4), 2 * (j % 4));
        return _mm512_or_si512(low, _mm512_slli_epi16(_mm512_and_si512(high, two_bits), 4));
    }
    return low;
}

typedef struct block_scales {
    vf d[2], m[2];
} block_scales;

VEC_INLINE block_scales load_scales(pack_scales kind, const uint8_t *h, const uint8_t *s) {
    block_scales o;
    o.d[0] = o.d[1] = o.m[0] = o.m[1] = vf_set1(0.0f);
    const __m128i nibble = _mm_set1_epi8(15);
    switch (kind) {
    case SCALES_F16:
        o.d[0] = vf_load_f16(s);
        break;
    case SCALES_F16_MIN:
        o.d[0] = vf_load_f16(s);
        o.m[0] = vf_load_f16(s + 32);
        break;
    case SCALES_BF16:
        o.d[0] = vf_load_bf16(s);
        break;
    case SCALES_K32:
        o.d[0] = vf_mul(vf_load_f16(h), vf_load_i8(s));
        break;
    case SCALES_K32_MIN:
        o.d[0] = vf_mul(vf_load_f16(h), vf_load_u8(s));
        o.m[0] = vf_mul(vf_load_f16(h + 32), vf_load_u8(s + 16));
        break;
    case SCALES_K16:
        for (int i = 0; i < 2; i++) o.d[i] = vf_mul(vf_load_f16(h), vf_load_i8(s + 16 * i));
        break;
    case SCALES_K16_MIN:
        for (int i = 0; i < 2; i++) {
            const __m128i b = _mm_loadu_si128((const __m128i *)(s + 16 * i));
            const __m128i low = _mm_and_si128(b, nibble);
            const __m128i high = _mm_and_si128(_mm_srli_epi16(b, 4), nibble);
            o.d[i] = vf_mul(vf_load_f16(h), vf_from_i32(_mm512_cvtepu8_epi32(low)));
            o.m[i] = vf_mul(vf_load_f16(h + 32), vf_from_i32(_mm512_cvtepu8_epi32(high)));
        }
        break;
    case SCALES_NONE:
        break;
    }
    return o;
}

#endif
