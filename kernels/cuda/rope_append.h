/* The kernels behind cuda_rope_append: the general one and the wide one share their arguments. */
#ifndef INFERD_KERNELS_CUDA_ROPE_APPEND_H
#define INFERD_KERNELS_CUDA_ROPE_APPEND_H

#include "kernels/cuda/attention.h"

struct rope_args {
    kv_layout kv;
    step_device step;
    const void *qkv;
    const float *q_norm, *k_norm;
    void *q;
    char *kv_layer;
    int qkv_type, q_type, n_heads, n_tokens, n_rot, neox;
    float norm_eps;
};

/* Tensor-core layouts with n_rot a multiple of 16. */
bool rope_append_is_wide(const rope_args *a);
status rope_append_wide_launch(const rope_args *a, bool pdl, cudaStream_t stream);

#endif
