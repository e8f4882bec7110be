/* The order in which the wgmma kernels read activations: [unit][column][64 halves], a unit being 64
 * inputs and a column a row of the step. Within a unit the inputs follow the weights' fragments
 * (weight_format.cuh): 16-byte piece c holds inputs 16j + 4(c / 2) + 2(c % 2) + {0, 1} for j =
 * 0..3, stored at piece c ^ (column % 8): the 128-byte swizzle that wgmma's descriptor asks for. */
#ifndef INFERD_KERNELS_CUDA_ACTIVATION_ORDER_CUH
#define INFERD_KERNELS_CUDA_ACTIVATION_ORDER_CUH

#include <stddef.h>
#include <stdint.h>

/* Stores inputs k..k+3 (k % 4 == 0) of column n: lo and hi are two halves each. */
__device__ __forceinline__ void activation_store(uint16_t *x, int n_columns, int n, int k,
                                                 uint32_t lo, uint32_t hi) {
    const int c = (k >> 1) & 6, j = (k >> 4) & 3;
    uint32_t *at = (uint32_t *)x + ((size_t)(k >> 6) * (size_t)n_columns + (size_t)n) * 32;
    at[(c ^ (n & 7)) * 4 + j] = lo;
    at[((c | 1) ^ (n & 7)) * 4 + j] = hi;
}
#endif
