/* The CPU backend's state, shared by its files: load.c fills the weights, reserve.c the memory,
 * forward.c runs steps. Thread: the engine's; tasks on the pool's threads touch disjoint rows. */
#ifndef INFERD_KERNELS_CPU_BACKEND_CPU_H
#define INFERD_KERNELS_CPU_BACKEND_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/sample.h"

typedef struct layer_weights {
    pack q, k, v, o, gate, up, down;
    const float *attn_norm, *ffn_norm;              /* padded with zeros to a multiple of 32 */
    const float *q_bias, *k_bias, *v_bias, *o_bias; /* padded likewise; NULL: none */
    const float *q_norm, *k_norm;                   /* likewise */
} layer_weights;

/* Tokens of one sequence whose queries one attention task takes. */
typedef struct query_tile {
    int32_t seq, row, n_rows, position;
} query_tile;

/* Buffers of one step; strides are in floats, columns padded to 32 with zeros. */
typedef struct workspace {
    int embd_ld, q_ld, kv_ld, ff_ld, vocab_ld;
    float *x;          /* residual stream [rows][embd_ld] */
    float *normed;     /* [rows][embd_ld] */
    float *q, *k, *v;  /* [rows][q_ld], [rows][kv_ld] x 2 */
    float *attended;   /* [rows][q_ld] */
    float *h;          /* [rows][ff_ld] */
    act_block *in_q;   /* quantised normed or attended rows */
    act_block *h_q;    /* quantised h */
    float *up;         /* [threads][FFN_TOKENS][32] */
    float *cos_sin;    /* [rows][n_rot] */
    int32_t *position; /* [rows] */
    int32_t *seq;      /* [rows] */
    query_tile *tiles;
    float *logits; /* [n_samples_max][vocab_ld] */
    sampled *results;
    sample_scratch *scratch; /* [threads] */
} workspace;

enum { FFN_TOKENS = 64, QUERY_TOKENS = 32 };

typedef struct cpu_backend {
    backend base;
    char device_name[96];
    const cpu_kernels *kernels;
    pool *pool;

    /* load */
    model_desc m; /* numbers only: its views are cleared */
    memory weights;
    layer_weights *layers; /* [n_layers], in `weights` */
    pack embd, output;     /* the same panels when tied */
    const float *output_norm, *output_bias;
    float *rope_freq;
    sample_vocab vocab;
    bool loaded;

    /* reserve */
    backend_limits limits;
    kv_layout kv;
    memory kv_pool, work;
    workspace w;
    int kv_blocks;

    /* the step in hand */
    const step *s;
    int n_tiles, n_results; /* results: of the last step, until waited for */
    bool in_step;
} cpu_backend;

status cpu_load(backend *b, const model_desc *m, backend_progress *progress, void *ctx, error *err);
status cpu_reserve(backend *b, const backend_limits *want, backend_memory *got, error *err);

status cpu_begin_step(backend *b, const step *s);
status cpu_embed(backend *b);
status cpu_qkv(backend *b, int layer);
status cpu_attention(backend *b, int layer);
status cpu_attn_output(backend *b, int layer);
status cpu_gate_up(backend *b, int layer);
status cpu_down(backend *b, int layer);
status cpu_head(backend *b);
status cpu_sample(backend *b);
status cpu_end_step(backend *b);

static inline int pad32(int n) {
    return (n + 31) / 32 * 32;
}

/* One matrix product over all rows, or up to three that share their input: panels of 16 outputs
 * times chunks of rows, spread over the pool. */
typedef struct linear_job {
    const cpu_backend *b;
    act in;
    int n_rows, n_matrices;
    struct {
        const pack *w;
        float *y;
        size_t ld;
        const float *bias;
    } matrix[3];
    bool add;
    int rows_chunk, panels_chunk, n_panel_chunks; /* filled by linear_run */
} linear_job;
void linear_run(linear_job *j);

/* Rows per task such that their quantised form stays in the second-level cache. */
int linear_rows_chunk(int n_rows, int n_blocks);
#endif
