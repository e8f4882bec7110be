/* The wgmma kernels (gemm_wgmma.cuh) of weight format Q50. */
#include "kernels/cuda/gemm_wgmma.cuh"

const wgmma_variant *wgmma_q50(int stage_units) {
    return stage_units == 4   ? wgmma_table<WF_Q50, 4>()
           : stage_units == 2 ? wgmma_table<WF_Q50, 2>()
                              : nullptr;
}
