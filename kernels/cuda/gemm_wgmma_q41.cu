/* The wgmma kernels (gemm_wgmma.cuh) of weight format Q41. */
#include "kernels/cuda/gemm_wgmma.cuh"

const wgmma_variant *wgmma_q41(int stage_units) {
    return stage_units == 4   ? wgmma_table<WF_Q41, 4>()
           : stage_units == 2 ? wgmma_table<WF_Q41, 2>()
                              : nullptr;
}
