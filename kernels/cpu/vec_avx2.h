/* Vectors of 16 lanes: two AVX2 registers, lanes 0..7 and 8..15. See vec_portable.h for what each
 * operation means. */
#ifndef INFERD_KERNELS_CPU_VEC_H
#define INFERD_KERNELS_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define VEC_INLINE static inline __attribute__((always_inline, unused))

typedef struct vf {
    __m256 a, b;
} vf;
typedef struct vi {
    __m256i a, b;
} vi;

VEC_INLINE vf vf_set1(float x) {
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
VEC_INLINE vf vf_load(const float *p) {
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
VEC_INLINE void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a.a);
    _mm256_storeu_ps(p + 8, a.b);
}
VEC_INLINE vf vf_load_f16(const void *p) {
    const __m128i *h = (const __m128i *)p;
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
VEC_INLINE __m256 bf16_half(const void *p) {
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}
VEC_INLINE vf vf_load_bf16(const void *p) {
    return (vf){bf16_half(p), bf16_half((const uint8_t *)p + 16)};
}
VEC_INLINE vf vf_load_i8(const void *p) {
    const __m128i v = _mm_loadu_si128((const __m128i *)p);
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
}
VEC_INLINE vf vf_load_u8(const void *p) {
    const __m128i v = _mm_loadu_si128((const __m128i *)p);
    return (vf){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)))};
}
#define VEC_EACH(op, x, y) ((vf){op((x).a, (y).a), op((x).b, (y).b)})
VEC_INLINE vf vf_add(vf a, vf b) {
    return VEC_EACH(_mm256_add_ps, a, b);
}
VEC_INLINE vf vf_sub(vf a, vf b) {
    return VEC_EACH(_mm256_sub_ps, a, b);
}
VEC_INLINE vf vf_mul(vf a, vf b) {
    return VEC_EACH(_mm256_mul_ps, a, b);
}
VEC_INLINE vf vf_div(vf a, vf b) {
    return VEC_EACH(_mm256_div_ps, a, b);
}
VEC_INLINE vf vf_max(vf a, vf b) {
    return VEC_EACH(_mm256_max_ps, a, b);
}
#undef VEC_EACH
VEC_INLINE vf vf_fma(vf a, vf b, vf c) {
    return (vf){_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
VEC_INLINE __m256 keep_half(__m256 a, int first, int lo, int hi, float other) {
    const __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    const __m256i in = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane),
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane));
    return _mm256_blendv_ps(_mm256_set1_ps(other), a, _mm256_castsi256_ps(in));
}
VEC_INLINE vf vf_keep(vf a, int lo, int hi, float other) {
    return (vf){keep_half(a.a, 0, lo, hi, other), keep_half(a.b, 8, lo, hi, other)};
}
VEC_INLINE vf vf_zero_below(vf x, float limit, vf y) {
    const __m256 l = _mm256_set1_ps(limit);
    return (vf){_mm256_and_ps(_mm256_cmp_ps(x.a, l, _CMP_NLT_UQ), y.a),
                _mm256_and_ps(_mm256_cmp_ps(x.b, l, _CMP_NLT_UQ), y.b)};
}
VEC_INLINE __m256 scale_half(__m256 y, __m256 t) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
VEC_INLINE vf vf_scale_pow2(vf y, vf t) {
    return (vf){scale_half(y.a, t.a), scale_half(y.b, t.b)};
}
VEC_INLINE float vf_sum(vf a) {
    const __m256 h = _mm256_add_ps(a.a, a.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
VEC_INLINE float vf_hmax(vf a) {
    const __m256 h = _mm256_max_ps(a.a, a.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
VEC_INLINE uint32_t vf_equal_mask(vf a, float x) {
    const __m256 v = _mm256_set1_ps(x);
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.a, v, _CMP_EQ_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.b, v, _CMP_EQ_OQ)) << 8;
}
VEC_INLINE uint32_t vf_above_mask(vf a, float x) {
    const __m256 v = _mm256_set1_ps(x);
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.a, v, _CMP_GT_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.b, v, _CMP_GT_OQ)) << 8;
}

VEC_INLINE vi vi_zero(void) {
    return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
VEC_INLINE vi vf_abs_bits(vf a) {
    const __m256i m = _mm256_set1_epi32(0x7FFFFFFF);
    return (vi){_mm256_and_si256(_mm256_castps_si256(a.a), m),
                _mm256_and_si256(_mm256_castps_si256(a.b), m)};
}
VEC_INLINE vi vi_max(vi a, vi b) {
    return (vi){_mm256_max_epi32(a.a, b.a), _mm256_max_epi32(a.b, b.b)};
}
VEC_INLINE int32_t vi_hmax(vi a) {
    const __m256i h = _mm256_max_epi32(a.a, a.b);
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}
VEC_INLINE void vi_hsum4(vi a, vi b, vi c, vi d, int32_t out[4]) {
    const __m256i ab = _mm256_hadd_epi32(_mm256_add_epi32(a.a, a.b), _mm256_add_epi32(b.a, b.b));
    const __m256i cd = _mm256_hadd_epi32(_mm256_add_epi32(c.a, c.b), _mm256_add_epi32(d.a, d.b));
    const __m256i all = _mm256_hadd_epi32(ab, cd); /* a b c d, of each 128 bits */
    _mm_storeu_si128((__m128i *)out,
                     _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
VEC_INLINE vi vf_round(vf a) {
    return (vi){_mm256_cvtps_epi32(a.a), _mm256_cvtps_epi32(a.b)}; /* MXCSR: to nearest */
}
VEC_INLINE vi vi_high24(vi a) {
    const __m256i half = _mm256_set1_epi32(128);
    return (vi){_mm256_srai_epi32(_mm256_add_epi32(a.a, half), 8),
                _mm256_srai_epi32(_mm256_add_epi32(a.b, half), 8)};
}
VEC_INLINE vf vf_from_i32(vi a) {
    return (vf){_mm256_cvtepi32_ps(a.a), _mm256_cvtepi32_ps(a.b)};
}
VEC_INLINE void vi_store(int32_t *p, vi a) {
    _mm256_storeu_si256((__m256i *)p, a.a);
    _mm256_storeu_si256((__m256i *)(p + 8), a.b);
}
#endif
