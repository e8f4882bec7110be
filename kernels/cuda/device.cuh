/* What every .cu of the backend shares: error mapping and small device helpers. The PTX wrappers
 * are in ptx.cuh. */
#ifndef INFERD_KERNELS_CUDA_DEVICE_CUH
#define INFERD_KERNELS_CUDA_DEVICE_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/cuda/ptx.cuh"

/* Any launch or run-time error is a device fault: the context is not trusted again. */
static inline status cuda_status(cudaError_t e) {
    return e == cudaSuccess ? OK : E_DEVICE;
}

constexpr float HALF_MAX = 65504.0f;

/* Halves hold activations: what passes their range is cut, not infinite. NaN stays NaN. */
__device__ __forceinline__ float saturate_half(float v) {
    return v > HALF_MAX ? HALF_MAX : v < -HALF_MAX ? -HALF_MAX : v;
}

/* The residual stream's half copy and the SwiGLU outputs are stored times 2^-3: range 5e5. Qwen2
 * and Phi-3 pass 65504. */
constexpr float RESIDUAL_HALF_SCALE = 0.125f, ACT_HALF_SCALE = 0.125f;

/* Launches with programmatic stream serialization behind the previous kernel when pdl. */
template <class... P, class... A>
inline status cuda_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes,
                          cudaStream_t stream, bool pdl, A... args) {
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = smem_bytes;
    c.stream = stream;
    cudaLaunchAttribute at[1];
    at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at[0].val.programmaticStreamSerializationAllowed = 1;
    c.attrs = at;
    c.numAttrs = pdl ? 1 : 0;
    return cuda_status(cudaLaunchKernelEx(&c, kernel, P(args)...));
}

#endif
