/* Vectors of 16 lanes in plain C: the meaning of every operation that vec_avx2.h and vec_avx512.h
 * do with instructions. All three give the same bits: lanes never mix except in vf_sum, vf_hmax and
 * vi_hsum4, whose tree is fixed; fma is one rounding; max(a, b) is a > b ? a : b (b when
 * unordered), as x86 does. The *_body.h files are written once on top of them. */
#ifndef INFERD_KERNELS_CPU_VEC_H
#define INFERD_KERNELS_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/dequant.h"

#define VEC_INLINE                                                                                 \
    static inline __attribute__((unused)) /* not forced: sanitizers would explode                  \
                                           */
#define LANES for (int i = 0; i < 16; i++)

typedef struct vf {
    float v[16];
} vf;
typedef struct vi {
    int32_t v[16];
} vi;

VEC_INLINE vf vf_set1(float x) {
    vf o;
    LANES o.v[i] = x;
    return o;
}
VEC_INLINE vf vf_load(const float *p) {
    vf o;
    memcpy(o.v, p, sizeof o.v);
    return o;
}
VEC_INLINE void vf_store(float *p, vf a) {
    memcpy(p, a.v, sizeof a.v);
}
VEC_INLINE vf vf_load_f16(const void *p) {
    vf o;
    LANES o.v[i] = f16_load((const uint8_t *)p + 2 * i);
    return o;
}
VEC_INLINE vf vf_load_bf16(const void *p) {
    uint16_t h[16];
    memcpy(h, p, sizeof h);
    vf o;
    LANES o.v[i] = bf16_to_f32(h[i]);
    return o;
}
VEC_INLINE vf vf_load_i8(const void *p) {
    vf o;
    LANES o.v[i] = (float)((const int8_t *)p)[i];
    return o;
}
VEC_INLINE vf vf_load_u8(const void *p) {
    vf o;
    LANES o.v[i] = (float)((const uint8_t *)p)[i];
    return o;
}
VEC_INLINE vf vf_add(vf a, vf b) {
    LANES a.v[i] = a.v[i] + b.v[i];
    return a;
}
VEC_INLINE vf vf_sub(vf a, vf b) {
    LANES a.v[i] = a.v[i] - b.v[i];
    return a;
}
VEC_INLINE vf vf_mul(vf a, vf b) {
    LANES a.v[i] = a.v[i] * b.v[i];
    return a;
}
VEC_INLINE vf vf_div(vf a, vf b) {
    LANES a.v[i] = a.v[i] / b.v[i];
    return a;
}
VEC_INLINE vf vf_fma(vf a, vf b, vf c) {
    LANES c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
VEC_INLINE vf vf_max(vf a, vf b) {
    LANES b.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return b;
}
/* Lanes lo <= i < hi of a, other elsewhere. */
VEC_INLINE vf vf_keep(vf a, int lo, int hi, float other) {
    LANES a.v[i] = i >= lo && i < hi ? a.v[i] : other;
    return a;
}
/* 0 where x < limit, else y (so that NaN stays). */
VEC_INLINE vf vf_zero_below(vf x, float limit, vf y) {
    LANES y.v[i] = x.v[i] < limit ? 0.0f : y.v[i];
    return y;
}
/* y 2^n, where t = 1.5 * 2^23 + n: n is in the low bits of t; adds it to y's exponent. */
VEC_INLINE vf vf_scale_pow2(vf y, vf t) {
    uint32_t a[16], b[16];
    memcpy(a, y.v, sizeof a);
    memcpy(b, t.v, sizeof b);
    LANES a[i] += b[i] << 23;
    memcpy(y.v, a, sizeof a);
    return y;
}
VEC_INLINE float vf_sum(vf a) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++) a.v[i] = a.v[i] + a.v[i + n];
    return a.v[0];
}
VEC_INLINE float vf_hmax(vf a) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++) a.v[i] = a.v[i] > a.v[i + n] ? a.v[i] : a.v[i + n];
    return a.v[0];
}
/* Bit i: a[i] == x. */
VEC_INLINE uint32_t vf_equal_mask(vf a, float x) {
    uint32_t m = 0;
    LANES m |= (uint32_t)(a.v[i] == x) << i;
    return m;
}
/* Bit i: a[i] > x. */
VEC_INLINE uint32_t vf_above_mask(vf a, float x) {
    uint32_t m = 0;
    LANES m |= (uint32_t)(a.v[i] > x) << i;
    return m;
}

VEC_INLINE vi vi_zero(void) {
    vi o;
    LANES o.v[i] = 0;
    return o;
}
/* |a| as bits: ordered like the numbers, infinity and then NaN above all. */
VEC_INLINE vi vf_abs_bits(vf a) {
    vi o;
    memcpy(o.v, a.v, sizeof o.v);
    LANES o.v[i] &= 0x7FFFFFFF;
    return o;
}
VEC_INLINE vi vi_max(vi a, vi b) {
    LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
VEC_INLINE int32_t vi_hmax(vi a) {
    int32_t m = a.v[0];
    LANES m = a.v[i] > m ? a.v[i] : m;
    return m;
}
/* The sums of a, b, c and d. */
VEC_INLINE void vi_hsum4(vi a, vi b, vi c, vi d, int32_t out[4]) {
    for (int k = 0; k < 4; k++) out[k] = 0;
    LANES {
        out[0] += a.v[i];
        out[1] += b.v[i];
        out[2] += c.v[i];
        out[3] += d.v[i];
    }
}
/* Nearest integer, ties to even; |a| < 2^31. */
VEC_INLINE vi vf_round(vf a) {
    vi o;
    LANES o.v[i] = (int32_t)rintf(a.v[i]);
    return o;
}
/* (a + 128) / 256, rounded down: c of a = 256 c + l with -128 <= l <= 127. */
VEC_INLINE vi vi_high24(vi a) {
    LANES a.v[i] = (a.v[i] + 128) >> 8;
    return a;
}
VEC_INLINE vf vf_from_i32(vi a) {
    vf o;
    LANES o.v[i] = (float)a.v[i];
    return o;
}
VEC_INLINE void vi_store(int32_t *p, vi a) {
    memcpy(p, a.v, sizeof a.v);
}
#undef LANES
#endif
