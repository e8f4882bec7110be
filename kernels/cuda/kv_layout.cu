/* See kv_layout.h. */
#include "kernels/cuda/kv_layout.h"

static bool tensor_core_dim(int d) {
    return d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
}

extern "C" status cuda_kv_layout_init(kv_layout *l, dtype type, int head_dim, int n_kv_heads,
                                      int block_tokens, error *err) {
    if (type != DTYPE_F32 && type != DTYPE_F16 && type != DTYPE_BF16 && type != DTYPE_I8) {
        const dtype_info *info = dtype_get(type);
        return error_set(err, E_UNSUPPORTED, "cuda: KV type %s is not built (F32, F16, BF16, I8)",
                         info ? info->name : "?");
    }
    if (head_dim < 2 || head_dim > KV_HEAD_DIM_MAX || head_dim % 2 != 0) {
        return error_set(err, E_UNSUPPORTED, "cuda: head_dim %d is not built (even, 2..%d)",
                         head_dim, KV_HEAD_DIM_MAX);
    }
    if (block_tokens != 16 && block_tokens != 32 && block_tokens != 64) {
        return error_set(err, E_UNSUPPORTED,
                         "cuda: KV blocks of %d tokens are not built (16, 32, "
                         "64)",
                         block_tokens);
    }
    if (n_kv_heads < 1) return error_set(err, E_INVAL, "cuda: %d KV heads", n_kv_heads);
    kv_layout r = {};
    r.type = type;
    r.head_dim = head_dim;
    r.n_kv_heads = n_kv_heads;
    r.block_tokens = block_tokens;
    r.elem_bytes = type == DTYPE_F32 ? 4 : type == DTYPE_I8 ? 1 : 2;
    r.tensor_core = type != DTYPE_F32 && tensor_core_dim(head_dim);
    r.row_bytes = head_dim * r.elem_bytes;
    if (r.tensor_core && r.elem_bytes == 2) {
        r.row_bytes = head_dim == 96 ? 64 : head_dim == 80 ? 32 : 128;
    } else if (r.tensor_core && head_dim == 256) {
        r.row_bytes = 128;
    }
    r.n_slabs = head_dim * r.elem_bytes / r.row_bytes;
    r.head_bytes = (size_t)2 * (size_t)(block_tokens * head_dim * r.elem_bytes) +
                   (type == DTYPE_I8 ? (size_t)2 * (size_t)block_tokens * sizeof(float) : 0);
    r.block_bytes = (size_t)n_kv_heads * r.head_bytes;
    *l = r;
    return OK;
}
