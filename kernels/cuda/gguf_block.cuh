/* Fields of one GGUF block on the device: what repack.cu needs to know of each weight type. Byte
 * loads only: blocks are 2-byte aligned at most. Source: the block structs and dequantisers of ggml
 * (kernels/cpu/dequant.c explains them). */
#ifndef INFERD_KERNELS_CUDA_GGUF_BLOCK_CUH
#define INFERD_KERNELS_CUDA_GGUF_BLOCK_CUH

#include <cuda_fp16.h>
#include <stdint.h>

#include "kernels/dtype.h"

namespace gguf_block {

__device__ inline float half_at(const uint8_t *p) {
    return __half2float(__ushort_as_half((unsigned short)(p[0] | p[1] << 8)));
}
__device__ inline float float_at(const uint8_t *p) {
    return __uint_as_float(p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24);
}
/* Low nibble of qs[i % 16] for i < 16, else the high one. */
__device__ inline int nibble(const uint8_t *qs, int i) {
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}
__device__ inline int bit_of(const uint8_t *qh, int i) {
    return (qh[i >> 3] >> (i & 7)) & 1;
}

/* 6-bit scale and minimum of sub-block j of Q4_K and Q5_K. */
__device__ inline void k_scale_min(const uint8_t *sc, int j, int &s, int &m) {
    if (j < 4) {
        s = sc[j] & 63;
        m = sc[j + 4] & 63;
    } else {
        s = (sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4;
        m = (sc[j + 4] >> 4) | (sc[j] >> 6) << 4;
    }
}
/* 6-bit scale j of Q3_K, 0..63 (the value is minus 32). */
__device__ inline int q3k_scale(const uint8_t *b, int j) {
    const uint8_t *s = b + 96;
    const int lo = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    return lo | ((s[8 + (j & 3)] >> (2 * (j >> 2))) & 3) << 4;
}
__device__ inline int iq4xs_scale(const uint8_t *b, int j) {
    const int high = b[2] | b[3] << 8;
    return ((b[4 + (j >> 1)] >> (4 * (j & 1))) & 15) | ((high >> (2 * j)) & 3) << 4;
}
__device__ inline int iq4_level(int q) {
    constexpr int8_t LEVEL[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
    return LEVEL[q];
}
__device__ inline int mxfp4_level(int q) {
    constexpr int8_t LEVEL[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    return q & 8 ? -LEVEL[q & 7] : LEVEL[q & 7];
}

/* The integer that the device format stores for element i (WF_Q80: plus 128). */
__device__ inline int quant(dtype t, const uint8_t *b, int i) {
    const int half = i >> 7, k = (i & 127) >> 5, l = i & 31, j = i >> 5;
    switch (t) {
    case DTYPE_Q4_0:
        return nibble(b + 2, i);
    case DTYPE_Q4_1:
        return nibble(b + 4, i);
    case DTYPE_Q5_0:
        return nibble(b + 6, i) | bit_of(b + 2, i) << 4;
    case DTYPE_Q5_1:
        return nibble(b + 8, i) | bit_of(b + 4, i) << 4;
    case DTYPE_Q8_0:
        return (int8_t)b[2 + i] + 128;
    case DTYPE_Q4_K: {
        const int v = b[16 + 32 * (j >> 1) + l];
        return j & 1 ? v >> 4 : v & 15;
    }
    case DTYPE_Q5_K: {
        const int v = b[48 + 32 * (j >> 1) + l];
        return (j & 1 ? v >> 4 : v & 15) | ((b[16 + l] >> j) & 1) << 4;
    }
    case DTYPE_Q6_K: {
        const int v = b[64 * half + l + 32 * (k & 1)];
        return (k < 2 ? v & 15 : v >> 4) | ((b[128 + 32 * half + l] >> (2 * k)) & 3) << 4;
    }
    case DTYPE_Q3_K: {
        const int low = (b[32 + 32 * half + l] >> (2 * k)) & 3;
        return low - ((b[l] >> (4 * half + k)) & 1 ? 0 : 4) + 32;
    }
    case DTYPE_IQ4_NL:
        return iq4_level(nibble(b + 2, i)) + 128;
    case DTYPE_IQ4_XS:
        return iq4_level(nibble(b + 8 + 16 * j, l)) + 128;
    case DTYPE_MXFP4:
        return mxfp4_level(nibble(b + 1, i)) + 128;
    default:
        return 0;
    }
}

/* Scale and minimum of a block, before sub-block integers: w = d * S * q - m * M or d * q + m. */
__device__ inline void block_scale(dtype t, const uint8_t *b, int i, float &d, float &m) {
    m = 0;
    switch (t) {
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        d = half_at(b);
        m = half_at(b + 2);
        break;
    case DTYPE_Q4_1:
    case DTYPE_Q5_1:
        d = half_at(b);
        m = half_at(b + 2);
        break;
    case DTYPE_Q6_K:
        d = half_at(b + 208);
        break;
    case DTYPE_Q3_K:
        d = half_at(b + 108);
        break;
    case DTYPE_IQ4_XS:
        d = half_at(b) * (float)(iq4xs_scale(b, i >> 5) - 32);
        break;
    case DTYPE_MXFP4:
        d = b[0] > 1 ? exp2f((float)b[0] - 128.0f) : 0.0f;
        break;
    default:
        d = half_at(b);
    }
}

/* A plain value, for the types kept as halves. */
__device__ inline float plain(dtype t, const uint8_t *row, int k) {
    if (t == DTYPE_F32) return float_at(row + 4 * (size_t)k);
    if (t == DTYPE_F16) return half_at(row + 2 * (size_t)k);
    if (t == DTYPE_BF16) {
        const uint8_t *p = row + 2 * (size_t)k;
        return __uint_as_float((uint32_t)(p[0] | p[1] << 8) << 16);
    }
    const uint8_t *b = row + (size_t)(k / 256) * 84; /* Q2_K */
    const int i = k % 256, half = i >> 7, s = (i & 127) >> 5, l = i & 31, sc = b[i / 16];
    return half_at(b + 80) * (float)(sc & 15) * (float)((b[16 + 32 * half + l] >> (2 * s)) & 3) -
           half_at(b + 82) * (float)(sc >> 4);
}

/* The weight itself, any type: embedding rows. */
__device__ inline float value(dtype t, const uint8_t *row, int k, int block_elems,
                              int block_bytes) {
    if (block_elems == 1 || t == DTYPE_Q2_K) return plain(t, row, k);
    const uint8_t *b = row + (size_t)(k / block_elems) * (size_t)block_bytes;
    const int i = k % block_elems;
    float d, m;
    block_scale(t, b, i, d, m);
    const float q = (float)quant(t, b, i);
    switch (t) {
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        int s, mn;
        k_scale_min(b + 4, i >> 5, s, mn);
        return d * (float)s * q - m * (float)mn;
    }
    case DTYPE_Q6_K:
        return d * (float)(int8_t)b[192 + i / 16] * (q - 32.0f);
    case DTYPE_Q3_K:
        return d * (float)(q3k_scale(b, i / 16) - 32) * (q - 32.0f);
    case DTYPE_Q4_0:
        return d * (q - 8.0f);
    case DTYPE_Q5_0:
        return d * (q - 16.0f);
    case DTYPE_Q4_1:
    case DTYPE_Q5_1:
        return d * q + m;
    default:
        return d * (q - 128.0f);
    }
}

} // namespace gguf_block
#endif
