/* What a backend must know of a model: numbers and borrowed views of its weights, nothing of GGUF.
 * Made by engine/weights.c, which has checked every shape; fused tensors (phi3) are already split
 * into views. All views are borrowed for the length of backend_ops.load(): a backend copies or
 * repacks what it keeps. Read by C and nvcc. */
#ifndef INFERD_KERNELS_MODEL_DESC_H
#define INFERD_KERNELS_MODEL_DESC_H

#include "kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A weight matrix [n_out rows, n_in columns], rows contiguous in blocks of `type`: y = W x.
 * A vector has n_out = 1 and type F32. data == NULL: the model has no such tensor. */
typedef struct tensor_view {
    const char *name; /* GGUF name, for messages */
    const void *data;
    dtype type;
    int n_in, n_out;
} tensor_view;

typedef struct layer_desc {
    tensor_view attn_norm; /* [n_embd] */
    tensor_view q, k, v;   /* [n_heads*head_dim, n_embd], [n_kv_heads*head_dim, n_embd] x 2 */
    tensor_view q_bias, k_bias, v_bias; /* optional, F32 */
    tensor_view q_norm,
        k_norm;           /* optional, F32 [head_dim]: RMS norm of each head before RoPE (qwen3) */
    tensor_view o;        /* [n_embd, n_heads*head_dim] */
    tensor_view o_bias;   /* optional, F32 [n_embd] */
    tensor_view ffn_norm; /* [n_embd] */
    tensor_view gate, up; /* [n_ff, n_embd] */
    tensor_view down;     /* [n_embd, n_ff] */
} layer_desc;

typedef struct model_desc {
    const char *architecture; /* llama, qwen2, qwen3, phi3: for messages only, shapes come from the
                                 numbers */
    int n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab;
    int context_length; /* tokens a sequence may hold, as served */
    float norm_eps;
    float attn_scale;   /* usually 1/sqrt(head_dim) */
    int sliding_window; /* key p0 is visible to query p1 iff p1 - p0 < sliding_window; 0: no window
                         */

    /* RoPE. Rotates the first n_rot dims of q and k heads. The angle of pair i at position p is p *
     * rope_freq[i] (scaling and factor tensors are folded in); cos and sin are both multiplied by
     * rope_mscale. Pair i is dims (2i, 2i+1), or (i, i + n_rot/2) when rope_neox. */
    int n_rot;
    bool rope_neox;
    const float *rope_freq; /* [n_rot/2] */
    float rope_mscale;

    tensor_view token_embd;       /* [n_vocab, n_embd] */
    tensor_view output_norm;      /* [n_embd] */
    tensor_view output;           /* [n_vocab, n_embd]; the same view as token_embd when tied */
    tensor_view output_bias;      /* optional, F32 [n_vocab] */
    const layer_desc *layers;     /* [n_layers] */
    const uint8_t *never_sampled; /* [n_vocab] 1: padding rows of the vocabulary that must not be
                                   * drawn; may be NULL. Log-probabilities still count them. */
} model_desc;

#ifdef __cplusplus
}
#endif
#endif
