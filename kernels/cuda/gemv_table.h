/* The compiled matrix-vector kernels of each weight format: one file a format, so that they compile
 * side by side. Internal to gemv*.cu. */
#ifndef INFERD_KERNELS_CUDA_GEMV_TABLE_H
#define INFERD_KERNELS_CUDA_GEMV_TABLE_H

#include "kernels/cuda/gemv.h"

typedef struct gemv_kernels {
    int units; /* 64-input units of a warp and pass */
    int slot_bytes, slot_pitch;
    const void *one_pass[4]; /* by gemv_output */
    const void *multi_pass;  /* GEMV_RESIDUAL */
} gemv_kernels;

typedef struct gemv_pair_kernels {
    const void *store, *rope;
} gemv_pair_kernels;

/* Tiles whose sums a block's shared memory holds: two groups, so that one is read while the next is
 * written. Many tiles a block: longer groups, fewer barriers. */
static inline
#ifdef __CUDACC__
    __host__ __device__ constexpr
#endif
    int
    gemv_sum_tiles(int output) {
    return output == GEMV_GLU || output == GEMV_STORE ? 8 : 4;
}

/* NULL: this pair of formats is not built for so many units. */
const gemv_pair_kernels *gemv_pair(int first, int second, int units);

/* NULL: not built for so many units. */
const gemv_kernels *gemv_q4k(int units);
const gemv_kernels *gemv_q5k(int units);
const gemv_kernels *gemv_q6k(int units);
const gemv_kernels *gemv_q80(int units);
const gemv_kernels *gemv_q40(int units);
const gemv_kernels *gemv_q41(int units);
const gemv_kernels *gemv_q50(int units);
const gemv_kernels *gemv_q51(int units);
const gemv_kernels *gemv_f16(int units);

#endif
