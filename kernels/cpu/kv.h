/* The paged KV cache in memory. A block holds kv_block_tokens tokens of all layers, contiguously,
 * so that copying a block is one memcpy and an unused block touches no page:
 *
 *   block -> layer -> K [n_kv_heads][tokens / 16][head_dim][16]   16 keys side by side: a vector
 *                     V [n_kv_heads][tokens][v_dim]               v_dim: head_dim padded to 16
 *                     K scale, V scale [n_kv_heads][tokens] f32   I8 only
 *
 * K is stored rotated. Thread: as the backend; positions of one token are written by one thread. */
#ifndef INFERD_KERNELS_CPU_KV_H
#define INFERD_KERNELS_CPU_KV_H

#include "base/status.h"
#include "kernels/dtype.h"

/* KV_HEADS_MAX: attention is a task a tile of queries and KV head, and the pool takes 2^20 - 1. */
enum { KV_GROUP = 16, KV_HEAD_DIM_MAX = 256, KV_HEADS_MAX = 512 };

typedef struct kv_layout {
    dtype type; /* F32, F16, BF16, I8 */
    int elem_bytes, block_tokens, n_layers, n_kv_heads, head_dim, v_dim;
    size_t k_bytes, v_bytes; /* of one layer in one block; scales: 4 * n_kv_heads * block_tokens */
    size_t scale_bytes, layer_bytes, block_bytes;
} kv_layout;

/* E_UNSUPPORTED for another type, E_INVAL for a block size that is not a multiple of 16. */
status kv_layout_init(kv_layout *l, dtype type, int block_tokens, int n_layers, int n_kv_heads,
                      int head_dim, error *err);

/* Stores the keys and values of one token (all KV heads: [n_kv_heads][head_dim] each). */
void kv_append(const kv_layout *l, uint8_t *pool, int32_t block, int offset, int layer,
               const float *k, const float *v);

static inline size_t kv_layer_at(const kv_layout *l, int32_t block, int layer) {
    return (size_t)block * l->block_bytes + (size_t)layer * l->layer_bytes;
}
/* Offset in a layer of a group's keys, its values' first row, and the scales of its first token. */
static inline size_t kv_k_at(const kv_layout *l, int head, int group) {
    return ((size_t)head * (size_t)(l->block_tokens / KV_GROUP) + (size_t)group) *
           (size_t)l->head_dim * KV_GROUP * (size_t)l->elem_bytes;
}
static inline size_t kv_v_at(const kv_layout *l, int head, int token) {
    return l->k_bytes + ((size_t)head * (size_t)l->block_tokens + (size_t)token) *
                            (size_t)l->v_dim * (size_t)l->elem_bytes;
}
static inline size_t kv_k_scale_at(const kv_layout *l, int head, int token) {
    return l->k_bytes + l->v_bytes +
           sizeof(float) * ((size_t)head * (size_t)l->block_tokens + (size_t)token);
}
static inline size_t kv_v_scale_at(const kv_layout *l, int head, int token) {
    return kv_k_scale_at(l, head, token) + l->scale_bytes;
}
#endif
