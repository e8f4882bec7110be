/* The wgmma kernels (gemm_wgmma.cuh) of weight format Q5K. */
#include "kernels/cuda/gemm_wgmma.cuh"

const wgmma_variant *wgmma_q5k(int stage_units) {
    return stage_units == 4 ? wgmma_table<WF_Q5K, 4>() : nullptr;
}
