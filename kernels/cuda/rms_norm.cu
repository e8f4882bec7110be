/* RMSNorm: y[i,:] = x[r,:] / sqrt(mean(x[r,:]^2) + eps) * w, r = rows[i] or i
 *   x [*, dim] float32, w [dim] float32, y [n_rows, ldy] halves; dim % 4 == 0; a block a row
 *   bytes 4 * dim + 2 * dim a row (the second read of x hits L1): 64 x 4096 = 1.6 MB; latency bound
 * Optionally starts the next layer's sums: init[i,:] = bias or 0, for kernels that add into them.
 * Numerics: float32 sums in a fixed order: same bits in every batch.
 * Source: Zhang & Sennrich 2019, eq. 4, plus eps. */
#include "kernels/cuda/activation_order.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace {

enum { NORM_THREADS = 256, NORM_WARPS = NORM_THREADS / 32 };

__device__ float block_sum(float v) {
    __shared__ float partial[NORM_WARPS];
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(ptx::FULL, v, o);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads(); /* partial[] complete */
    v = 0;
    for (int w = 0; w < NORM_WARPS; w++) v += partial[w];
    return v;
}

__global__ __launch_bounds__(NORM_THREADS) void rms_norm_kernel(const norm_args a) {
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
    uint2 *y = (uint2 *)(a.y + (size_t)i * (size_t)a.ldy);
    for (int k = (int)threadIdx.x; k < n4; k += NORM_THREADS) {
        const float4 v = x[k], w = ((const float4 *)a.w)[k];
        const float e0 = saturate_half(v.x * scale * w.x), e1 = saturate_half(v.y * scale * w.y);
        const float e2 = saturate_half(v.z * scale * w.z), e3 = saturate_half(v.w * scale * w.w);
        const uint32_t lo = ptx::pack_f16(e0, e1), hi = ptx::pack_f16(e2, e3);
        if (a.columns > 0)
            activation_store(a.y, a.columns, i, k * 4, lo, hi);
        else
            y[k] = make_uint2(lo, hi);
    }
    if (a.init != nullptr) {
        float *z = a.init + (size_t)i * (size_t)a.n_init;
        for (int k = (int)threadIdx.x; k < a.n_init; k += NORM_THREADS) {
            z[k] = a.init_bias != nullptr ? a.init_bias[k] : 0.0f;
        }
    }
}

} // namespace

extern "C" status cuda_rms_norm(const norm_args *a, cudaStream_t stream) {
    if (a->n_rows <= 0 || a->dim <= 0 || a->dim % 4 != 0 || a->ldy % 4 != 0) return E_INVAL;
    return cuda_launch(rms_norm_kernel, dim3((unsigned)a->n_rows), dim3(NORM_THREADS), 0, stream,
                       a->pdl, *a);
}
