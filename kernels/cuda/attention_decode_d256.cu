/* Decode kernels for head_dim 256: see attention_decode.cuh. 16 keys a stage: a stage of 32 would
 * leave a block no second stage. */
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_decode_table.cuh"

template <int KIND> static decode_kernel pick(int variant) {
    return variant == DECODE_SMALL ? entry<256, KIND, 2, 16, 2, 16>() : entry < 256, KIND, 4, 16,
           KIND == KV_I8 ? 3 : 2, 16 > ();
}

decode_kernel decode_kernel_d256(int kind, int block_tokens, int variant) {
    (void)block_tokens; /* a block is whole stages in every case */
    return kind == KV_BF16  ? pick<KV_BF16>(variant)
           : kind == KV_F16 ? pick<KV_F16>(variant)
                            : pick<KV_I8>(variant);
}
