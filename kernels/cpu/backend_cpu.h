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
    float *up;         /* [threads][FFN_TOKENS][32 FFN_BLOCKS], or [FEW_ROWS][ff_ld] */
    float *own_normed; /* [threads][FEW_ROWS][embd_ld] */
    act_block *own_q;  /* [threads][own_blocks]: up to FEW_ROWS rows of any input */
    int own_blocks;
    float *cos_sin;    /* [rows][n_rot] */
    int32_t *position; /* [rows] */
    int32_t *seq;      /* [rows] */
    query_tile *tiles;
    float *logits; /* [n_samples_max][vocab_ld] */
    sampled *results;
    sample_scratch *scratch; /* [threads] */
} workspace;

enum { FFN_TOKENS = 64, FFN_BLOCKS = 4, QUERY_TOKENS = 32 };

/* Up to this many rows a step is a matter of reading the weights: see linear.c. */
enum { FEW_ROWS = 4 };

/* Row-wise work goes to the pool in groups of this many rows; fewer rows are done on the spot,
 * where waking the others would cost more. */
enum { ROWS_TASK = 8 };

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

/* The rows of a matrix product before they are quantised. */
typedef struct linear_input {
    const float *x; /* columns padded with zeros to ld, a multiple of 32 */
    size_t ld;
    const float *norm;      /* RMS-normalise with this weight; NULL: as they are */
    const sample_row *rows; /* row r is row rows[r].row of x; NULL: row r */
    const act_block *q;     /* quantised already; NULL: not yet. Not read for few rows. */
} linear_input;
/* Prepares n_rows rows, with all threads, in the workspace; or at most FEW_ROWS by and for one. */
act linear_input_shared(const cpu_backend *b, const linear_input *in, int n_rows);
act linear_input_own(const cpu_backend *b, const linear_input *in, int n_rows, int i_thread);

/* One matrix product over all rows, or up to three that share their input: panels of 16 outputs
 * times chunks of rows, spread over the pool. */
typedef struct linear_job {
    const cpu_backend *b;
    linear_input input;
    int n_rows, n_matrices;
    struct {
        const pack *w;
        float *y;
        size_t ld;
        const float *bias;
    } matrix[3];
    bool add;
    act in; /* these are filled by linear_run */
    int n_panels, rows_chunk, panels_chunk, n_panel_chunks;
} linear_job;
void linear_run(linear_job *j);

/* Where share i of n things begins when n_shares are as equal as can be. */
static inline int linear_share(int n, int i, int n_shares) {
    return (int)((int64_t)n * i / n_shares);
}

/* Rows per task such that their quantised form stays in the second-level cache. */
int linear_rows_chunk(int n_rows, int n_blocks);
#endif
