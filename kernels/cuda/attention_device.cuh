/* Device helpers that several attention kernels use: typed MMA, I8 conversion, output stores, and
 * the end of a split item. Included by attention_*.cuh only. */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_DEVICE_CUH
#define INFERD_KERNELS_CUDA_ATTENTION_DEVICE_CUH

#include "kernels/cuda/activation_order.cuh"
#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/ptx.cuh"

template <int TYPE>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
    if constexpr (TYPE == KV_BF16)
        ptx::mma_bf16(c, a, b0, b1);
    else
        ptx::mma_f16(c, a, b0, b1);
}
template <int TYPE> __device__ __forceinline__ uint32_t pack(float a, float b) {
    return TYPE == KV_BF16 ? ptx::pack_bf16(a, b) : ptx::pack_f16(a, b);
}

/* Two int8 of x, named by a byte_perm selector with 4 (= 0x64) in the odd places, as f16:
 * 0x6400 | (b ^ 128) is 1024 + 128 + b. */
__device__ __forceinline__ uint32_t i8_to_f16(uint32_t x, uint32_t selector) {
    uint32_t y = __byte_perm(x ^ 0x80808080u, 0x64646464u, selector);
    const __half2 t = __hsub2(*(__half2 *)&y, __floats2half2_rn(1152.0f, 1152.0f));
    return *(const uint32_t *)&t;
}
/* Four int8 of a register to f16 pairs: (b0,b1)(b2,b3) for K, (b0,b2)(b1,b3) for transposed V. */
__device__ __forceinline__ void i8_pairs_k(uint32_t x, uint32_t &a, uint32_t &b) {
    a = i8_to_f16(x, 0x4140);
    b = i8_to_f16(x, 0x4342);
}
__device__ __forceinline__ void i8_pairs_v(uint32_t x, uint32_t &a, uint32_t &b) {
    a = i8_to_f16(x, 0x4240);
    b = i8_to_f16(x, 0x4341);
}

__device__ __forceinline__ attention_item load_item(const attention_item *p) {
    const int4 *q = (const int4 *)p;
    const int4 a = __ldg(q), b = __ldg(q + 1), c = __ldg(q + 2);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
}

/* F16 outputs saturate: an overflow must not become an infinity that the next layer spreads. NaN
 * stays NaN. */
__device__ __forceinline__ float to_f16_range(float x) {
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}
/* Four consecutive outputs at element index i (a multiple of 4). */
__device__ __forceinline__ void store_out4(void *out, int type, size_t i, float4 v) {
    if (type == DTYPE_F32) {
        *(float4 *)((float *)out + i) = v;
    } else if (type == DTYPE_BF16) {
        *(uint2 *)((uint16_t *)out + i) =
            make_uint2(ptx::pack_bf16(v.x, v.y), ptx::pack_bf16(v.z, v.w));
    } else {
        *(uint2 *)((uint16_t *)out + i) =
            make_uint2(ptx::pack_f16(to_f16_range(v.x), to_f16_range(v.y)),
                       ptx::pack_f16(to_f16_range(v.z), to_f16_range(v.w)));
    }
}

/* Outputs 4e .. 4e + 3 of an item. */
__device__ __forceinline__ void store_item4(const decode_args &a, const attention_item &it, int e,
                                            int head_dim, float4 v) {
    const int k = it.head * head_dim + e * 4;
    if (a.out_columns > 0) {
        activation_store((uint16_t *)a.out, a.out_columns, it.row, k,
                         ptx::pack_f16(to_f16_range(v.x), to_f16_range(v.y)),
                         ptx::pack_f16(to_f16_range(v.z), to_f16_range(v.w)));
    } else {
        store_out4(a.out, a.out_type, (size_t)it.row * (size_t)a.out_width + (size_t)k, v);
    }
}

__device__ __forceinline__ float4 scaled(float4 v, float f) {
    return make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
}
__device__ __forceinline__ void add_scaled(float4 &o, float f, float4 v) {
    o.x += f * v.x;
    o.y += f * v.y;
    o.z += f * v.z;
    o.w += f * v.w;
}

/* Combines the partials slot0 .. slot0 + n_split - 1 of an item, in slot order within each of NG
 * groups of threads and then in group order. scratch: what store_state used; sml likewise. */
template <class T>
__device__ __forceinline__ void merge_slots(const decode_args &a, const attention_item &it,
                                            float *scratch, float2 *sml) {
    constexpr int D4 = T::D / 4;
    const int ne = it.n_heads * D4; /* float4 outputs */
    const int ng = ne >= T::NT ? 1 : min(T::NT / ne, T::W);
    const int t = threadIdx.x, g = ng == 1 ? 0 : t / ne;
    for (int e = ng == 1 ? t : t % ne; e < ne && g < ng; e += ng == 1 ? T::NT : ne) {
        const int h = e / D4;
        const float4 *p = a.partial + (size_t)it.slot0 * a.slot_heads * D4 + e;
        const float2 *ml = a.partial_ml + (size_t)it.slot0 * a.slot_heads + h;
        float m = -INFINITY, l = 0.0f;
        float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int s0 = g; s0 < it.n_split; s0 += 8 * ng) { /* eight loads in flight */
            float4 x[8];
            float2 y[8];
            float top = m;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const bool ok = s0 + j * ng < it.n_split;
                const int s = ok ? s0 + j * ng : s0;
                y[j] = __ldcg(ml + (size_t)s * a.slot_heads);
                x[j] = __ldcg(p + (size_t)s * a.slot_heads * D4);
                if (!ok) y[j].x = -INFINITY;
            }
#pragma unroll
            for (int j = 0; j < 8; j++) top = fmaxf(top, y[j].x);
            const float f = ptx::exp2_approx(m - top);
            l *= f;
            o = scaled(o, f);
            m = top;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float w = ptx::exp2_approx(y[j].x - m);
                l += w * y[j].y;
                add_scaled(o, w, x[j]);
            }
        }
        if (ng == 1) {
            store_item4(a, it, e, T::D, scaled(o, 1.0f / l));
        } else {
            *(float4 *)(scratch + (g * ne + e) * 4) = o;
            if (e % D4 == 0) sml[g * it.n_heads + h] = make_float2(m, l);
            break;
        }
    }
    if (ng == 1) return;
    __syncthreads(); /* all groups' states are in shared memory */
    if (t < ne) {
        const int h = t / D4;
        float m = -INFINITY, l = 0.0f;
        float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int k = 0; k < ng; k++) m = fmaxf(m, sml[k * it.n_heads + h].x);
        for (int k = 0; k < ng; k++) {
            const float2 ml = sml[k * it.n_heads + h];
            const float w = ptx::exp2_approx(ml.x - m);
            l += w * ml.y;
            add_scaled(o, w, *(float4 *)(scratch + (k * ne + t) * 4));
        }
        store_item4(a, it, t, T::D, scaled(o, 1.0f / l));
    }
}

/* End of an item: T::W partial states in shared memory (sO[w][head][OPITCH], sml[w][8]) become the
 * output, or a partial; the last block of a split row to arrive merges all of them. */
template <class T>
__device__ __forceinline__ void finish_item(const decode_args &a, const attention_item &it,
                                            float *sO, float2 *sml, int *flag) {
    constexpr int D4 = T::D / 4;
    const int t = threadIdx.x;
    __syncthreads(); /* every warp's state is stored */
    for (int e = t; e < it.n_heads * D4; e += T::NT) {
        const int h = e / D4, d4 = e % D4;
        float m = -INFINITY, l = 0.0f;
        float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int w = 0; w < T::W; w++) m = fmaxf(m, sml[w * 8 + h].x);
#pragma unroll
        for (int w = 0; w < T::W; w++) {
            const float2 ml = sml[w * 8 + h];
            const float f = ptx::exp2_approx(ml.x - m);
            l += f * ml.y;
            add_scaled(o, f, *(float4 *)(sO + (w * it.n_heads + h) * T::OPITCH + d4 * 4));
        }
        if (it.n_split == 1) {
            store_item4(a, it, e, T::D, scaled(o, 1.0f / l));
        } else {
            a.partial[(size_t)it.slot * a.slot_heads * D4 + e] = o;
            if (d4 == 0) a.partial_ml[(size_t)it.slot * a.slot_heads + h] = make_float2(m, l);
        }
    }
    if (it.n_split == 1) return;
    __syncthreads(); /* the partial is written before thread 0 announces it */
    if (t == 0) {
        const unsigned last = (unsigned)it.n_split - 1;
        *flag = ptx::atomic_inc_acq_rel(a.counter + it.slot0, last) == last;
    }
    __syncthreads(); /* flag is set; sO and sml are free */
    if (*flag) merge_slots<T>(a, it, sO, sml);
}
#endif
