/* Where a key or value lies in the paged KV pool: the one place that knows. Read by nvcc (host and
 * device) and by C++; append kernels that are fused into other files must go through it.
 *
 *   pool   [layer][block][kv_head] -> one head of one block, head_bytes long, contiguous:
 *   head   K rows | V rows | (I8 only) K scales, V scales: float [block_tokens] each
 *   rows   [slab][token][slab row]: a row of head_dim values is cut into slabs of row_bytes
 *
 * Tensor-core layout (F16, BF16, I8; head_dim 64, 80, 96, 128, 256): the 16-byte chunks of a slab
 * row are stored at chunk ^ swizzle(token), so that one head of one block is one bulk copy,
 * ldmatrix reads the copy without bank conflicts, and wgmma reads it as its own 128/64/32-byte
 * swizzle.
 *   16-bit  slab row 128 bytes (head_dim 64, 128, 256), 64 (96), 32 (80)
 *   I8      slab row 128 bytes (128, 256), 64 (64), 96 (96), 80 (80)
 * Plain layout (F32, or any other even head_dim <= 256): one slab, no swizzle.
 *
 * I8: x = scale * q, q in [-127, 127], scale = max|x| / 127 over the head's row; 1 for a zero row.
 * Appended values are finite always: NaN becomes 0, infinities the largest value of the type. A
 * masked key has probability 0, and 0 * NaN would leak; the pool must be zeroed once for the same
 * reason. Source: PTX ISA 9.0, wgmma shared-memory layouts. */
#ifndef INFERD_KERNELS_CUDA_KV_LAYOUT_H
#define INFERD_KERNELS_CUDA_KV_LAYOUT_H

#include "base/status.h"
#include "kernels/dtype.h"

#ifdef __CUDACC__
#define KV_FN __host__ __device__ static inline
#else
#define KV_FN static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { KV_HEAD_DIM_MAX = 256, KV_CHUNK_BYTES = 16 };

typedef struct kv_layout {
    dtype type; /* F32, F16, BF16 or I8 */
    int head_dim, n_kv_heads, block_tokens;
    int elem_bytes;     /* 1, 2 or 4 */
    int row_bytes;      /* of a slab row */
    int n_slabs;        /* head_dim * elem_bytes / row_bytes */
    bool tensor_core;   /* swizzled layout, read by the mma kernels; else plain */
    size_t head_bytes;  /* one head of one block: K, V, scales */
    size_t block_bytes; /* n_kv_heads * head_bytes: one block of one layer */
} kv_layout;

/* Fills *l. E_UNSUPPORTED names the type, head_dim or block size that is not built. */
status cuda_kv_layout_init(kv_layout *l, dtype type, int head_dim, int n_kv_heads, int block_tokens,
                           error *err);

/* XOR of a chunk's index within its slab row. */
KV_FN int kv_swizzle(int row_bytes, int token) {
    return row_bytes == 128                     ? token & 7
           : row_bytes == 64                    ? (token >> 1) & 3
           : row_bytes == 96 || row_bytes == 32 ? (token >> 2) & 1
                                                : 0; /* 80: five chunks a row, no conflicts */
}

/* Byte offset of head kv_head of `block` in its layer. */
KV_FN size_t kv_head_offset(const kv_layout *l, int block, int kv_head) {
    return (size_t)block * l->block_bytes + (size_t)kv_head * l->head_bytes;
}

/* Byte offset inside a head of element d of token (0..block_tokens-1); value 0: K, 1: V. */
KV_FN size_t kv_elem_offset(const kv_layout *l, int value, int token, int d) {
    const int at = d * l->elem_bytes;
    const size_t rows = (size_t)value * (size_t)(l->block_tokens * l->head_dim * l->elem_bytes);
    if (!l->tensor_core) {
        return rows + (size_t)(token * l->head_dim * l->elem_bytes + at);
    }
    const int slab = at / l->row_bytes, in_row = at % l->row_bytes;
    const int chunk = (in_row / KV_CHUNK_BYTES) ^ kv_swizzle(l->row_bytes, token);
    return rows + (size_t)((slab * l->block_tokens + token) * l->row_bytes +
                           chunk * KV_CHUNK_BYTES + in_row % KV_CHUNK_BYTES);
}

/* Byte offset inside a head of the scale of token (I8 only). */
KV_FN size_t kv_scale_offset(const kv_layout *l, int value, int token) {
    return (size_t)2 * (size_t)(l->block_tokens * l->head_dim) +
           (size_t)(value * l->block_tokens + token) * sizeof(float);
}

#ifdef __cplusplus
}
#endif
#endif
