/* Fragment-ordered weight chunks: 16 output rows x 64 * UNITS inputs, stored so that lane (g =
 * lane / 4, t = lane % 4) of a warp reads its m16n8k16 A fragments with 16-byte loads. In every
 * 64-input unit lane t owns inputs 16t..16t+15; MMA step s uses 16t + 4s + {0,1,2,3} as its k
 * columns {2t, 2t+1, 2t+8, 2t+9}, so activations are read in natural order, 32 contiguous bytes a
 * lane.
 *
 *   nibbles  unit: 512 B, one uint32 a lane and step s: bits 0-3,16-19 -> a0 (row g), 4-7,20-23 ->
 *            a1 (row g+8), 8-11,24-27 -> a2 (row g), 12-15,28-31 -> a3 (row g+8)
 *   Q4K 2368 B  4 x 512 nibbles | 256 (S, M bytes: [g][t/2][unit] S_g M_g S_g+8 M_g+8) | 64 half2
 *               (d, -dmin) of 16 rows
 *   Q5K 2880 B  4 x 512 | 4 x 128 fifth bits | 256 | 64 as Q4K
 *   Q6K 3360 B  4 x 512 | 4 x 256 high pairs | 256 int8 scales + 128 | 32 d
 *   Q80 1088 B  2 x 512 bytes (q + 128) | 64 d        Q40 576 B  512 | 64 d
 *   Q41  640 B  512 | 128 (d, m)    Q50 704 B  512 | 128 fifth bits | 64 d
 *   Q51  768 B  512 | 128 fifth bits | 128 (d, m)     F16 2048 B  4 x 512 halves
 *
 * Integers become halves by one AND: a nibble is a subnormal half, q * 2^-24 (rows g) or q * 2^-20
 * (rows g+8); the exponents sit in the scales, which are normalised per row by a power of two that
 * row_scale undoes. So dequantising is one LOP3 and one HFMA2 for two weights. Blocks whose scale
 * is far below their row's largest lose bits to half subnormals: absolute error about 2^-17 of the
 * row's maximum. Numerics: a weight is rounded once or twice to half (relative 3e-4 over a dot
 * product). */
#ifndef INFERD_KERNELS_CUDA_WEIGHT_FORMAT_CUH
#define INFERD_KERNELS_CUDA_WEIGHT_FORMAT_CUH

#include <cuda_fp16.h>
#include <stdint.h>

#include "kernels/cuda/matrix.h"

/* UNITS of 64 inputs in a chunk, its BYTES; SHIFT_LO/HI: the power of two that the scales of rows g
 * and g+8 carry after normalisation. NV: 16-byte vectors a lane and unit. */
template <int F> struct wf_traits;
template <> struct wf_traits<WF_Q4K> {
    static constexpr int UNITS = 4, BYTES = 2368, SHIFT_LO = 10, SHIFT_HI = 6, NV = 1;
};
template <> struct wf_traits<WF_Q5K> {
    static constexpr int UNITS = 4, BYTES = 2880, SHIFT_LO = 10, SHIFT_HI = 6, NV = 1;
};
template <> struct wf_traits<WF_Q6K> {
    static constexpr int UNITS = 4, BYTES = 3360, SHIFT_LO = 8, SHIFT_HI = 4, NV = 1;
};
template <> struct wf_traits<WF_Q80> {
    static constexpr int UNITS = 1, BYTES = 1088, SHIFT_LO = 15, SHIFT_HI = 15, NV = 2;
};
template <> struct wf_traits<WF_Q40> {
    static constexpr int UNITS = 1, BYTES = 576, SHIFT_LO = 15, SHIFT_HI = 11, NV = 1;
};
template <> struct wf_traits<WF_Q41> {
    static constexpr int UNITS = 1, BYTES = 640, SHIFT_LO = 15, SHIFT_HI = 11, NV = 1;
};
template <> struct wf_traits<WF_Q50> {
    static constexpr int UNITS = 1, BYTES = 704, SHIFT_LO = 15, SHIFT_HI = 11, NV = 1;
};
template <> struct wf_traits<WF_Q51> {
    static constexpr int UNITS = 1, BYTES = 768, SHIFT_LO = 15, SHIFT_HI = 11, NV = 1;
};
template <> struct wf_traits<WF_F16> {
    static constexpr int UNITS = 1, BYTES = 2048, SHIFT_LO = 0, SHIFT_HI = 0, NV = 4;
};

__device__ __forceinline__ __half2 as_half2(uint32_t a) {
    return *(__half2 *)&a;
}
__device__ __forceinline__ uint32_t half2_bits(__half2 a) {
    return *(uint32_t *)&a;
}
__device__ __forceinline__ uint32_t pack_half2(float a, float b) {
    return half2_bits(__floats2half2_rn(a, b));
}
__device__ __forceinline__ uint32_t fma_half2(uint32_t a, __half2 s, __half2 c) {
    return half2_bits(__hfma2(as_half2(a), s, c));
}

/* One chunk's registers of one lane. */
template <int F> struct wf_frag {
    using T = wf_traits<F>;
    static constexpr bool HAS_SM = F == WF_Q4K || F == WF_Q5K;
    static constexpr bool HAS_FIFTH = F == WF_Q5K || F == WF_Q50 || F == WF_Q51;
    static constexpr bool HAS_MIN = F == WF_Q41 || F == WF_Q51;
    static constexpr int LOW_BYTES = T::UNITS * T::NV * 512;

    uint4 q[T::UNITS * T::NV];
    uint32_t fifth[HAS_FIFTH ? T::UNITS : 1];
    uint2 pairs[F == WF_Q6K ? 4 : 1];
    uint4 sm; /* Q4K, Q5K: S and M of the four units; Q6K: int8 scales in x, y */
    uint2 d;  /* half2: (d, -dmin) of both rows, or d of both rows and m of both rows */

    __device__ __forceinline__ void load(const uint8_t *c, int lane) {
        const int g = lane >> 2, t = lane & 3, gt = g * 2 + (t >> 1);
#pragma unroll
        for (int i = 0; i < T::UNITS * T::NV; i++) {
            q[i] = *(const uint4 *)(c + i * 512 + lane * 16);
        }
        const uint8_t *p = c + LOW_BYTES;
        if constexpr (HAS_FIFTH) {
#pragma unroll
            for (int u = 0; u < T::UNITS; u++) {
                fifth[u] = *(const uint32_t *)(p + u * 128 + lane * 4);
            }
            p += T::UNITS * 128;
        }
        if constexpr (HAS_SM) {
            sm = *(const uint4 *)(p + gt * 16);
            d = *(const uint2 *)(p + 256 + g * 8);
        } else if constexpr (F == WF_Q6K) {
#pragma unroll
            for (int u = 0; u < 4; u++) pairs[u] = *(const uint2 *)(p + u * 256 + lane * 8);
            const uint2 s = *(const uint2 *)(p + 1024 + lane * 8);
            sm.x = s.x;
            sm.y = s.y;
            d.x = *(const uint32_t *)(p + 1280 + g * 4);
        } else if constexpr (HAS_MIN) {
            d = *(const uint2 *)(p + gt * 8);
        } else if constexpr (F != WF_F16) {
            d.x = *(const uint32_t *)(p + gt * 4);
        }
    }

    /* Scale and constant of rows g and g+8 in unit u, each in both halves. */
    __device__ __forceinline__ void scales(int u, __half2 &s0, __half2 &c0, __half2 &s1,
                                           __half2 &c1) const {
        const __half2 k1024 = as_half2(0x64006400u); /* byte b under 0x64: the half 1024 + b */
        if constexpr (HAS_SM) {
            const uint32_t m = ((const uint32_t *)&sm)[u];
            const __half2 p = __hmul2(__hsub2(as_half2(__byte_perm(m, 0x64646464u, 0x4140)), k1024),
                                      as_half2(d.x));
            const __half2 r = __hmul2(__hsub2(as_half2(__byte_perm(m, 0x64646464u, 0x4342)), k1024),
                                      as_half2(d.y));
            s0 = __low2half2(p);
            c0 = __high2half2(p);
            s1 = __low2half2(r);
            c1 = __high2half2(r);
            return;
        }
        __half2 s = as_half2(d.x);
        if constexpr (F == WF_Q6K) {
            const uint32_t m = u >> 1 ? sm.y : sm.x;
            const uint32_t pair = __byte_perm(m, 0x64646464u, u & 1 ? 0x4342 : 0x4140);
            s = __hmul2(__hsub2(as_half2(pair), as_half2(0x64806480u)), s);
        }
        s0 = __low2half2(s);
        s1 = __high2half2(s);
        if constexpr (HAS_MIN) {
            c0 = __low2half2(as_half2(d.y));
            c1 = __high2half2(as_half2(d.y));
        } else {
            /* minus the zero point as subnormal halves (row g | row g+8): the product is exact */
            constexpr uint32_t ZERO = F == WF_Q6K   ? 0x82008020u
                                      : F == WF_Q80 ? 0x80808080u
                                      : F == WF_Q40 ? 0x80808008u
                                                    : 0x81008010u;
            const __half2 c = __hmul2(s, as_half2(ZERO));
            c0 = __low2half2(c);
            c1 = __high2half2(c);
        }
    }

    /* A registers of unit u: a[4 * step + i]. */
    __device__ __forceinline__ void expand(int u, uint32_t (&a)[16]) const {
        if constexpr (F == WF_F16) {
#pragma unroll
            for (int s = 0; s < 4; s++) {
                a[4 * s] = q[4 * u + s].x;
                a[4 * s + 1] = q[4 * u + s].y;
                a[4 * s + 2] = q[4 * u + s].z;
                a[4 * s + 3] = q[4 * u + s].w;
            }
        } else {
            __half2 s0, c0, s1, c1;
            scales(u, s0, c0, s1, c1);
#pragma unroll
            for (int s = 0; s < 4; s++) {
                if constexpr (F == WF_Q80) {
                    const uint32_t x = ((const uint32_t *)q)[8 * u + 2 * s];
                    const uint32_t y = ((const uint32_t *)q)[8 * u + 2 * s + 1];
                    a[4 * s] = fma_half2(__byte_perm(x, 0, 0x4140), s0, c0);
                    a[4 * s + 1] = fma_half2(__byte_perm(x, 0, 0x4342), s1, c1);
                    a[4 * s + 2] = fma_half2(__byte_perm(y, 0, 0x4140), s0, c0);
                    a[4 * s + 3] = fma_half2(__byte_perm(y, 0, 0x4342), s1, c1);
                } else {
                    expand_nibbles(u, s, s0, c0, s1, c1, a);
                }
            }
        }
    }

    __device__ __forceinline__ void expand_nibbles(int u, int s, __half2 s0, __half2 c0, __half2 s1,
                                                   __half2 c1, uint32_t (&a)[16]) const {
        const uint32_t w = ((const uint32_t *)&q[u])[s], v = w >> 8;
        uint32_t b0 = w & 0x000f000fu, b1 = w & 0x00f000f0u;
        uint32_t b2 = v & 0x000f000fu, b3 = v & 0x00f000f0u;
        if constexpr (HAS_FIFTH) {
            const uint32_t z = fifth[u];
            b0 |= (z >> s) & 0x00100010u;
            b1 |= (z >> s) & 0x01000100u;
            b2 |= (z << (4 - s)) & 0x00100010u;
            b3 |= (z >> (4 + s)) & 0x01000100u;
        }
        if constexpr (F == WF_Q6K) {
            const uint32_t z = s & 2 ? pairs[u].y : pairs[u].x;
            const int r = 2 * (s & 1);
            b0 |= (z >> r) & 0x00300030u;
            b1 |= (z >> r) & 0x03000300u;
            b2 |= (z << (4 - r)) & 0x00300030u;
            b3 |= (z >> (4 + r)) & 0x03000300u;
        }
        a[4 * s] = fma_half2(b0, s0, c0);
        a[4 * s + 1] = fma_half2(b1, s1, c1);
        a[4 * s + 2] = fma_half2(b2, s0, c0);
        a[4 * s + 3] = fma_half2(b3, s1, c1);
    }
};

/* c[16x8] += a[16x16] b[16x8]; lane: rows g, g+8, columns 2t, 2t+1. */
__device__ __forceinline__ void mma_half(float (&c)[4], const uint32_t *a, uint32_t b0,
                                         uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
