/* The CUDA backend's state, shared by its host files: backend_cuda.cu (open, close, steps), load.cu
 * (weights), reserve.cu (memory), layers.cu (the operations), graph.cu (captured decode steps).
 *
 * Memory: weights come in slabs at load; everything else in reserve(); steps allocate nothing.
 * Stream: one; uploads, layers, sampling and read-backs follow each other on it, so the device's
 * step buffers exist once. The host's (step_slot) exist SLOTS times: a slot is written by
 * begin_step and read by the device until its step's event. Faults: the first E_DEVICE is kept in
 * `fault` and answers everything after it. */
#ifndef INFERD_KERNELS_CUDA_CUDA_BACKEND_H
#define INFERD_KERNELS_CUDA_CUDA_BACKEND_H

#include "kernels/backend.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm_wgmma.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample.h"

enum {
    SLOTS = 4, /* host step buffers: more than the steps in flight and the one being filled */
    PIPELINE_DEPTH = 2,
    SLAB_BYTES = 64 << 20,
    GLU_ROWS_MAX = 2048,  /* rows of gate_up at a time: bounds its buffer */
    WGMMA_ROWS_MAX = 128, /* rows that the wgmma kernels take */
    FUSED_ROWS_MAX = 8,   /* rows that the matrix-vector kernels take */
    GRAPH_ROWS_MAX = 256, /* largest decode batch with a captured graph */
    GRAPHS_MAX = 40
};

typedef struct cuda_layer {
    cuda_matrix qkv[3]; /* n_qkv: 1 when the types agree; each writes from column qkv_column */
    int n_qkv, qkv_column[3];
    cuda_matrix o, gate_up[2], down; /* n_gate_up 1: gate and up tiles in turn; 2: gate, up */
    int n_gate_up;
    float *qkv_bias, *o_bias; /* or NULL */
    float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    uint16_t *attn_norm_half, *ffn_norm_half;
} cuda_layer;

/* Model numbers that outlive load(). */
typedef struct cuda_shape {
    int n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab, n_qkv_out, context_length;
    int n_rot, sliding_window;
    float norm_eps, rope_mscale, attn_scale;
} cuda_shape;

/* Device buffers of a step, by capacity. */
typedef struct step_buffers {
    int32_t *token, *seq_start, *kv_len, *block_start, *block, *sample_rows;
    int32_t *row_seq, *row_pos;
    float2 *rope;
    sample_row *sample;
    token_bias *bias;
    token_seen *seen;
    block_copy *copies;
    void *attention_plan, *sampler_plan;
} step_buffers;

/* Pinned host memory of one step: the same arrays, then what comes back. */
typedef struct step_slot {
    step_buffers host; /* row_seq, row_pos, rope unused */
    int32_t *ids;      /* [n_samples_max] */
    sampled *details;  /* [n_samples_max] */
    cudaEvent_t done;
    int n_samples;
    bool detail;
} step_slot;

/* One captured step of `bucket` rows. Its first node pulls the step's arrays from the slot, its
 * last puts the ids into it: their arguments are set before each launch. */
typedef struct captured_step {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaGraphNode_t fetch, publish; /* publish: greedy graphs */
    cudaKernelNodeParams fetch_params, publish_params;
} captured_step;

typedef struct cuda_graph {
    int bucket;                   /* rows */
    captured_step greedy, logits; /* to the ids of greedy sampling; to the logits */
    attention_plan plan;
} cuda_graph;

struct lt_gemm;

typedef struct cuda_backend {
    backend base; /* first member */
    backend_options options;
    char name[512];
    bool fault;
    int device, sm, n_sms;
    size_t total_bytes;
    cudaStream_t stream;
    struct lt_gemm *lt; /* NULL: cuBLASLt is not there; prefill takes our own kernels */

    /* load */
    cuda_shape shape;
    cuda_layer *layers;
    cuda_matrix head;
    float *head_bias, *output_norm, *rope_freq;
    uint16_t *output_norm_half;
    void *embd;
    dtype embd_type;
    uint8_t *never_sampled;
    void **allocations;
    int n_allocations, n_allocations_max;
    uint8_t *slab;
    size_t slab_used, slab_size;
    uint64_t weights_bytes;
    model_desc desc; /* numbers only: its views are gone after load */

    /* reserve */
    backend_limits limits;
    attention attn;
    sampler sampler_state;
    step_buffers dev;
    void *host_memory; /* pinned: all slots */
    step_slot slot[SLOTS];
    uint8_t *kv;
    int n_blocks_max; /* entries of step.block */
    int kv_blocks;    /* without the block that padding rows write */
    float *x, *qkv, *logits;
    uint16_t *x_half, *xn, *att, *xn_att, *act, *w16, *head_x;
    void *q, *gate_up, *attn_work, *sampler_work;
    float *wgmma_partial;
    unsigned *wgmma_flags;
    int32_t *previous;    /* ids drawn by the last step */
    sampled *sampled_dev; /* its details */
    int logits_stride, ld_act, ld_embd, ld_att;
    size_t w16_halves;
    cuda_graph graph[GRAPHS_MAX];
    int n_graphs;
    bool reserved;
    int fused_rows;  /* steps of so few rows take the matrix-vector kernels; 0: none do */
    bool wgmma;      /* steps of up to 128 rows take the wgmma kernels */
    bool head_wgmma; /* and their logits too */
    bool fused_rope; /* and those of q, k, v rotate and append themselves */

    /* the step being queued */
    const step *step;
    step_slot *now;
    step_device step_dev;
    attention_plan plan;
    sampler_plan sample_plan;
    int n_rows, n_head_rows; /* padded when a graph runs */
    bool head_is_rows;       /* sample i is row i: no gather */
    fetch_args fetch;
    bool fetch_pending; /* a graph is to pull the step's arrays */
    bool published;     /* the graph has sampled and put the ids into the slot */
    bool pdl;
    int first, n_in_flight; /* slots of the steps between end_step and wait_step */
    int last_samples;
} cuda_backend;

static inline cuda_backend *cuda_of(backend *b) {
    return (cuda_backend *)b;
}

/* Keeps the first fault. */
static inline status cuda_keep(cuda_backend *b, status s) {
    if (s == E_DEVICE) b->fault = true;
    return b->fault ? E_DEVICE : s;
}

/* The current device is a thread's: the calling thread may be another than open's. */
static inline void cuda_enter(const cuda_backend *b) {
    (void)cudaSetDevice(b->device);
}

/* Device memory until close(): 256-byte aligned, from slabs. E_NOMEM. */
status cuda_take(cuda_backend *b, size_t bytes, void **out);
void cuda_release_all(cuda_backend *b);

status cuda_load(backend *base, const model_desc *m, backend_progress *progress, void *ctx,
                 error *err);
status cuda_reserve(backend *base, const backend_limits *want, backend_memory *got, error *err);

/* The operations, on b->n_rows rows. */
status cuda_op_embed(cuda_backend *b);
status cuda_op_qkv(cuda_backend *b, int layer);
status cuda_op_attention(cuda_backend *b, int layer);
status cuda_op_attn_output(cuda_backend *b, int layer);
status cuda_op_gate_up(cuda_backend *b, int layer);
status cuda_op_down(cuda_backend *b, int layer);
status cuda_op_head(cuda_backend *b);
/* Prepares cuBLASLt for every row count that steps can have. */
status cuda_lt_prepare(cuda_backend *b);

/* Captures the decode graphs (start-up). */
status cuda_graphs_capture(cuda_backend *b, error *err);
int cuda_graph_bucket(const cuda_backend *b, const step *s); /* 0: none */
/* Launches the graph of b->n_rows rows; sampling is in it (b->published) when the step is greedy.
 */
status cuda_graph_launch(cuda_backend *b);
/* Fills row_seq, row_pos and rope for n_seqs sequences, n_tokens rows. */
status cuda_op_rows(cuda_backend *b, int n_seqs, int n_tokens);
void cuda_graphs_destroy(cuda_backend *b);

/* cuBLASLt, found at run time. NULL when it is missing; why gets a short reason. */
struct lt_gemm *lt_open(char *why, size_t why_bytes);
void lt_close(struct lt_gemm *lt);
size_t lt_workspace_bytes(void);
void lt_set_workspace(struct lt_gemm *lt, void *workspace);
/* y[n_rows, ldy] = alpha * x w^T (+ y when add) (+ bias): w [n_out, n_in] halves, x [n_rows, ldx]
 * halves, y float32 or (half_out) halves, bias float32 or NULL. float32 accumulation. */
typedef struct lt_args {
    const uint16_t *w, *x;
    void *y;
    const float *bias;
    int n_out, n_in, ldw, ldx, ldy, n_rows;
    float alpha;
    bool add, half_out;
} lt_args;
status lt_matmul(struct lt_gemm *lt, const lt_args *a, cudaStream_t stream);
/* Rows that a product of n_rows rows is computed with: few row counts, so few plans. The rows past
 * n_rows are read and written: buffers hold lt_rows() of the most. */
int lt_rows(int n_rows);
/* Finds the algorithm for products like a, so that no step has to. */
status lt_prepare(struct lt_gemm *lt, const lt_args *a);

#endif
