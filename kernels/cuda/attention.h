/* Attention over the paged KV cache: RoPE + append, decode, prefill, block copies; plan once a
 * step, run per layer. Launchers check, launch on the given stream and return; they never allocate,
 * synchronise or print, so a stream capture records them.
 *
 *   start-up   attention_init -> *_bytes() -> the backend allocates; counters are zeroed once
 *   step       attention_plan_make fills host memory, the backend uploads it with the step
 *   layer      cuda_rope_append -> cuda_attention
 *
 * Which kernel computes a row: decode rows (step.n_decode leading sequences) the split-KV kernel,
 * prefill chunks the tile kernel. Deterministic: all rows the tile kernel, no split, key tiles in
 * ascending order, so a row's bits depend on its own keys alone. Layouts without tensor cores
 * (kv_layout.tensor_core false): all rows a plain kernel, which is deterministic as it is.
 *
 * q_type: F32 for an F32 pool, BF16 for a BF16 pool, else F16. Thread: the backend's. */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_H
#define INFERD_KERNELS_CUDA_ATTENTION_H

#include <cuda_runtime.h>

#include "kernels/cuda/kv_layout.h"
#include "kernels/model_desc.h"
#include "kernels/step.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory of a step as the kernels see it: the arrays of step.h, uploaded. */
typedef struct step_device {
    const int32_t *seq_start, *kv_len, *block_start, *block;
    const int32_t *row_seq; /* [n_tokens] sequence of each row */
    const int32_t *row_pos; /* [n_tokens] position of each row */
    const float2 *rope;     /* [n_tokens][n_rot / 2] mscale * (cos, sin) of each row's angles */
} step_device;

/* One block's work in the decode kernel: keys [k0, k1) of one row and up to 8 query heads of one
 * KV head. n_split > 1: partials go to slots slot0.. and the last to finish merges. 48 bytes. */
typedef struct attention_item {
    int32_t row, kv_head, head, n_heads; /* row < 0: padding, the block leaves */
    int32_t k0, k1, i_block, kv_len;     /* i_block: the sequence's first entry in step.block */
    int32_t slot, slot0, n_split, next;  /* next: item the same block does after this one, or -1 */
} attention_item;

/* A tile of packed (token, head in group) rows of one (sequence, KV head): packed row r is token
 * row0 + r / group, head kv_head * group + r % group. Key tiles [tile_begin, tile_end). 48 bytes.
 */
typedef struct attention_tile {
    int32_t row0, kv_head, packed0, next; /* packed0: first packed row of the tile */
    int32_t n_rows, kv_len, i_block;      /* rows of the sequence in this step, its keys after it */
    int32_t tile_begin, tile_end;
    int32_t slot, slot0, n_split;
} attention_tile;

/* A decode kernel as init found it. */
typedef struct attention_kernel {
    const void *fn;
    int warps, tile_keys;
    int resident; /* blocks that the device holds at once */
    size_t smem_bytes;
} attention_kernel;

/* A tile kernel: [0] whole tiles and no window, [1] (if fn) everything. Alone, [0] serves windows.
 */
typedef struct attention_tile_kernel {
    const void *fn;
    int threads, rows, keys; /* of a tile */
    size_t smem_bytes;
    int chunk; /* mma.sync: key tiles of a piece with a state of its own, 0: none */
} attention_tile_kernel;

typedef struct attention {
    kv_layout kv;
    dtype q_type;
    int n_heads, group; /* group: query heads of a KV head */
    int window;         /* 0: none */
    float scale;
    bool deterministic;
    int n_tokens_max, n_seqs_max;
    int n_sms, sm;              /* multiprocessors; compute capability * 10, e.g. 90 */
    size_t smem_block_bytes;    /* largest dynamic shared memory of a block */
    attention_kernel decode[2]; /* few rows (at most one block a multiprocessor), many */
    attention_tile_kernel tile[2];
    bool tile_chains; /* persistent blocks: wgmma */
} attention;

/* What a plan holds; the arrays lie in the uploaded buffer at these offsets. */
typedef struct attention_plan {
    int decode_grid, tile_grid; /* blocks to launch; 0: nothing of that kind */
    int n_items, n_tiles;
    int n_decode;       /* rows [0, n_decode) are the decode kernel's */
    int decode_variant; /* index into attention.decode: by layout and bucket */
    bool tiles_split;
    size_t items_offset, tiles_offset, bytes; /* bytes: to upload, from the buffer's start */
} attention_plan;

/* Checks the model's attention and fixes every choice. E_UNSUPPORTED names what is not built. */
status attention_init(attention *a, const model_desc *m, dtype kv_type, int block_tokens,
                      int n_tokens_max, int n_seqs_max, int device, bool deterministic, error *err);

/* Bytes of the plan buffer (pinned on the host, equal on the device). */
size_t attention_plan_bytes(const attention *a);
/* Device workspace for partials and counters: zero it once at start, then leave it alone. */
size_t attention_workspace_bytes(const attention *a);

/* Plans step s into buffer. n_decode_bucket >= s->n_decode: the decode grid and variant depend on
 * the bucket only, so a captured graph can be replayed with a new plan of the same bucket. 0: not
 * captured, the grid fits s. E_INVAL: s is over the limits given to init. */
status attention_plan_make(const attention *a, const step *s, int n_decode_bucket, void *buffer,
                           attention_plan *p);
/* Blocks of the decode kernel for a bucket: a bound that every plan of it keeps. */
int attention_decode_grid(const attention *a, int n_decode_bucket);

typedef struct attention_args {
    const void *q;        /* [n_tokens, n_heads, head_dim] q_type, rotated */
    const void *kv_layer; /* the layer's first block */
    void *out;            /* [n_tokens, n_heads, head_dim] */
    dtype out_type;       /* F16 (saturating), BF16 or F32 */
    int out_columns; /* > 0: out in activation_order.cuh's order of so many columns; F16, and every
                        row a decode row (no tiles) of a tensor-core layout */
    const step_device *step; /* device arrays; the struct itself lies on the host */
    int n_tokens;
    const void *plan; /* uploaded plan buffer */
    void *workspace;
    bool pdl; /* launch with programmatic stream serialization behind the previous kernel */
} attention_args;

/* a = softmax(q K^T * scale, causal, window) V for all rows of the step. */
status cuda_attention(const attention *a, const attention_plan *p, const attention_args *args,
                      cudaStream_t stream);

typedef struct rope_append_args {
    const void
        *qkv;       /* [n_tokens, (n_heads + 2 n_kv_heads) * head_dim]: q heads, k heads, v heads */
    dtype qkv_type; /* F32, F16 or BF16 */
    const float *q_norm, *k_norm; /* [head_dim] or NULL: RMS norm of each head before RoPE */
    float norm_eps;
    int n_rot;
    bool neox;
    void *q; /* out [n_tokens, n_heads, head_dim] q_type */
    void *kv_layer;
    const step_device *step;
    int n_tokens;
    bool pdl;
} rope_append_args;

/* Head norm, RoPE on q and k, k and v appended to the cache at each row's position. */
status cuda_rope_append(const attention *a, const rope_append_args *args, cudaStream_t stream);

/* Fills row_seq, row_pos and rope of step_device from seq_start and kv_len (all on the device),
 * once a step. freq: device [n_rot / 2]. Rows of padding (r >= n_tokens) are the caller's business.
 */
typedef struct step_rows_args {
    const int32_t *seq_start, *kv_len;
    int n_seqs, n_tokens;
    const float *freq;
    int n_rot;
    float mscale;
    int32_t *row_seq, *row_pos;
    float2 *rope;
} step_rows_args;
status cuda_step_rows(const step_rows_args *args, cudaStream_t stream);

/* Copies whole KV blocks in all layers, in one launch. copies: device, [n_copies]; no block is both
 * a source and a target. pool: [n_layers][n_blocks] blocks of block_bytes. */
status cuda_copy_blocks(void *pool, int n_layers, int n_blocks, size_t block_bytes,
                        const block_copy *copies, int n_copies, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
