/* RMSNorm: y[i,:] = x[r,:] / sqrt(mean(x[r,:]^2) + eps) * w, r = rows[i] or i
 *   x [*, dim] float32, w [dim] float32, y [n_rows, ldy] halves; dim % 4 == 0; a block a row
 *   bytes 6 * dim a row: 64 x 4096 = 1.6 MB from L2; launch bound (about 2 us)
 *
 * Optionally clears rows that the next linear layer adds into: init[i,:] = 0.
 * Numerics: float32 sums in a fixed order: same bits in every batch.
 * Source: Zhang & Sennrich 2019, eq. 4, plus eps. */
#include "kernels/cuda/activation_order.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace {

enum { NORM_THREADS = 512, NORM_WARPS = NORM_THREADS / 32, VECTORS_MAX = 8 };

__device__ float block_sum(float v) {
    __shared__ float partial[NORM_WARPS];
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(ptx::FULL, v, o);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads(); /* partial[] complete */
    v = 0;
    for (int w = 0; w < NORM_WARPS; w++) v += partial[w];
    return v;
}

__device__ __forceinline__ void write4(const norm_args &a, int i, int k, float4 v, float4 w,
                                       float scale) {
    const uint32_t lo =
        ptx::pack_f16(saturate_half(v.x * scale * w.x), saturate_half(v.y * scale * w.y));
    const uint32_t hi =
        ptx::pack_f16(saturate_half(v.z * scale * w.z), saturate_half(v.w * scale * w.w));
    if (a.columns > 0)
        activation_store(a.y, a.columns, i, k, lo, hi);
    else
        *(uint2 *)(a.y + (size_t)i * (size_t)a.ldy + k) = make_uint2(lo, hi);
}

__device__ __forceinline__ void write_init(const norm_args &a, int i) {
    if (a.init == nullptr) return;
    float4 *z = (float4 *)(a.init + (size_t)i * (size_t)a.n_init);
    for (int k = (int)threadIdx.x; k < a.n_init / 4; k += NORM_THREADS) {
        z[k] = make_float4(0, 0, 0, 0);
    }
}

/* V vectors of four a thread stay in registers between the sum and the scaling; the weights, which
 * no kernel writes, are there before the wait. */
template <int V>
__global__ __launch_bounds__(NORM_THREADS) void rms_norm_kernel(const norm_args a) {
    const int i = (int)blockIdx.x, t = (int)threadIdx.x, n4 = a.dim / 4;
    float4 x[V], w[V];
    ptx::pdl_trigger(); /* after the wait: 0.5B at 32 rows 803 -> 836 us a step */
#pragma unroll
    for (int j = 0; j < V; j++) {
        const int k = t + j * NORM_THREADS;
        w[j] = k < n4 ? __ldg((const float4 *)a.w + k) : make_float4(0, 0, 0, 0);
    }
    ptx::pdl_wait();
    const size_t row = a.rows != nullptr ? (size_t)a.rows[i] : (size_t)i;
    const float4 *from = (const float4 *)(a.x + row * (size_t)a.dim);
    float ss = 0;
#pragma unroll
    for (int j = 0; j < V; j++) {
        const int k = t + j * NORM_THREADS;
        x[j] = k < n4 ? __ldcg(from + k) : make_float4(0, 0, 0, 0);
        ss += x[j].x * x[j].x + x[j].y * x[j].y + x[j].z * x[j].z + x[j].w * x[j].w;
    }
    const float scale = rsqrtf(block_sum(ss) / (float)a.dim + a.eps);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const int k = t + j * NORM_THREADS;
        if (k < n4) write4(a, i, k * 4, x[j], w[j], scale);
    }
    write_init(a, i);
}

/* Rows too long for registers. */
__global__ __launch_bounds__(NORM_THREADS) void rms_norm_long_kernel(const norm_args a) {
    const int i = (int)blockIdx.x, n4 = a.dim / 4;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const size_t row = a.rows != nullptr ? (size_t)a.rows[i] : (size_t)i;
    const float4 *x = (const float4 *)(a.x + row * (size_t)a.dim);
    float ss = 0;
    for (int k = (int)threadIdx.x; k < n4; k += NORM_THREADS) {
        const float4 v = x[k];
        ss += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float scale = rsqrtf(block_sum(ss) / (float)a.dim + a.eps);
    for (int k = (int)threadIdx.x; k < n4; k += NORM_THREADS) {
        write4(a, i, k * 4, x[k], ((const float4 *)a.w)[k], scale);
    }
    write_init(a, i);
}

} // namespace

extern "C" status cuda_rms_norm(const norm_args *a, cudaStream_t stream) {
    if (a->n_rows <= 0 || a->dim <= 0 || a->dim % 4 != 0 || a->ldy % 4 != 0 || a->n_init % 4 != 0) {
        return E_INVAL;
    }
    const int vectors = (a->dim / 4 + NORM_THREADS - 1) / NORM_THREADS;
    void (*const kernel)(norm_args) = vectors <= 1             ? rms_norm_kernel<1>
                                      : vectors <= 2           ? rms_norm_kernel<2>
                                      : vectors <= 4           ? rms_norm_kernel<4>
                                      : vectors <= VECTORS_MAX ? rms_norm_kernel<VECTORS_MAX>
                                                               : rms_norm_long_kernel;
    return cuda_launch(kernel, dim3((unsigned)a->n_rows), dim3(NORM_THREADS), 0, stream, a->pdl,
                       *a);
}
