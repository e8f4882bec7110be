/* y = W x for quantised weights with AVX-512-VNNI. A vector of 64 code bytes holds 4 inputs of 16
 * rows; vpdpbusd multiplies it with 4 broadcast activation bytes and adds into 16 int32 sums: 24
 * instructions a block for the three byte planes of x, then c = 256 high + mid, two conversions and
 * three or four multiplications. A tile of up to 16 tokens shares the unpacking (12 instructions
 * for 4 bits).
 *
 * One token and 4 bits: 45 vector instructions for 512 weights, 23 cycles at 2 a cycle: 135 M
 * weights in 1.15 ms on 2 cores of 2.6 GHz, under the 1.5 ms that reading them takes (65 GB/s).
 * Many tokens: 33 instructions, 17 cycles for 512 products: 160 G a second on those cores. */
#include "kernels/cpu/linear_avx512.h"

#define LINEAR_FLOAT_TILE 8
#include "kernels/cpu/linear_float_body.h"

/* With few rows the codes stream from memory: asking 3 KiB ahead, past the page's edge too, gives
 * 12-18 % (10.9 -> 12.1 GB/s for 4 bits where a plain read has 15). */
enum { TILE_MAX = 16, PREFETCH_ROWS_MAX = 4, PREFETCH_BYTES = 3072 };

VEC_INLINE void prefetch(const uint8_t *codes, int n_bytes) {
    for (int i = 0; i < n_bytes; i += 64)
        _mm_prefetch((const char *)codes + PREFETCH_BYTES + i, _MM_HINT_T0);
}

VEC_INLINE __m512i word(const uint8_t *q) {
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

VEC_INLINE __m512i start(int zero, int32_t sum) {
    return zero != 0 ? _mm512_set1_epi32(-zero * sum) : _mm512_setzero_si512();
}

/* Vectors j0 .. j1 of codes times row t of q, without zero * (sum of the activations). */
VEC_INLINE vf dot(const __m512i *w, const act_block *q, int t, int j0, int j1, int zero,
                  int32_t sum_c, int32_t sum_l) {
    const uint8_t *c = q->c[t], *l = (const uint8_t *)q->l[t];
    __m512i high = _mm512_setzero_si512(), mid = start(zero, sum_c), low = start(zero, sum_l);
    for (int j = j0; j < j1; j++) {
        high = _mm512_dpbusd_epi32(high, w[j], word(c + 4 * j));
        mid = _mm512_dpbusd_epi32(mid, w[j], word(c + 32 + 4 * j));
        low = _mm512_dpbusd_epi32(low, w[j], word(l + 4 * j));
    }
    mid = _mm512_add_epi32(_mm512_slli_epi32(high, 8), mid);
    return vf_fma(vf_from_i32(mid), vf_set1(256.0f), vf_from_i32(low));
}

/* Adds a block's share of 16 outputs of row t of q: the order of linear_portable.c:add_block. */
VEC_INLINE vf add_block(pack_scales kind, int zero, const __m512i *w, const block_scales *s,
                        const act_block *q, int t, vf acc) {
    const vf d = vf_set1(q->d[t]);
    if (kind == SCALES_K16 || kind == SCALES_K16_MIN) {
        for (int h = 0; h < 2; h++)
            acc = vf_fma(vf_mul(s->d[h], d),
                         dot(w, q, t, 4 * h, 4 * h + 4, zero, q->sum_c16[h][t], q->sum_l16[h][t]),
                         acc);
        if (kind == SCALES_K16) return acc;
        acc = vf_fma(s->m[0], vf_set1(q->s16[0][t]), acc);
        return vf_fma(s->m[1], vf_set1(q->s16[1][t]), acc);
    }
    acc = vf_fma(vf_mul(s->d[0], d), dot(w, q, t, 0, 8, zero, q->sum_c[t], q->sum_l[t]), acc);
    if (kind == SCALES_F16_MIN || kind == SCALES_K32_MIN)
        acc = vf_fma(s->m[0], vf_set1(q->s[t]), acc);
    return acc;
}

/* n_t rows within one act_block. */
VEC_INLINE void code_tile(pack_codes codes, pack_scales scales, int zero, const pack *w,
                          const act *a, const uint8_t *panel, int t0, int n_t, const linear_out *o,
                          int t_out) {
    vf acc[TILE_MAX];
    for (int t = 0; t < n_t; t++) acc[t] = vf_set1(0.0f);
    const act_block *q = act_at(a, t0, 0);
    const int r = t0 % ACT_ROWS;
    for (int b = 0; b < w->n_blocks; b++, q++) {
        const uint8_t *c = panel + w->codes_at + (size_t)b * (size_t)w->format->code_bytes;
        if (n_t <= PREFETCH_ROWS_MAX) prefetch(c, w->format->code_bytes);
        __m512i code[8];
        unpack(codes, w->format->table, c, code);
        const block_scales s =
            load_scales(scales, pack_header_at(w, panel, b), pack_block_scales_at(w, panel, b));
        for (int t = 0; t < n_t; t++) acc[t] = add_block(scales, zero, code, &s, q, r + t, acc[t]);
    }
    for (int t = 0; t < n_t; t++) store_panel(acc[t], o, t_out + t);
}

VEC_INLINE void code_panel(pack_codes codes, pack_scales scales, int zero, const pack *w,
                           const act *a, int i_panel, int t0, int n_t, const linear_out *o) {
    const uint8_t *panel = w->data + (size_t)i_panel * w->panel_bytes;
    for (int t = 0; t < n_t;) {
        const int at = t0 + t, left = n_t - t;
        if (left >= 16 && at % 16 == 0) {
            code_tile(codes, scales, zero, w, a, panel, at, 16, o, t);
            t += 16;
        } else if (left >= 8 && at % 8 == 0) {
            code_tile(codes, scales, zero, w, a, panel, at, 8, o, t);
            t += 8;
        } else if (left >= 4 && at % 4 == 0) {
            code_tile(codes, scales, zero, w, a, panel, at, 4, o, t);
            t += 4;
        } else if (left >= 2 && at % 2 == 0) {
            code_tile(codes, scales, zero, w, a, panel, at, 2, o, t);
            t += 2;
        } else {
            code_tile(codes, scales, zero, w, a, panel, at, 1, o, t);
            t += 1;
        }
    }
}

/* One function a weight type, so that the compiler sees its constants. */
#define FORMAT(name, codes, scales, zero)                                                          \
    static void name(const pack *w, const act *a, int p0, int p1, int t0, int n_t,                 \
                     const linear_out *o) {                                                        \
        for (int p = p0; p < p1; p++) {                                                            \
            const linear_out at = linear_out_at(o, p - p0);                                        \
            code_panel(codes, scales, zero, w, a, p, t0, n_t, &at);                                \
        }                                                                                          \
    }
FORMAT(q4_0, CODES_4, SCALES_F16, 8)
FORMAT(q4_1, CODES_4, SCALES_F16_MIN, 0)
FORMAT(q5_0, CODES_5, SCALES_F16, 16)
FORMAT(q5_1, CODES_5, SCALES_F16_MIN, 0)
FORMAT(q8_0, CODES_8, SCALES_F16, 128)
FORMAT(q2_k, CODES_2, SCALES_K16_MIN, 0)
FORMAT(q3_k, CODES_3, SCALES_K16, 4)
FORMAT(q4_k, CODES_4, SCALES_K32_MIN, 0)
FORMAT(q5_k, CODES_5, SCALES_K32_MIN, 0)
FORMAT(q6_k, CODES_6, SCALES_K16, 32)
FORMAT(iq4_nl, CODES_4_TABLE, SCALES_F16, 128)
FORMAT(iq4_xs, CODES_4_TABLE, SCALES_K32, 128)
FORMAT(mxfp4, CODES_4_TABLE, SCALES_BF16, 12)
#undef FORMAT

void linear_avx512(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                   const linear_out *o) {
    switch (w->format->type) {
    case DTYPE_Q4_0:
        q4_0(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q4_1:
        q4_1(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q5_0:
        q5_0(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q5_1:
        q5_1(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q8_0:
        q8_0(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q2_K:
        q2_k(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q3_K:
        q3_k(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q4_K:
        q4_k(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q5_K:
        q5_k(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_Q6_K:
        q6_k(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_IQ4_NL:
        iq4_nl(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_IQ4_XS:
        iq4_xs(w, a, p0, p1, t0, n_t, o);
        break;
    case DTYPE_MXFP4:
        mxfp4(w, a, p0, p1, t0, n_t, o);
        break;
    default:
        linear_float(w, a, p0, p1, t0, n_t, o);
        break;
    }
}
