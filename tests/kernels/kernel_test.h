/* Shared by the CPU kernel tests: seeded numbers, random tensors of every weight type. */
#ifndef INFERD_TESTS_KERNELS_KERNEL_TEST_H
#define INFERD_TESTS_KERNELS_KERNEL_TEST_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/dequant.h"
#include "kernels/cpu/kernels.h"

static const dtype WEIGHT_TYPES[] = {DTYPE_F32,  DTYPE_F16,    DTYPE_BF16,   DTYPE_Q4_0,
                                     DTYPE_Q4_1, DTYPE_Q5_0,   DTYPE_Q5_1,   DTYPE_Q8_0,
                                     DTYPE_Q2_K, DTYPE_Q3_K,   DTYPE_Q4_K,   DTYPE_Q5_K,
                                     DTYPE_Q6_K, DTYPE_IQ4_NL, DTYPE_IQ4_XS, DTYPE_MXFP4};
enum { N_WEIGHT_TYPES = sizeof WEIGHT_TYPES / sizeof WEIGHT_TYPES[0] };

typedef struct rng {
    uint64_t s;
} rng;

static inline uint32_t rng_u32(rng *r) {
    r->s += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t z = r->s;
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return (uint32_t)(z >> 32);
}
static inline float rng_uniform(rng *r) {
    return (float)(rng_u32(r) >> 8) * 0x1p-24f;
}
/* Sum of uniforms: near enough to a normal distribution. */
static inline float rng_normal(rng *r) {
    float s = -6.0f;
    for (int i = 0; i < 12; i++) s += rng_uniform(r);
    return s;
}

/* Byte offsets of a block's half-precision scales; -1 ends. */
static inline void scale_offsets(dtype t, int out[3]) {
    out[0] = 0;
    out[1] = out[2] = -1;
    switch (t) {
    case DTYPE_Q4_1:
    case DTYPE_Q5_1:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        out[1] = 2;
        break;
    case DTYPE_Q2_K:
        out[0] = 80;
        out[1] = 82;
        break;
    case DTYPE_Q3_K:
        out[0] = 108;
        break;
    case DTYPE_Q6_K:
        out[0] = 208;
        break;
    case DTYPE_MXFP4:
        out[0] = -1;
        break;
    default:
        break;
    }
}

/* Random weights of about the given size, as a file would hold them. Freed by the caller. */
static inline uint8_t *random_weights(rng *r, dtype t, int n_in, int n_out, float size) {
    const dtype_info *info = dtype_get((int)t);
    const size_t bytes = dtype_row_bytes(t, n_in) * (size_t)n_out;
    uint8_t *p = malloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)rng_u32(r);
    int at[3];
    scale_offsets(t, at);
    for (size_t i = 0; i < bytes; i += (size_t)info->block_bytes) {
        const float v = size * rng_normal(r);
        uint16_t h;
        switch (t) {
        case DTYPE_F32:
            memcpy(p + i, &v, 4);
            continue;
        case DTYPE_F16:
            h = f32_to_f16(v);
            memcpy(p + i, &h, 2);
            continue;
        case DTYPE_BF16:
            h = f32_to_bf16(v);
            memcpy(p + i, &h, 2);
            continue;
        case DTYPE_MXFP4:
            p[i] = (uint8_t)(120 + rng_u32(r) % 6);
            continue;
        default:
            break;
        }
        /* Codes and sub-scales are uniform, so the scale carries the size. */
        const float unit = info->block_elems == 256 ? size / 256.0f : size / 16.0f;
        for (int k = 0; at[k] >= 0; k++) {
            h = f32_to_f16(unit * (0.5f + rng_uniform(r)) * (k == 1 ? -4.0f : 1.0f));
            memcpy(p + i + at[k], &h, 2);
        }
    }
    return p;
}

/* Packs t; free with free(p.data). */
static inline pack packed(const tensor_view *t) {
    pack p;
    error e;
    if (pack_plan(t, &p, &e) != OK) abort();
    p.data = aligned_alloc(64, pack_bytes(&p));
    memset(p.data, 0, pack_bytes(&p));
    pack_panels(&p, t, 0, p.n_panels);
    return p;
}

/* Every table that this processor can run; n of them. */
enum { KERNELS_MAX = 4 };
static inline int all_kernels(const cpu_kernels *out[KERNELS_MAX]) {
    int n = 0;
    out[n++] = cpu_kernels_portable();
    if (cpu_kernels_avx2() != NULL) out[n++] = cpu_kernels_avx2();
    if (cpu_kernels_avx512() != NULL) out[n++] = cpu_kernels_avx512();
    if (cpu_kernels_amx() != NULL) out[n++] = cpu_kernels_amx();
    return n;
}

/* Equal as bits, but any NaN equals any NaN. */
static inline bool same_bits(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    }
    return true;
}
#endif
