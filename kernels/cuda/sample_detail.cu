/* Log-probability and rank of each row's token, and the row's most likely tokens, from raw logits.
 *   logprob = x - (top + log sum exp(x_i - top)); rank = 1 + number of logits strictly greater
 *   a cluster of 1-8 blocks a row, 512 threads each; groups whose maximum is not above x are
 *   skipped
 *   most likely n_top <= 20: the k-th group maximum bounds them, as in pick; equal logits by the
 *   thousand: radix select
 *   bytes: 1/32 of the logits plus what lies above the token; latency bound, 15 us at one row
 *   numerics: the scan's float32 slice sums, added in double in a fixed order */
#include "kernels/cuda/sample_cluster.cuh"

namespace {

/* Log of the row's raw sum of exponentials. All threads. */
__device__ double log_sum(row_scratch &s, const row_view &v, float top) {
    double x = 0.0, all;
    for (int i = threadIdx.x; i < v.a.n_slices; i += SAMPLE_THREADS) {
        const int o = v.row * v.a.n_slices + i;
        const float from = fmaxf(v.a.slice_raw[o], -FLT_MAX);
        x += (double)v.a.sum_raw[o] * (double)weight(from, top, LOG2_E);
    }
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        const float y = v.entries(true)[i];
        if (!is_hole(y)) x += (double)weight(y, top, LOG2_E);
    }
    block_scan(s.block, x, &all);
    return (double)top + log(all);
}

__device__ float raw_top(row_scratch &s, const row_view &v) {
    float top = -FLT_MAX;
    for (int i = threadIdx.x; i < v.a.n_slices; i += SAMPLE_THREADS) {
        top = fmaxf(top, v.a.slice_raw[v.row * v.a.n_slices + i]);
    }
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        top = fmaxf(top, v.entries(true)[i]);
    }
    return block_max(s.block, top);
}

/* Raw logit of a token: its place may hold a mark. All threads. */
__device__ float raw_logit(row_scratch &s, const row_view &v, int id) {
    const float x = v.logits[id];
    if (!is_hole(x) || v.n_entries == 0) return x;
    if (threadIdx.x == 0) s.number = (double)x;
    __syncthreads(); /* the fallback is set: a raw -infinity has no entry */
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        const float y = v.entries(true)[i];
        const bool empty = __float_as_uint(y) == __float_as_uint(-FLT_MAX);
        if (!empty && v.entry_id(i) == id) s.number = (double)y;
    }
    __syncthreads(); /* number is set */
    const float y = (float)s.number;
    __syncthreads(); /* and read */
    return y;
}

template <int CL>
__device__ int count_above(const row_cluster<CL> &cl, const row_view &v, float x) {
    row_scratch &s = cl.s;
    if (cl.rank == 0 && threadIdx.x == 0) s.last = 0;
    cl.sync(); /* last is 0 */
    int n = 0;
    const float above = x > -FLT_MAX ? nextafterf(x, FLT_MAX) : -FLT_MAX;
    for_each_slice(v, true, above, cl.rank, CL, [&](int, const float(&y)[8]) {
        for (int j = 0; j < 8; j++) n += y[j] > x && !is_hole(y[j]);
    });
    n = block_count(s.block, n);
    if (threadIdx.x == 0) atomicAdd(&cl.remote(&s, 0)->last, n);
    cl.sync();     /* all blocks have added */
    return s.last; /* of block 0 only */
}

/* The k most likely tokens, sorted, in block 0's list; returns how many. */
template <int CL>
__device__ int most_likely(const row_cluster<CL> &cl, const row_view &v, int k, float top) {
    row_scratch &s = cl.s;
    if (threadIdx.x == 0) s.n_list = 0;
    int n = 0;
    if (cl.rank == 0) {
        const group_share g(v, true);
        const float low = kth_bound(s.block, v, g, s.lo, k, true, top);
        gather(v, g, low, true, s.list, &s.n_list);
        n = s.n_list;
    }
    n = (int)cl.broadcast((u64)n);
    if (n > LIST_MAX) {
        const u64 last = cl.select(v, true, -FLT_MAX, 0.0f, top, (double)k, false).key;
        const float low = key_value(last);
        if (cl.rank == 0 && threadIdx.x == 0) s.n_list = 0;
        cl.sync(); /* the list is empty */
        row_scratch &s0 = *cl.remote(&s, 0);
        for_each_slice(v, true, low, cl.rank, CL, [&](int slice, const float(&x)[8]) {
            for (int j = 0; j < 8; j++) {
                if (x[j] >= low && !is_hole(x[j])) {
                    const u64 key = key_of(x[j], slice_token(v, slice, j));
                    if (key <= last) list_push(s0.list, &s0.n_list, key);
                }
            }
        });
        cl.sync(); /* the list is complete */
        n = k;
    }
    if (cl.rank == 0) block_sort(s.list, n);
    return min(n, k);
}

template <int CL>
__device__ void detail_row(const row_cluster<CL> &cl, const row_view &v, const sample_row &r) {
    row_scratch &s = cl.s;
    const int id = v.a.token[v.row];
    sampled *out = v.a.out + v.row;
    const float top = raw_top(s, v);
    const double lse = log_sum(s, v, top);
    const float x = raw_logit(s, v, id);
    const int above = count_above(cl, v, x);
    if (cl.rank == 0 && threadIdx.x == 0) {
        out->rank = above + 1;
        out->logprob = (float)((double)x - lse);
    }
    if (r.n_top <= 0) return;
    const int n = most_likely(cl, v, min(min(r.n_top, LIMIT_TOP_LOGPROBS), v.a.n_vocab), top);
    if (cl.rank != 0) return;
    if ((int)threadIdx.x < n) {
        out->top_token[threadIdx.x] = key_id(s.list[threadIdx.x]);
        out->top_logprob[threadIdx.x] = (float)((double)key_value(s.list[threadIdx.x]) - lse);
    }
    if (threadIdx.x == 0) out->n_top = n;
}

template <int CL>
__global__ void __launch_bounds__(SAMPLE_THREADS, CL == 8 ? 1 : 2)
    sample_detail_kernel(const sample_args a) {
    __shared__ row_scratch s;
    const row_cluster<CL> cl(s);
    const row_view v(a, blockIdx.x / CL);
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const sample_row &r = a.rows[v.row];
    if (wants_detail(r) && a.token[v.row] >= 0) {
        detail_row(cl, v, r);
        cl.sync(); /* no block leaves while another reads its shared memory */
    }
    if (cl.rank == 0) restore_row(v);
}

} // namespace

status sample_detail_launch(const sample_args *a, int cluster, bool pdl, cudaStream_t stream) {
    switch (cluster) {
    case 8:
        return cuda_launch_cluster(sample_detail_kernel<8>, *a, 8, pdl, stream);
    case 4:
        return cuda_launch_cluster(sample_detail_kernel<4>, *a, 4, pdl, stream);
    case 2:
        return cuda_launch_cluster(sample_detail_kernel<2>, *a, 2, pdl, stream);
    default:
        return cuda_launch_cluster(sample_detail_kernel<1>, *a, 1, pdl, stream);
    }
}
