/* SwiGLU: h[r,j] = silu(gate[r,j]) * up[r,j] * 2^-3, as halves (saturating)
 *   gu [n_rows, 2 * n_ff] float32, or halves times 2^-3; gate and up in turns of 16 (as their
 *   tiles lie in the fused matrix) or gate first; h [n_rows, ld_half]; n_ff % 4 == 0
 *   bytes 2 * n_ff * (4 or 2) + 2 * n_ff a row: 2048 x 14336 from halves: 176 MB = 41 us
 *
 * Numerics: float32 inside. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace {

enum { GLU_THREADS = 256 };

__device__ __forceinline__ float glu(float g, float u) {
    return saturate_half(g / (1.0f + __expf(-g)) * u * ACT_HALF_SCALE);
}

__device__ __forceinline__ float4 load4(const swiglu_args &a, size_t at) {
    if (!a.half_in) return *(const float4 *)((const float *)a.gu + at);
    const uint2 p = *(const uint2 *)((const __half *)a.gu + at);
    const float2 lo = __half22float2(*(const __half2 *)&p.x);
    const float2 hi = __half22float2(*(const __half2 *)&p.y);
    constexpr float UP = 1.0f / ACT_HALF_SCALE;
    return make_float4(lo.x * UP, lo.y * UP, hi.x * UP, hi.y * UP);
}

__global__ __launch_bounds__(GLU_THREADS) void swiglu_kernel(const swiglu_args a) {
    const int j = (int)(blockIdx.x * GLU_THREADS + threadIdx.x) * 4;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    if (j >= a.n_ff) return;
    const size_t row = blockIdx.y, base = row * (size_t)a.n_ff * 2;
    const size_t at = base + (size_t)(a.interleaved ? (j / 16) * 32 + j % 16 : j);
    const float4 g = load4(a, at), u = load4(a, at + (size_t)(a.interleaved ? 16 : a.n_ff));
    *(uint2 *)(a.h + row * (size_t)a.ld_half + j) = make_uint2(
        ptx::pack_f16(glu(g.x, u.x), glu(g.y, u.y)), ptx::pack_f16(glu(g.z, u.z), glu(g.w, u.w)));
}

} // namespace

extern "C" status cuda_swiglu(const swiglu_args *a, cudaStream_t stream) {
    if (a->n_rows <= 0 || a->n_rows > 65535 || a->n_ff % 4 != 0 || a->ld_half % 4 != 0) {
        return E_INVAL;
    }
    const dim3 grid((unsigned)((a->n_ff / 4 + GLU_THREADS - 1) / GLU_THREADS), (unsigned)a->n_rows);
    return cuda_launch(swiglu_kernel, grid, dim3(GLU_THREADS), 0, stream, a->pdl, *a);
}
