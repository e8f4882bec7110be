/* Draws the rows whose answer is near: greedy; temperature alone, from the scan's slice sums and
 * one slice; top-k up to 1,024 and min-p, from a short list. Others are left to the prefix kernel
 * (sample_args.pending).
 *   one block a row, 512 threads
 *   the k-th largest group maximum bounds the k-th value from below; groups above the bound are
 *   read (about 32 k tokens), at most 2,048 candidates sorted as (value, id): exact top-k with
 *   ties, min-p, top-p, draw by ascending id
 *   bytes: 1/32 of the logits and what the groups hold; latency bound
 *   numerics: weights in float32, sums in double in a fixed order */
#include "kernels/cuda/sample_slices.cuh"

#define DIRECT_MAX SAMPLE_THREADS /* kept tokens that are drawn from without a second sort */

struct pick_scratch {
    block_scratch block;
    union {
        struct {
            u64 list[LIST_MAX];
            unsigned bins[BINS];
        };
        slice_scratch slices;
    };
    double cut;
    int n, id;
};

/* Draws from the n kept tokens of the list by ascending id; total: their mass. All threads. */
__device__ static int draw_by_id(pick_scratch &s, int n, float top, float c, double u,
                                 double total) {
    const int t = threadIdx.x;
    const double x = u * total;
    if (t == 0) s.id = -1;
    if (n <= DIRECT_MAX) { /* mass up to a token: a sum over the list in its order */
        double upto = 0.0;
        const int id = t < n ? key_id(s.list[t]) : 0;
        for (int j = 0; j < n && t < n; j++) {
            const u64 k = s.list[j];
            if (key_id(k) <= id) upto += (double)weight(key_value(k), top, c);
        }
        __syncthreads(); /* id is -1 */
        /* The first token that passes x, or the last of all: as unsigned, -1 is the largest. */
        if (t < n && upto > x) atomicMin((unsigned *)&s.id, (unsigned)id);
        __syncthreads(); /* id is the least */
        const bool none = s.id < 0;
        __syncthreads();                         /* and read */
        if (none && t < n) atomicMax(&s.id, id); /* rounding: the last of all */
        __syncthreads();                         /* id is complete */
        return s.id;
    }
    for (int i = t; i < n; i += SAMPLE_THREADS) {
        const u64 k = s.list[i];
        s.list[i] = (u64)key_id(k) << 32 | __float_as_uint(weight(key_value(k), top, c));
    }
    block_sort(s.list, n);
    double w[4], sum = 0.0, all;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int i = t * 4 + j;
        w[j] = i < n ? (double)__uint_as_float((unsigned)s.list[i]) : 0.0;
        sum += w[j];
    }
    double upto = block_scan(s.block, sum, &all) - sum;
    int before = 0;
    for (int j = 0; j < 4; j++) {
        upto += w[j];
        before += t * 4 + j < n && upto <= x;
    }
    return (int)(s.list[min(block_count(s.block, before), n - 1)] >> 32);
}

/* Cuts and draws from the complete list of n >= 1 candidates. All threads. */
__device__ static int draw_from_list(pick_scratch &s, const sample_row &r, int n, int k,
                                     float top) {
    const int t = threadIdx.x;
    const float c = LOG2_E / r.temperature;
    block_sort(s.list, n);
    if (k > 0 && k < n) { /* ties with the k-th stay */
        const float kth = key_value(s.list[k - 1]);
        int q = 0;
        for (int i = t; i < n; i += SAMPLE_THREADS) q += key_value(s.list[i]) >= kth;
        n = block_count(s.block, q);
    }
    double w[4], sum = 0.0, total;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int i = t * 4 + j;
        w[j] = i < n ? (double)weight(key_value(s.list[i]), top, c) : 0.0;
        sum += w[j];
    }
    double q = block_scan(s.block, sum, &total) - sum;
    double upto[4];
    for (int j = 0; j < 4; j++) {
        q += w[j];
        upto[j] = q;
    }
    double kept = total;
    if (filters_top_p(r)) { /* the smallest prefix that reaches p */
        const double need = (double)r.top_p * total;
        int below = 0;
        for (int j = 0; j < 4; j++) below += t * 4 + j < n && upto[j] < need;
        n = min(block_count(s.block, below) + 1, n);
        for (int j = 0; j < 4; j++) {
            if (t * 4 + j == n - 1) s.cut = upto[j];
        }
        __syncthreads(); /* cut is set */
        kept = s.cut;
    }
    return draw_by_id(s, n, top, c, (double)sample_uniform(r.seed, r.position), kept);
}

/* Temperature alone: the scan has every slice's mass. All threads. */
__device__ static int draw_from_slices(pick_scratch &s, const row_view &v, const sample_row &r,
                                       float top) {
    const kept_set k = {top, LOG2_E / r.temperature, -FLT_MAX, ~0ull};
    clear_extra(s.slices);
    add_entries(s.slices, v, k);
    for (int i = threadIdx.x; i < v.a.n_slices; i += SAMPLE_THREADS) {
        const int o = v.row * v.a.n_slices + i;
        s.slices.mass[i] =
            (double)v.a.sum_top[o] * (double)k.weigh(fmaxf(v.a.slice_top[o], -FLT_MAX));
    }
    return draw_by_slices(s.block, s.slices, v, k, (double)sample_uniform(r.seed, r.position));
}

/* Top-k and min-p through a list: the token, or -1 with *verdict when the list is too short. All
 * threads. */
__device__ static int draw_filtered(pick_scratch &s, const row_view &v, const sample_row &r,
                                    float top, int *verdict) {
    const int k = filters_top_k(r, v.a.n_vocab) ? r.top_k : 0;
    *verdict = k > 0 ? ROW_TOP_K : ROW_PREFIX;
    if (k > TOP_K_LIST || (k == 0 && r.min_p <= 0.0f)) return -1;
    const group_share g(v, false);
    float low = min_p_bound(r, top);
    if (k > 0) {
        low = fmaxf(low, kth_bound(s.block, v, g, s.bins, k, false, top));
    } else { /* every group above the bound holds a candidate: do not begin what cannot end */
        int n = 0;
#pragma unroll
        for (int j = 0; j < GROUP_ROUNDS; j++) n += g.top[j] >= low;
        if (block_count(s.block, n) > LIST_MAX) return -1;
    }
    gather(v, g, low, false, s.list, &s.n);
    const int n = s.n;
    if (n > LIST_MAX) return -1;
    *verdict = ROW_DONE;
    return draw_from_list(s, r, n, k, top);
}

/* Lowest id of the largest adjusted value. All threads. */
__device__ static int greedy(pick_scratch &s, const row_view &v, float top) {
    if (threadIdx.x == 0) s.id = v.a.n_vocab;
    __syncthreads(); /* id is set */
    for (int i = threadIdx.x; i < v.a.n_slices; i += SAMPLE_THREADS) {
        const int o = v.row * v.a.n_slices + i;
        if (v.a.slice_top[o] == top) atomicMin(&s.id, v.a.slice_arg[o]);
    }
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        if (v.entries(false)[i] == top) atomicMin(&s.id, v.entry_id(i));
    }
    __syncthreads(); /* id is the least */
    return s.id;
}

__global__ void __launch_bounds__(SAMPLE_THREADS) sample_pick_kernel(const sample_args a) {
    __shared__ pick_scratch s;
    const int row = blockIdx.x, t = threadIdx.x;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const sample_row r = a.rows[row];
    const row_view v(a, row);
    bool bad = false;
    float top = -INFINITY;
    for (int i = t; i < a.n_slices; i += SAMPLE_THREADS) {
        bad |= a.slice_bad[row * a.n_slices + i] != 0;
        top = fmaxf(top, a.slice_top[row * a.n_slices + i]);
    }
    for (int i = t; i < v.n_entries; i += SAMPLE_THREADS) {
        bad |= !(v.entries(true)[i] < INFINITY);
        top = fmaxf(top, v.entries(false)[i]);
    }
    bad = __syncthreads_or(bad);
    top = block_max(s.block, top);
    if (t == 0) {
        s.n = 0;
        a.row_top[row] = top;
    }
    int verdict = ROW_DONE, id = -1;
    if (bad || (r.target < 0 && is_hole(top))) { /* or every token is forbidden */
        if (t == 0) write_not_finite(a, row);
    } else if (r.target >= 0) {
        id = r.target;
    } else if (r.temperature <= 0.0f) {
        id = greedy(s, v, top);
    } else if (needs_mass(r, a.n_vocab) && !filters_top_p(r)) {
        id = draw_from_slices(s, v, r, top);
    } else {
        id = draw_filtered(s, v, r, top, &verdict);
    }
    if (t == 0) {
        a.pending[row] = verdict;
        if (id >= 0) write_token(a, row, id);
    }
    if (a.restore) {
        __syncthreads(); /* nobody reads the marks any more */
        restore_row(v);
    }
}

status sample_pick_launch(const sample_args *a, bool pdl, cudaStream_t stream) {
    return cuda_launch(sample_pick_kernel, dim3((unsigned)a->n_rows), dim3(SAMPLE_THREADS), 0,
                       stream, pdl, *a);
}
