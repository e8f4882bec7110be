/* The pair kernels of gemv.cuh: q and k of one format, v of another, over the same normed inputs.
 * The pairs are those that llama-quantize makes (Q4_K_M, Q5_K_M and their fall-backs). */
#include "kernels/cuda/gemv.cuh"

namespace {

template <int F, int G, int UW> const gemv_pair_kernels *instance() {
    static const gemv_pair_kernels k = {
        (const void *)gemv_pair_kernel<F, G, UW, GEMV_STORE>,
        (const void *)gemv_pair_kernel<F, G, UW, GEMV_ROPE>,
    };
    return &k;
}

template <int F, int G> const gemv_pair_kernels *by_units(int units) {
    return units == 4 ? instance<F, G, 4>() : units == 1 ? instance<F, G, 1>() : nullptr;
}

} // namespace

const gemv_pair_kernels *gemv_pair(int first, int second, int units) {
    if (first == WF_Q4K && second == WF_Q6K && units == 4) return instance<WF_Q4K, WF_Q6K, 4>();
    if (first == WF_Q5K && second == WF_Q6K && units == 4) return instance<WF_Q5K, WF_Q6K, 4>();
    if (first == WF_Q50 && second == WF_Q80) return by_units<WF_Q50, WF_Q80>(units);
    if (first == WF_Q51 && second == WF_Q80) return by_units<WF_Q51, WF_Q80>(units);
    return nullptr;
}
