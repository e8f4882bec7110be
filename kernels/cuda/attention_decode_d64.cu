/* Decode kernels for head_dim 64: see attention_decode.cuh. All fit small shared memory. */
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_decode_table.cuh"

template <int KIND> static decode_kernel pick(int subk, int variant) {
    if (variant == DECODE_SMALL) return entry_subk<64, KIND, 4, 32, 2>(subk);
    if (variant == DECODE_FEW) return entry_subk<64, KIND, 8, 32, 2>(subk);
    return entry_subk < 64, KIND, 4, 32, KIND == KV_I8 ? 3 : 2 > (subk);
}

decode_kernel decode_kernel_d64(int kind, int block_tokens, int variant) {
    const int subk = block_tokens == 16 ? 16 : 32;
    return kind == KV_BF16  ? pick<KV_BF16>(subk, variant)
           : kind == KV_F16 ? pick<KV_F16>(subk, variant)
                            : pick<KV_I8>(subk, variant);
}
