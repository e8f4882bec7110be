/* rope_append for the tensor-core layouts, 16 bytes at a time: the formulas of rope_append.cu.
 *   A head is D / 16 units of two 8-value chunks: u and u + n_rot / 16 while u < n_rot / 16 (they
 *   hold both halves of a neox pair), 2 u and 2 u + 1 behind (not rotated). One thread a unit; a
 *   head's threads are neighbours in a warp (head_dim 80 and 96 leave some idle), so that its norm
 *   and its I8 scale are shuffles. head_dim and n_rot are multiples of 16
 *   grid: rows * heads * units / 128 blocks of 128 threads
 *   what the previous kernel does not write (block ids, angles, norm weights) is read before the
 *   dependent-launch wait
 *   bytes: 8B, float32 in: 37 KB a row: 64 rows 0.5 us, 2,048 rows 17 us at 4.43 TB/s
 *   measured (H200, chained with itself): 1, 64, 256 rows 2.2, 3.6, 6.8 us
 *   numerics: float32; sum of squares by shuffles in a fixed order */
#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/rope_append.h"

#define WIDE_THREADS 128

namespace {

__device__ __forceinline__ void load8(const void *p, int type, size_t i, float *x) {
    if (type == DTYPE_F32) {
        const float4 a = __ldcg((const float4 *)((const float *)p + i));
        const float4 b = __ldcg((const float4 *)((const float *)p + i) + 1);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
        return;
    }
    const uint4 v = __ldcg((const uint4 *)((const uint16_t *)p + i));
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float2 y = type == DTYPE_F16 ? __half22float2(*(const __half2 *)&w[j])
                                           : __bfloat1622float2(*(const __nv_bfloat162 *)&w[j]);
        x[2 * j] = y.x;
        x[2 * j + 1] = y.y;
    }
}

template <int KIND> __device__ __forceinline__ uint4 pack8(const float *x) {
    uint32_t w[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        w[j] = KIND == KV_BF16 ? ptx::pack_bf16(x[2 * j], x[2 * j + 1])
                               : ptx::pack_f16(to_f16_range(x[2 * j]), to_f16_range(x[2 * j + 1]));
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
}

__device__ __forceinline__ uint32_t pack4_i8(const float *x, float inverse) {
    return (uint32_t)(__float2int_rn(x[0] * inverse) & 255) |
           (uint32_t)(__float2int_rn(x[1] * inverse) & 255) << 8 |
           (uint32_t)(__float2int_rn(x[2] * inverse) & 255) << 16 |
           (uint32_t)__float2int_rn(x[3] * inverse) << 24;
}

/* Sum or maximum over the LANES neighbouring lanes of a head. */
template <int LANES, class F> __device__ __forceinline__ float head_reduce(float x, F f) {
#pragma unroll
    for (int j = 1; j < LANES; j *= 2) x = f(x, __shfl_xor_sync(ptx::FULL, x, j));
    return x;
}

/* The unit's 16 values (chunk c0, then c1) with norm weights and angles applied. rope: the 8 pairs'
 * (cos, sin), in the order of the pairs below. */
__device__ __forceinline__ void rotate(float *x, const float2 *rope, bool neox) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int u = neox ? j : 2 * j, v = neox ? j + 8 : 2 * j + 1;
        const float y = x[u], z = x[v];
        x[u] = y * rope[j].x - z * rope[j].y;
        x[v] = z * rope[j].x + y * rope[j].y;
    }
}

template <int D, int KIND>
__device__ __forceinline__ void append_unit(const rope_args &a, char *head, int value, int token,
                                            const float *x, int c0, int c1, bool first, bool active,
                                            float top) {
    using L = kv_rows<D, KIND == KV_I8 ? 1 : 2>;
    const int page = a.kv.block_tokens;
    if constexpr (KIND == KV_I8) {
        const float scale = top > 0.0f ? top / 127.0f : 1.0f, inverse = 1.0f / scale;
        if (!active) return;
        char *p0 = head + L::chunk(page, value, token, c0 / 2) + (c0 & 1) * 8;
        char *p1 = head + L::chunk(page, value, token, c1 / 2) + (c1 & 1) * 8;
        *(uint2 *)p0 = make_uint2(pack4_i8(x, inverse), pack4_i8(x + 4, inverse));
        *(uint2 *)p1 = make_uint2(pack4_i8(x + 8, inverse), pack4_i8(x + 12, inverse));
        if (first) *(float *)(head + kv_scale_offset(&a.kv, value, token)) = scale;
    } else if (active) {
        *(uint4 *)(head + L::chunk(page, value, token, c0)) = pack8<KIND>(x);
        *(uint4 *)(head + L::chunk(page, value, token, c1)) = pack8<KIND>(x + 8);
    }
}

template <int D, int KIND>
__global__ void __launch_bounds__(WIDE_THREADS) rope_append_wide_kernel(const rope_args a) {
    constexpr int UNITS = D / 16, LANES = D == 64 ? 4 : D == 256 ? 16 : 8; /* of a head */
    const int n_all = a.n_heads + 2 * a.kv.n_kv_heads;
    const int id = blockIdx.x * WIDE_THREADS + threadIdx.x;
    const int row = min(id / (n_all * LANES), a.n_tokens - 1), in_row = id % (n_all * LANES);
    const int head = in_row / LANES, unit = min(in_row % LANES, UNITS - 1);
    const bool active = id / (n_all * LANES) < a.n_tokens && in_row % LANES < UNITS;
    const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.kv.n_kv_heads;
    const int half = a.n_rot / 16;
    const bool rotated = !is_v && unit < half;
    const int c0 = unit < half ? unit : 2 * unit, c1 = unit < half ? unit + half : 2 * unit + 1;
    ptx::pdl_trigger();

    const int pos = __ldg(a.step.row_pos + row), seq = __ldg(a.step.row_seq + row);
    int block = 0;
    if (!is_q)
        block = __ldg(a.step.block + __ldg(a.step.block_start + seq) + pos / a.kv.block_tokens);
    float2 rope[8];
    if (rotated) { /* pairs 8 u .. 8 u + 7 (neox), or 4 c0 .. and 4 c1 .. */
        const float4 *r = (const float4 *)(a.step.rope + (size_t)row * (a.n_rot / 2));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = a.neox ? 4 * unit + j : j < 2 ? 2 * c0 + j : 2 * c1 + j - 2;
            *(float4 *)&rope[2 * j] = __ldg(r + at);
        }
    }
    ptx::pdl_wait();

    float x[16];
    const size_t src = ((size_t)row * n_all + head) * D;
    load8(a.qkv, a.qkv_type, src + c0 * 8, x);
    load8(a.qkv, a.qkv_type, src + c1 * 8, x + 8);
    const float *norm = is_q ? a.q_norm : is_v ? nullptr : a.k_norm;
    if (a.q_norm || a.k_norm) { /* uniform: every lane takes part in the shuffles */
        float ss = 0.0f;
#pragma unroll
        for (int j = 0; j < 16; j++) ss += x[j] * x[j];
        if (in_row % LANES >= UNITS) ss = 0.0f;
        ss = head_reduce<LANES>(ss, [](float p, float q) { return p + q; });
        if (norm) {
            const float r = rsqrtf(ss / (float)D + a.norm_eps);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[j] *= r * norm[c0 * 8 + j];
                x[8 + j] *= r * norm[c1 * 8 + j];
            }
        }
    }
    if (rotated) rotate(x, rope, a.neox);
    float top = 0.0f;
    if (!is_q) { /* what is stored is finite: see kv_layout.h */
#pragma unroll
        for (int j = 0; j < 16; j++) {
            x[j] = x[j] != x[j] ? 0.0f : to_f16_range(x[j]);
            top = fmaxf(top, fabsf(x[j]));
        }
    }
    if (KIND == KV_I8) top = head_reduce<LANES>(top, [](float p, float q) { return fmaxf(p, q); });
    if (is_q) {
        if (!active) return;
        uint16_t *q = (uint16_t *)a.q + ((size_t)row * a.n_heads + head) * D;
        *(uint4 *)(q + c0 * 8) = pack8 < KIND == KV_BF16 ? KV_BF16 : KV_F16 > (x);
        *(uint4 *)(q + c1 * 8) = pack8 < KIND == KV_BF16 ? KV_BF16 : KV_F16 > (x + 8);
        return;
    }
    const int kv_head = head - a.n_heads - (is_v ? a.kv.n_kv_heads : 0);
    append_unit<D, KIND>(a, a.kv_layer + kv_head_offset(&a.kv, block, kv_head), is_v,
                         pos % a.kv.block_tokens, x, c0, c1, unit == 0, active, top);
}

template <int KIND> status pick(const rope_args &a, int blocks, bool pdl, cudaStream_t stream) {
    void (*kernel)(const rope_args) = nullptr;
    switch (a.kv.head_dim) {
    case 64:
        kernel = rope_append_wide_kernel<64, KIND>;
        break;
    case 80:
        kernel = rope_append_wide_kernel<80, KIND>;
        break;
    case 96:
        kernel = rope_append_wide_kernel<96, KIND>;
        break;
    case 128:
        kernel = rope_append_wide_kernel<128, KIND>;
        break;
    case 256:
        kernel = rope_append_wide_kernel<256, KIND>;
        break;
    default:
        return E_UNSUPPORTED;
    }
    return cuda_launch(kernel, dim3((unsigned)blocks), dim3(WIDE_THREADS), 0, stream, pdl, a);
}

} // namespace

bool rope_append_is_wide(const rope_args *a) {
    return a->kv.tensor_core && a->n_rot % 16 == 0;
}

status rope_append_wide_launch(const rope_args *a, bool pdl, cudaStream_t stream) {
    const int lanes = a->kv.head_dim == 64 ? 4 : a->kv.head_dim == 256 ? 16 : 8;
    const size_t units =
        (size_t)a->n_tokens * (size_t)(a->n_heads + 2 * a->kv.n_kv_heads) * (size_t)lanes;
    if (units > (size_t)1 << 30) return E_INVAL; /* thread ids are ints */
    const int blocks = (int)((units + WIDE_THREADS - 1) / WIDE_THREADS);
    switch (kv_kind(a->kv.type)) {
    case KV_BF16:
        return pick<KV_BF16>(*a, blocks, pdl, stream);
    case KV_F16:
        return pick<KV_F16>(*a, blocks, pdl, stream);
    default:
        return pick<KV_I8>(*a, blocks, pdl, stream);
    }
}
