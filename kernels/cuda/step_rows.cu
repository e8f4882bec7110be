/* What every layer needs to know of each token row, once a step: sequence, position, rotation.
 *   row r of sequence s: pos = kv_len[s] - (seq_start[s + 1] - r)
 *   rope[r][i] = mscale * (cos, sin)(pos * freq[i])
 *   one block a row, threads over the pairs; the sequence by binary search in seq_start
 *   bytes: 8 * n_rot / 2 a row; one launch a step, 2 us
 *   numerics: the angle in double (a float32 angle of 100,000 is off by 0.004) */
#include "kernels/cuda/attention.h"

#define STEP_THREADS 64

__global__ void step_rows_kernel(const step_rows_args a) {
    const int row = blockIdx.x;
    int lo = 0, hi = a.n_seqs; /* seq_start[lo] <= row < seq_start[hi] */
    while (hi - lo > 1) {
        const int mid = (lo + hi) / 2;
        if (a.seq_start[mid] <= row)
            lo = mid;
        else
            hi = mid;
    }
    const int pos = a.kv_len[lo] - (a.seq_start[lo + 1] - row);
    if (threadIdx.x == 0) {
        a.row_seq[row] = lo;
        a.row_pos[row] = pos;
    }
    for (int i = threadIdx.x; i < a.n_rot / 2; i += STEP_THREADS) {
        double sine, cosine;
        sincos((double)pos * (double)a.freq[i], &sine, &cosine);
        a.rope[(size_t)row * (a.n_rot / 2) + i] =
            make_float2((float)cosine * a.mscale, (float)sine * a.mscale);
    }
}

extern "C" status cuda_step_rows(const step_rows_args *args, cudaStream_t stream) {
    if (args->n_tokens < 1 || args->n_seqs < 1) return E_INVAL;
    step_rows_kernel<<<args->n_tokens, STEP_THREADS, 0, stream>>>(*args);
    return cudaGetLastError() == cudaSuccess ? OK : E_DEVICE;
}
