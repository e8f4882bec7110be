/* Decode kernels for head_dim 96: see attention_decode.cuh. */
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_decode_table.cuh"

decode_kernel decode_kernel_d96(int kind, int block_tokens, int variant) {
    const int subk = block_tokens == 16 ? 16 : 32;
    if (kind == KV_I8) {
        return variant == DECODE_SMALL ? entry_subk<96, KV_I8, 4, 32, 2>(subk)
                                       : entry_subk<96, KV_I8, 4, 32, 3>(subk);
    }
    if (variant == DECODE_SMALL) {
        return kind == KV_BF16 ? entry<96, KV_BF16, 4, 16, 2, 16>()
                               : entry<96, KV_F16, 4, 16, 2, 16>();
    }
    return kind == KV_BF16 ? entry_subk<96, KV_BF16, 4, 32, 2>(subk)
                           : entry_subk<96, KV_F16, 4, 32, 2>(subk);
}
