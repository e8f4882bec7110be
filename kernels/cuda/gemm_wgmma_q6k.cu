/* The wgmma kernels (gemm_wgmma.cuh) of weight format Q6K. */
#include "kernels/cuda/gemm_wgmma.cuh"

const wgmma_variant *wgmma_q6k(int stage_units) {
    return stage_units == 4 ? wgmma_table<WF_Q6K, 4>() : nullptr;
}
