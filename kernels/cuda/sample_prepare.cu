/* Bias and penalties: the row's entries become a list of (raw, adjusted) values, and their places
 * in the logits are marked.
 *   y = x + bias; seen: y = y > 0 ? y / rep : y * rep; y -= frequency * n_output;
 *   n_output > 0: y -= presence. Never-sampled tokens: y = -infinity
 *   one block a row, one thread an entry; a seen token that has a bias too finds the bias's entry
 *   by the index in its mark and leaves its own entry empty
 *   bytes: 16 an entry and scattered 4-byte accesses; not timed on its own */
#include "kernels/cuda/sample_device.cuh"

#define PREPARE_THREADS 256

__device__ static float penalised(const sample_row &r, float y, int n_output) {
    if (r.repetition_penalty > 0.0f && r.repetition_penalty != 1.0f) {
        y = y > 0.0f ? y / r.repetition_penalty : y * r.repetition_penalty;
    }
    y -= r.frequency_penalty * (float)n_output;
    if (n_output > 0) y -= r.presence_penalty;
    return y;
}

__global__ void __launch_bounds__(PREPARE_THREADS) sample_prepare_kernel(const sample_args a) {
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const int row = blockIdx.x;
    const sample_row r = a.rows[row];
    float *logits = a.logits + (size_t)row * a.stride;
    float *raw = a.entry_raw + a.entry_start[row], *adj = a.entry_adj + a.entry_start[row];
    for (int i = threadIdx.x; i < r.n_bias; i += PREPARE_THREADS) {
        const token_bias b = a.bias[r.i_bias + i];
        const float x = logits[b.token];
        raw[i] = x;
        adj[i] = a.never && a.never[b.token] ? -INFINITY : x + b.bias;
        logits[b.token] = hole(i + 1); /* 0 is the mark of seen entries */
    }
    __syncthreads(); /* the marks of bias entries are in the logits */
    for (int j = threadIdx.x; j < r.n_seen; j += PREPARE_THREADS) {
        const token_seen s = a.seen[r.i_seen + j];
        const float x = logits[s.token];
        const int i = r.n_bias + j, biased = is_hole(x) ? hole_index(x) - 1 : -1;
        if (biased >= 0 && biased < r.n_bias && a.bias[r.i_bias + biased].token == s.token) {
            adj[biased] = penalised(r, adj[biased], s.n_output);
            raw[i] = adj[i] = -FLT_MAX; /* empty */
        } else {
            raw[i] = x;
            adj[i] = a.never && a.never[s.token] ? -INFINITY : penalised(r, x, s.n_output);
            logits[s.token] = hole(0);
        }
    }
}

status sample_prepare_launch(const sample_args *a, bool pdl, cudaStream_t stream) {
    return cuda_launch(sample_prepare_kernel, dim3((unsigned)a->n_rows), dim3(PREPARE_THREADS), 0,
                       stream, pdl, *a);
}
