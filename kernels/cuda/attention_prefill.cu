/* The wgmma prefill kernels: see attention_prefill.cuh. Ping-pong pays for head_dim 64 and 96 and
 * for cut tiles; at 128 the free-running order is as fast or faster. */
#include "kernels/cuda/attention_prefill.cuh"

template <int D, bool BF16, bool PP, bool FULL> static prefill_kernel entry() {
    using T = prefill::shape<D, BF16, PP, FULL>;
    return {
        (const void *)prefill::attention_prefill_kernel<T>, T::THREADS, T::BM, T::BN, T::SMEM, 0};
}

template <bool BF16> static prefill_kernel pick(int dim, bool full) {
    switch (dim) {
    case 64:
        return full ? entry<64, BF16, true, true>() : entry<64, BF16, true, false>();
    case 96:
        return full ? entry<96, BF16, true, true>() : entry<96, BF16, true, false>();
    case 128:
        return full ? entry<128, BF16, true, true>() : entry<128, BF16, false, false>();
    default:
        return prefill_kernel{};
    }
}

prefill_kernel prefill_kernel_wgmma(const kv_layout *kv, bool full) {
    if (kv->type == DTYPE_BF16) return pick<true>(kv->head_dim, full);
    if (kv->type == DTYPE_F16) return pick<false>(kv->head_dim, full);
    return prefill_kernel{};
}
