/* Tile kernels for head_dim 256: see attention_tile.cuh. */
#include "kernels/cuda/attention_tile.cuh"

template <int TYPE> static prefill_kernel entry() {
    using T = tiles::shape<256, TYPE, 32>;
    return {
        (const void *)tiles::attention_tile_kernel<T>, T::THREADS, T::BM, T::BN, T::SMEM, T::CHUNK};
}

prefill_kernel tile_kernel_d256(int kind) {
    return kind == KV_BF16 ? entry<KV_BF16>() : kind == KV_F16 ? entry<KV_F16>() : entry<KV_I8>();
}
