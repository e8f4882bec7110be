/* y = W x for quantised weights with AVX2. For the 16-bit part c of the activations vpmaddwd on
 * words is exact. Of 32 code bytes (4 inputs of 8 rows), the even ones are masked and the odd ones
 * shifted to words:
 *
 *   bytes  a b c d a b c d ...   even words (a c), odd words (b d), each 8 rows in int32 lanes
 *
 * so a vector of codes costs two vpmaddwd and two additions a token; the 8-bit part l one
 * vpmaddubsw and one addition. A panel is done as two halves of 8 rows, for tiles of 4 tokens. */
#include "kernels/cpu/kernels_isa.h"
#include "kernels/cpu/vec_avx2.h"

#define LINEAR_FLOAT_TILE 4
#include "kernels/cpu/linear_float_body.h"

enum { TILE_MAX = 4 };

VEC_INLINE __m256i load_codes(const uint8_t *c, int i, int half) {
    return _mm256_loadu_si256((const __m256i *)(c + 64 * i + 32 * half));
}

VEC_INLINE __m256i bits(__m256i v, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8((char)mask));
}

/* Vector j (0..7) of a block's codes, 8 rows of it; layouts in pack.h. */
VEC_INLINE __m256i unpack(pack_codes codes, const uint8_t *table, const uint8_t *c, int j,
                          int half) {
    if (codes == CODES_8) return load_codes(c, j, half);
    if (codes == CODES_2 || codes == CODES_3) {
        const __m256i low = bits(load_codes(c, j / 4, half), 2 * (j % 4), 3);
        if (codes == CODES_2) return low;
        return _mm256_or_si256(low, _mm256_slli_epi16(bits(load_codes(c, 2, half), j, 1), 2));
    }
    const __m256i low = bits(load_codes(c, j % 4, half), 4 * (j / 4), 15);
    if (codes == CODES_4_TABLE)
        return _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), low);
    if (codes == CODES_5)
        return _mm256_or_si256(low, _mm256_slli_epi16(bits(load_codes(c, 4, half), j, 1), 4));
    if (codes == CODES_6)
        return _mm256_or_si256(
            low, _mm256_slli_epi16(bits(load_codes(c, 4 + j / 4, half), 2 * (j % 4), 3), 4));
    return low;
}

typedef struct block_scales {
    __m256 d[2], m[2];
} block_scales;

VEC_INLINE __m256 half_floats(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VEC_INLINE __m256 signed_bytes(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
VEC_INLINE __m256 low_bytes(__m128i b) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b));
}

VEC_INLINE block_scales load_scales(pack_scales kind, const uint8_t *h, const uint8_t *s,
                                    int half) {
    block_scales o;
    o.d[0] = o.d[1] = o.m[0] = o.m[1] = _mm256_setzero_ps();
    const __m128i nibble = _mm_set1_epi8(15);
    h += 16 * half; /* 8 halves */
    const uint8_t *words = s + 16 * half, *bytes = s + 8 * half;
    switch (kind) {
    case SCALES_F16:
        o.d[0] = half_floats(words);
        break;
    case SCALES_F16_MIN:
        o.d[0] = half_floats(words);
        o.m[0] = half_floats(words + 32);
        break;
    case SCALES_BF16:
        o.d[0] = bf16_half(words);
        break;
    case SCALES_K32:
        o.d[0] = _mm256_mul_ps(half_floats(h), signed_bytes(bytes));
        break;
    case SCALES_K32_MIN:
        o.d[0] = _mm256_mul_ps(half_floats(h), low_bytes(_mm_loadl_epi64((const __m128i *)bytes)));
        o.m[0] = _mm256_mul_ps(half_floats(h + 32),
                               low_bytes(_mm_loadl_epi64((const __m128i *)(bytes + 16))));
        break;
    case SCALES_K16:
        for (int i = 0; i < 2; i++)
            o.d[i] = _mm256_mul_ps(half_floats(h), signed_bytes(bytes + 16 * i));
        break;
    case SCALES_K16_MIN:
        for (int i = 0; i < 2; i++) {
            const __m128i b = _mm_loadl_epi64((const __m128i *)(bytes + 16 * i));
            o.d[i] = _mm256_mul_ps(half_floats(h), low_bytes(_mm_and_si128(b, nibble)));
            o.m[i] = _mm256_mul_ps(half_floats(h + 32),
                                   low_bytes(_mm_and_si128(_mm_srli_epi16(b, 4), nibble)));
        }
        break;
    case SCALES_NONE:
        break;
    }
    return o;
}

VEC_INLINE __m256i words(const uint8_t *q) {
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm256_set1_epi32(v);
}

/* -zero * (sum of the activations of vectors j0 .. j1). */
VEC_INLINE __m256i start(int zero, const int32_t *sum16, int j0, int j1) {
    if (zero == 0) return _mm256_setzero_si256();
    return _mm256_set1_epi32(-zero * ((j0 < 4 ? sum16[0] : 0) + (j1 > 4 ? sum16[1] : 0)));
}

/* The dot products of one block, or half of one, with c and l. */
typedef struct block_dots {
    __m256i c[TILE_MAX], l[TILE_MAX];
} block_dots;

/* Vectors j0 .. j1 of codes times n_t rows from q, without zero * (sum of the activations).
 * l: a byte product pair fits 16 bits, and so do sums of 8 of them when codes have 4 bits (8 * 2 *
 * 15 * 128 = 30720), of 2 up to 6 bits; 8-bit codes would saturate and go as words. */
VEC_INLINE void dots(pack_codes codes, int zero, const uint8_t *table, const uint8_t *code,
                     int half, int j0, int j1, const act_row *q, int n_t, block_dots *o) {
    const bool wide = codes == CODES_8 || codes == CODES_4_TABLE; /* tables go up to 241 */
    const bool short_sums = codes == CODES_4 || codes == CODES_2 || codes == CODES_3;
    const __m256i ones = _mm256_set1_epi16(1), zeros = _mm256_setzero_si256();
    __m256i l16[TILE_MAX];
    for (int t = 0; t < n_t; t++) {
        o->c[t] = start(zero, q[t].sum_c16, j0, j1);
        o->l[t] = start(zero, q[t].sum_l16, j0, j1);
        l16[t] = zeros;
    }
    for (int j = j0; j < j1; j++) {
        const __m256i v = unpack(codes, table, code, j, half);
        const __m256i even = _mm256_and_si256(v, _mm256_set1_epi16(255));
        const __m256i odd = _mm256_srli_epi16(v, 8);
        for (int t = 0; t < n_t; t++) {
            const uint8_t *x = (j < 4 ? q[t].c0 : q[t].c1) + 8 * (j % 4);
            o->c[t] = _mm256_add_epi32(o->c[t], _mm256_madd_epi16(even, words(x)));
            o->c[t] = _mm256_add_epi32(o->c[t], _mm256_madd_epi16(odd, words(x + 4)));
            const __m256i low = words((const uint8_t *)q[t].l + 4 * j); /* 4 bytes */
            if (wide) {
                const __m256i l_even = _mm256_srai_epi16(_mm256_slli_epi16(low, 8), 8);
                const __m256i l_odd = _mm256_srai_epi16(low, 8);
                o->l[t] = _mm256_add_epi32(o->l[t], _mm256_madd_epi16(even, l_even));
                o->l[t] = _mm256_add_epi32(o->l[t], _mm256_madd_epi16(odd, l_odd));
            } else if (short_sums) {
                l16[t] = _mm256_add_epi16(l16[t], _mm256_maddubs_epi16(v, low));
            } else {
                o->l[t] = _mm256_add_epi32(o->l[t],
                                           _mm256_madd_epi16(_mm256_maddubs_epi16(v, low), ones));
            }
        }
    }
    for (int t = 0; t < n_t && short_sums; t++)
        o->l[t] = _mm256_add_epi32(o->l[t], _mm256_madd_epi16(l16[t], ones));
}

VEC_INLINE __m256 scaled(__m256 scale, float d, __m256i c, __m256i l, __m256 acc) {
    const __m256 dot =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(c), _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(l));
    return _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(d)), dot, acc);
}

/* 8 rows of a panel for n_t tokens of one act_block: the order of linear_portable.c:add_block. */
VEC_INLINE void half_tile(pack_codes codes, pack_scales kind, int zero, const pack *w, const act *a,
                          const uint8_t *panel, int half, int t0, int n_t,
                          float out[TILE_MAX][PACK_ROWS]) {
    const bool halves = kind == SCALES_K16 || kind == SCALES_K16_MIN;
    const bool mins = kind == SCALES_F16_MIN || kind == SCALES_K32_MIN || kind == SCALES_K16_MIN;
    const uint8_t *table = w->format->table;
    const act_block *q = act_at(a, t0, 0);
    __m256 acc[TILE_MAX];
    for (int t = 0; t < n_t; t++) acc[t] = _mm256_setzero_ps();
    for (int b = 0; b < w->n_blocks; b++, q++) {
        const act_row *x = &q->row[t0 % ACT_ROWS];
        const uint8_t *c = panel + w->codes_at + (size_t)b * (size_t)w->format->code_bytes;
        const block_scales s =
            load_scales(kind, pack_header_at(w, panel, b), pack_block_scales_at(w, panel, b), half);
        block_dots dot;
        for (int i = 0; i < (halves ? 2 : 1); i++) {
            dots(codes, zero, table, c, half, 4 * i, halves ? 4 * i + 4 : 8, x, n_t, &dot);
            for (int t = 0; t < n_t; t++)
                acc[t] = scaled(s.d[i], x[t].d, dot.c[t], dot.l[t], acc[t]);
        }
        for (int t = 0; t < n_t && mins; t++) {
            if (halves) {
                acc[t] = _mm256_fmadd_ps(s.m[0], _mm256_set1_ps(x[t].s16[0]), acc[t]);
                acc[t] = _mm256_fmadd_ps(s.m[1], _mm256_set1_ps(x[t].s16[1]), acc[t]);
            } else {
                acc[t] = _mm256_fmadd_ps(s.m[0], _mm256_set1_ps(x[t].s), acc[t]);
            }
        }
    }
    for (int t = 0; t < n_t; t++) _mm256_storeu_ps(out[t] + 8 * half, acc[t]);
}

VEC_INLINE void code_panel(pack_codes codes, pack_scales scales, int zero, const pack *w,
                           const act *a, int i_panel, int t0, int n_t, const linear_out *o) {
    const uint8_t *panel = w->data + (size_t)i_panel * w->panel_bytes;
    float out[TILE_MAX][PACK_ROWS];
    for (int t = 0; t < n_t;) {
        /* A tile lies within one act_block. */
        const int n = n_t - t >= TILE_MAX && (t0 + t) % TILE_MAX == 0 ? TILE_MAX : 1;
        for (int half = 0; half < 2; half++) {
            if (n == TILE_MAX) {
                half_tile(codes, scales, zero, w, a, panel, half, t0 + t, TILE_MAX, out);
            } else {
                half_tile(codes, scales, zero, w, a, panel, half, t0 + t, 1, out);
            }
        }
        for (int i = 0; i < n; i++) store_panel(vf_load(out[i]), o, t + i);
        t += n;
    }
}

VEC_INLINE void code_panels(pack_codes codes, pack_scales scales, int zero, const pack *w,
                            const act *a, int p0, int p1, int t0, int n_t, const linear_out *o) {
    for (int p = p0; p < p1; p++) {
        const linear_out at = linear_out_at(o, p - p0);
        code_panel(codes, scales, zero, w, a, p, t0, n_t, &at);
    }
}
#include "kernels/cpu/linear_types_body.h"

void linear_avx2(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                 const linear_out *o) {
    if (pack_is_float(w)) {
        linear_float(w, a, p0, p1, t0, n_t, o);
    } else {
        linear_types(w, a, p0, p1, t0, n_t, o);
    }
}
