/* The pair kernels of gemm_wgmma.cuh: q and k of one format, v of another. The pairs are those that
 * llama-quantize makes (Q4_K_M, Q5_K_M and their fall-backs). */
#include "kernels/cuda/gemm_wgmma.cuh"

const wgmma_pair_variant *wgmma_pair(int first, int second, int stage_units) {
    if (first == WF_Q4K && second == WF_Q6K && stage_units == 4) {
        return wgmma_pair_table<WF_Q4K, WF_Q6K, 4>();
    }
    if (first == WF_Q5K && second == WF_Q6K && stage_units == 4) {
        return wgmma_pair_table<WF_Q5K, WF_Q6K, 4>();
    }
    if (first == WF_Q50 && second == WF_Q80) {
        return stage_units == 4   ? wgmma_pair_table<WF_Q50, WF_Q80, 4>()
               : stage_units == 2 ? wgmma_pair_table<WF_Q50, WF_Q80, 2>()
                                  : nullptr;
    }
    return nullptr;
}
