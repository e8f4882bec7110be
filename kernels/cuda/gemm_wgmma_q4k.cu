/* The wgmma kernels (gemm_wgmma.cuh) of weight format Q4K. */
#include "kernels/cuda/gemm_wgmma.cuh"

const wgmma_variant *wgmma_q4k(int stage_units) {
    return stage_units == 4 ? wgmma_table<WF_Q4K, 4>() : nullptr;
}
