/* The only door between the engine and a device. kernels/cpu is the reference and the default;
 * kernels/cuda the product.
 *
 * Life: open -> load (weights) -> reserve (KV pool, workspace: all memory there will ever be) ->
 * steps -> close. A step: begin_step -> (replay, or embed, layers, head, sample) -> end_step; later
 * wait_step for its results. Ops are queued in order on one stream: OK means accepted. A fault
 * surfaces in wait_step (or any later op) as E_DEVICE, for good. Up to pipeline_depth steps may be
 * between end_step and wait_step; results come back in order. The residual stream x [n_tokens,
 * n_embd] and all activations live inside the backend.
 *
 * Numerics: float32 accumulation and softmax everywhere. On the CPU, and on CUDA when
 * deterministic, a row's result does not depend on the other rows of the step, on chunking or on
 * kv_block_tokens: bit for bit. Thread: one thread (the engine's) for everything after open. Read
 * by C and nvcc. */
#ifndef INFERD_KERNELS_BACKEND_H
#define INFERD_KERNELS_BACKEND_H

#include "base/status.h"
#include "kernels/model_desc.h"
#include "kernels/step.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct backend backend;

typedef struct backend_options {
    int device;         /* CUDA ordinal; ignored by the CPU */
    int threads;        /* CPU: compute threads, 0 = physical cores available to the process */
    bool deterministic; /* CUDA: batch-invariant kernels, fixed splits. The CPU always is */
} backend_options;

/* Capacities for reserve(). 0 where allowed means: the backend decides. */
typedef struct backend_limits {
    int n_tokens_max;  /* rows in a step */
    int n_seqs_max;    /* sequences in a step */
    int n_samples_max; /* sample rows in a step (>= n_seqs_max; prompt log-probabilities use the
                          rest) */
    int n_blocks_max;  /* entries of step.block; 0: n_seqs_max * ceil(context / kv_block_tokens) */
    int n_bias_max;    /* entries of step.bias in a step */
    int n_seen_max;    /* entries of step.seen in a step */
    int n_copies_max;  /* entries of step.copies in a step; 0: n_seqs_max */
    int kv_block_tokens;    /* 16, 32 or 64 */
    int kv_blocks;          /* 0: as many as memory allows */
    size_t kv_memory_bytes; /* 0: no limit of its own; else the pool takes at most this */
    int kv_type;            /* a dtype (F32, F16, BF16, I8), or -1: the backend's default */
} backend_limits;

/* What reserve() took, and the arithmetic behind it. */
typedef struct backend_memory {
    uint64_t weights_bytes, kv_bytes, workspace_bytes;
    uint64_t total_bytes,
        free_bytes; /* of the device (or the process's share of RAM) when reserve() began */
    int kv_blocks;
    dtype kv_type;
} backend_memory;

/* Called during load with a fraction 0..1, non-decreasing, from the loading thread. */
typedef void backend_progress(void *ctx, double fraction);

struct backend_ops {
    const char *name;   /* "cpu", "cuda" */
    int pipeline_depth; /* steps that may be in flight: 1, or 2 when the host may plan ahead */

    /* Copies or repacks every weight of m. E_UNSUPPORTED names the shape or type that is not built;
     * E_NOMEM carries the arithmetic (need, have). After it m's views may be unmapped. */
    status (*load)(backend *b, const model_desc *m, backend_progress *progress, void *ctx,
                   error *err);
    /* Takes all memory that steps will need. Start-up only, after load. E_NOMEM carries the
     * arithmetic. */
    status (*reserve)(backend *b, const backend_limits *want, backend_memory *got, error *err);

    /* Uploads s (borrowed until end_step) and performs its block copies. */
    status (*begin_step)(backend *b, const step *s);
    /* Optional, may be NULL. True: a captured graph does the whole step, skip to end_step. */
    bool (*replay)(backend *b);
    /* x[r,:] = token_embd[token[r],:] */
    status (*embed)(backend *b);
    /* q, k, v = W x_normed (+ bias) (+ head norm); RoPE on q and k; k and v appended to layer's
     * cache. x_normed = x / sqrt(mean(x^2) + eps) * attn_norm */
    status (*qkv)(backend *b, int layer);
    /* a = softmax(q K^T * scale, causal, window) V over each sequence's blocks */
    status (*attention)(backend *b, int layer);
    /* x += W_o a (+ bias) */
    status (*attn_output)(backend *b, int layer);
    /* h = silu(W_gate x_normed) * (W_up x_normed), with ffn_norm */
    status (*gate_up)(backend *b, int layer);
    /* x += W_down h */
    status (*down)(backend *b, int layer);
    /* logits[i,:] = W_output rmsnorm(x[sample[i].row,:]) (+ bias), for the sample rows only */
    status (*head)(backend *b);
    /* Draws or scores every sample row, see step.h. */
    status (*sample)(backend *b);
    /* Closes the step: everything is queued (CUDA: launched). */
    status (*end_step)(backend *b);
    /* Waits for the oldest step in flight and writes its n_samples results. E_DEVICE is final. */
    status (*wait_step)(backend *b, sampled *out);

    /* Tests and conformance only: copies the last waited step's raw logits [n_samples, n_vocab] to
     * the host. */
    status (*read_logits)(backend *b, float *out, size_t out_floats);
    /* A line for people: "NVIDIA H200, sm_90, driver 580.159" or "CPU, 2 threads, avx512-vnni".
     * Lives as long as b. */
    const char *(*device_name)(const backend *b);
    void (*close)(backend *b); /* NULL is legal */
};

struct backend {
    const struct backend_ops *ops; /* first member of each implementation */
};

/* E_NOTFOUND: no such device (or driver too old); the text says which. */
status cpu_backend_open(const backend_options *o, backend **out, error *err);
#ifdef INFERD_CUDA
status cuda_backend_open(const backend_options *o, backend **out, error *err);
#endif

/* By name: "cpu", "cuda", or "auto" (CUDA when built in and a device is there, else CPU). Not built
 * in: E_UNSUPPORTED. */
status backend_open(const char *name, const backend_options *o, backend **out, error *err);

#ifdef INFERD_FAULTS
/* Fault injection, in test builds only: wraps inner (takes ownership, also on failure) so that one
 * call misbehaves. spec is "OP:N:KIND": OP an entry of backend_ops (begin_step .. wait_step), N
 * which call of it, from 1, KIND one of
 *   fail  it returns E_DEVICE, and so does every later call of the step functions
 *   hang  it never returns
 *   nan   (wait_step only) its first result comes back not finite
 * backend_open() wraps by itself when the environment has INFERD_FAULT=OP:N:KIND. E_INVAL names a
 * spec that it cannot read. */
status backend_fault_wrap(backend *inner, const char *spec, backend **out, error *err);
#endif

#ifdef __cplusplus
}
#endif
#endif
