/* What the attention files share among themselves: kernel arguments, the row layouts as
 * compile-time constants, and each file's entry points. attention.h is the interface. */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_INTERNAL_H
#define INFERD_KERNELS_CUDA_ATTENTION_INTERNAL_H

#include "kernels/cuda/attention.h"

/* Sequences of a step, with those that pad a graph's batch. */
enum { ATTENTION_SEQS_MAX = 2 * LIMIT_SEQUENCES };

/* Element types of the tensor-core pools. */
enum { KV_BF16, KV_F16, KV_I8 };

static inline int kv_kind(dtype t) {
    return t == DTYPE_BF16 ? KV_BF16 : t == DTYPE_F16 ? KV_F16 : KV_I8;
}

/* kv_layout.h with head_dim and element size known at compile time; checked against it in
 * tests/kernels/cuda_attention_check.cu. */
template <int D_, int E_> struct kv_rows {
    static constexpr int D = D_, E = E_;
    static constexpr int RB = E == 2 ? (D == 96 ? 64 : D == 80 ? 32 : 128) : (D > 128 ? 128 : D);
    static constexpr int NS = D * E / RB, CW = RB / 16;
    __host__ __device__ static constexpr int swizzle(int token) {
        return RB == 128              ? token & 7
               : RB == 64             ? (token >> 1) & 3
               : RB == 96 || RB == 32 ? (token >> 2) & 1
                                      : 0;
    }
    /* Bytes of one head of `tokens` tokens: K, V, scales. */
    __host__ __device__ static constexpr int head_bytes(int tokens) {
        return 2 * tokens * D * E + (E == 1 ? 8 * tokens : 0);
    }
    /* Byte offset of 16-byte chunk c of a token. */
    __host__ __device__ static constexpr int chunk(int tokens, int value, int token, int c) {
        return value * tokens * D * E + (c / CW) * tokens * RB + token * RB +
               ((c % CW) ^ swizzle(token)) * 16;
    }
};

struct decode_args {
    const uint16_t *q; /* [rows][n_heads][D] */
    const char *kv;    /* the layer's pool */
    const int32_t *block;
    const attention_item *items;
    void *out;
    float4 *partial;    /* [slot][slot_heads * D / 4] */
    float2 *partial_ml; /* [slot][slot_heads]: maximum in log2 units, sum */
    unsigned *counter;  /* [slot]: of slot0, zero at rest */
    size_t head_bytes, block_bytes;
    int n_heads, slot_heads;    /* slot_heads: min(group, 8) */
    int block_shift;            /* log2 of block_tokens */
    int window, out_type;       /* out_type: dtype */
    int out_columns, out_width; /* columns > 0: activation order of rows of out_width halves */
    float scale_log2;
};

struct prefill_args {
    const uint16_t *q;
    void *out;
    const char *kv;
    const int32_t *block;
    const attention_tile *tiles;
    float4 *partial;    /* [slot][warpgroup][D / 8][128] */
    float4 *partial_ml; /* [slot][warpgroup][128]: maximum and sum of two rows */
    unsigned *counter;  /* [slot0][warpgroup], zero at rest */
    size_t head_bytes, block_bytes;
    int n_heads, group, block_shift, window, out_type;
    float scale_log2;
};

/* A compiled prefill kernel: NULL when there is none for the layout and device. */
typedef struct prefill_kernel {
    const void *fn;
    int threads, tile_rows, tile_keys;
    size_t smem_bytes;
    int chunk; /* key tiles of an independent piece; 0: a tile can not be cut */
} prefill_kernel;

/* wgmma, sm_90a: F16 and BF16 pools of head_dim 64, 96, 128. full: serves windows, and plans that
 * cut tiles along the keys. */
prefill_kernel prefill_kernel_wgmma(const kv_layout *kv, bool full);

/* mma.sync, sm_80 and up: every tensor-core layout. One block a tile. */
prefill_kernel tile_kernel_d64(int kind);
prefill_kernel tile_kernel_d80(int kind);
prefill_kernel tile_kernel_d96(int kind);
prefill_kernel tile_kernel_d128(int kind);
prefill_kernel tile_kernel_d256(int kind);

/* A compiled decode kernel: NULL when the variant is not built for the layout. */
typedef struct decode_kernel {
    const void *fn;
    int warps, tile_keys, stages, stage_bytes;
} decode_kernel;

/* Variants: few blocks (one an SM at most), many blocks, small shared memory (sm_86, sm_89). */
enum { DECODE_FEW, DECODE_MANY, DECODE_SMALL, DECODE_VARIANTS };

decode_kernel decode_kernel_d64(int kind, int block_tokens, int variant);
decode_kernel decode_kernel_d80(int kind, int block_tokens, int variant);
decode_kernel decode_kernel_d96(int kind, int block_tokens, int variant);
decode_kernel decode_kernel_d128(int kind, int block_tokens, int variant);
decode_kernel decode_kernel_d256(int kind, int block_tokens, int variant);

/* Query heads in an item, at most: min(group, 8). */
int attention_slot_heads(const attention *a);

/* Offsets into the workspace. */
typedef struct workspace_parts {
    size_t partial, partial_ml, counter;                /* decode kernel */
    size_t tile_partial, tile_partial_ml, tile_counter; /* wgmma kernel */
    size_t bytes;
} workspace_parts;
workspace_parts attention_workspace_parts(const attention *a);

/* Tiles of sequences [first_seq, s->n_seqs) at p->tiles_offset of buffer; fills p's tile fields.
 * bucket > 0: the grid is that of `bucket` sequences of one row, as captured. */
void attention_plan_tiles(const attention *a, const step *s, int first_seq, int bucket,
                          void *buffer, attention_plan *p);
/* Bounds of the above. */
size_t attention_tiles_max(const attention *a);
int attention_tile_slots_max(const attention *a);

/* Rows [row0, n_tokens) by the plain kernel. */
status attention_plain_launch(const attention *a, const attention_args *args, int row0,
                              cudaStream_t stream);

#endif
