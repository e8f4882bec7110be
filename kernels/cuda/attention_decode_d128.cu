/* Decode kernels for head_dim 128: see attention_decode.cuh. */
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_decode_table.cuh"

decode_kernel decode_kernel_d128(int kind, int block_tokens, int variant) {
    const int subk = block_tokens == 16 ? 16 : 32;
    if (variant == DECODE_SMALL) {
        return kind == KV_BF16  ? entry<128, KV_BF16, 4, 16, 2, 16>()
               : kind == KV_F16 ? entry<128, KV_F16, 4, 16, 2, 16>()
                                : entry<128, KV_I8, 4, 16, 3, 16>();
    }
    if (kind == KV_BF16) return entry_subk<128, KV_BF16, 4, 32, 2>(subk);
    if (kind == KV_F16) return entry_subk<128, KV_F16, 4, 32, 2>(subk);
    return variant == DECODE_FEW ? entry_subk<128, KV_I8, 8, 32, 2>(subk)
                                 : entry_subk<128, KV_I8, 4, 32, 3>(subk);
}
