/* The compiled wgmma kernels of each weight format, one file a format. Internal. */
#ifndef INFERD_KERNELS_CUDA_GEMM_WGMMA_TABLE_H
#define INFERD_KERNELS_CUDA_GEMM_WGMMA_TABLE_H

#include "kernels/cuda/gemm_wgmma.h"

enum { WGMMA_VARIANTS = 5, WGMMA_PAIR_VARIANTS = 4 };

typedef struct wgmma_variant {
    const void *fn;
    int columns, m_blocks, stage_units, smem_bytes;
} wgmma_variant;

typedef struct wgmma_pair_variant {
    const void *fn;
    int columns, stage_units, smem_bytes;
} wgmma_pair_variant;

/* [WGMMA_PAIR_VARIANTS], NULL: this pair of formats is not built. */
const wgmma_pair_variant *wgmma_pair(int first, int second, int stage_units);

/* [WGMMA_VARIANTS] for stages of so many units, NULL: not built. */
const wgmma_variant *wgmma_q4k(int stage_units);
const wgmma_variant *wgmma_q5k(int stage_units);
const wgmma_variant *wgmma_q6k(int stage_units);
const wgmma_variant *wgmma_q80(int stage_units);
const wgmma_variant *wgmma_q40(int stage_units);
const wgmma_variant *wgmma_q41(int stage_units);
const wgmma_variant *wgmma_q50(int stage_units);
const wgmma_variant *wgmma_q51(int stage_units);

#endif
