/* Decode kernels for head_dim 80: see attention_decode.cuh. All fit small shared memory. */
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_decode_table.cuh"

decode_kernel decode_kernel_d80(int kind, int block_tokens, int variant) {
    (void)variant; /* one for all */
    const int subk = block_tokens == 16 ? 16 : 32;
    return kind == KV_BF16  ? entry_subk<80, KV_BF16, 4, 32, 2>(subk)
           : kind == KV_F16 ? entry_subk<80, KV_F16, 4, 32, 2>(subk)
                            : entry_subk<80, KV_I8, 4, 32, 2>(subk);
}
