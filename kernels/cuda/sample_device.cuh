/* Device helpers of the sampling kernels: ordered values, block-wide scan, count and sort, the
 * candidates of a row. A block has SAMPLE_THREADS threads; every helper that says "all threads" is
 * called by all of them. Included by sample_*.cu only. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_DEVICE_CUH
#define INFERD_KERNELS_CUDA_SAMPLE_DEVICE_CUH

#include <float.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sample_internal.h"

#define SAMPLE_THREADS 512
#define SAMPLE_WARPS   (SAMPLE_THREADS / 32)
#define LOG2_E         1.44269504f

typedef unsigned long long u64;

/* The mark of an entry: weight 0, never a candidate, and so is a forbidden token (-infinity). Marks
 * of bias entries carry their index below the mark's bits. */
__device__ __forceinline__ bool is_hole(float v) {
    return v < -3.3e38f;
}
__device__ __forceinline__ float hole(int index) {
    return __uint_as_float(0xff7fffffu - (unsigned)index);
}
__device__ __forceinline__ int hole_index(float v) {
    return (int)(0xff7fffffu - __float_as_uint(v));
}

/* Floats as unsigned integers of the same order; -0 counts as 0. */
__device__ __forceinline__ unsigned ordered(float f) {
    const unsigned u = __float_as_uint(f + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float unordered(unsigned u) {
    return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u);
}
/* 50-bit key: ascending is value descending, id ascending. */
__device__ __forceinline__ u64 key_of(float v, int id) {
    return (u64)(~ordered(v)) << 18 | (unsigned)id;
}
__device__ __forceinline__ float key_value(u64 k) {
    return unordered(~(unsigned)(k >> 18));
}
__device__ __forceinline__ int key_id(u64 k) {
    return (int)(k & 0x3ffff);
}

/* Group of the token at offset o of a slice: 4 runs of one 32-byte sector each. */
__device__ __forceinline__ int group_of(int o) {
    return (o & 1023) >> 3;
}
__device__ __forceinline__ int group_token(int g, int lane) {
    return (lane >> 3) * 1024 + g * 8 + (lane & 7);
}

/* exp2((v - top) * c), 0 for holes (top is finite). */
__device__ __forceinline__ float weight(float v, float top, float c) {
    return ptx::exp2_approx((v - top) * c);
}

__device__ __forceinline__ bool filters_top_k(const sample_row &r, int n_vocab) {
    return r.top_k > 0 && r.top_k < n_vocab;
}
__device__ __forceinline__ bool filters_top_p(const sample_row &r) {
    return r.top_p > 0.0f && r.top_p < 1.0f;
}
__device__ __forceinline__ bool wants_detail(const sample_row &r) {
    return r.logprob || r.n_top > 0 || r.target >= 0;
}
/* The scan sums exp(logit / T) of rows whose draw needs the whole row's mass. */
__device__ __forceinline__ bool needs_mass(const sample_row &r, int n_vocab) {
    return r.target < 0 && r.temperature > 0.0f && r.min_p <= 0.0f && !filters_top_k(r, n_vocab);
}

/* Values below it have less than min_p of the largest probability. */
__device__ __forceinline__ float min_p_bound(const sample_row &r, float top) {
    if (r.min_p <= 0.0f) return -FLT_MAX;
    return r.min_p >= 1.0f ? top : top + r.temperature * logf(r.min_p);
}

/* Shared scratch of the block-wide helpers. */
struct block_scratch {
    double warp[SAMPLE_WARPS];
    int count;
};

/* Inclusive sum over the threads, in a fixed order. All threads. */
__device__ inline double block_scan(block_scratch &s, double x, double *total) {
    const int t = threadIdx.x;
    double y = x;
    for (int d = 1; d < 32; d *= 2) {
        const double z = __shfl_up_sync(ptx::FULL, y, d);
        if (t % 32 >= d) y += z;
    }
    __syncthreads(); /* the last use of warp[] is over */
    if (t % 32 == 31) s.warp[t / 32] = y;
    __syncthreads(); /* warp[] is complete */
    double before = 0.0, all = 0.0;
    for (int i = 0; i < SAMPLE_WARPS; i++) {
        if (i < t / 32) before += s.warp[i];
        all += s.warp[i];
    }
    *total = all;
    return y + before;
}

/* Sum of small counts over the block. All threads. */
__device__ inline int block_count(block_scratch &s, int x) {
    x = __reduce_add_sync(ptx::FULL, x);
    __syncthreads(); /* the last use of count is over */
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads(); /* count is 0 */
    if (threadIdx.x % 32 == 0 && x) atomicAdd(&s.count, x);
    __syncthreads(); /* count is complete */
    return s.count;
}

__device__ inline float block_max(block_scratch &s, float x) {
    for (int d = 1; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(ptx::FULL, x, d));
    __syncthreads(); /* the last use of warp[] is over */
    if (threadIdx.x % 32 == 0) s.warp[threadIdx.x / 32] = (double)x;
    __syncthreads(); /* warp[] is complete */
    for (int i = 0; i < SAMPLE_WARPS; i++) x = fmaxf(x, (float)s.warp[i]);
    return x;
}

/* Bitonic sort of n <= LIST_MAX keys, ascending. All threads. */
__device__ inline void block_sort(u64 *list, int n) {
    int m = 2;
    while (m < n) m *= 2;
    __syncthreads(); /* the list is complete */
    for (int i = n + threadIdx.x; i < m; i += SAMPLE_THREADS) list[i] = ~0ull;
    __syncthreads(); /* and padded to a power of two */
    for (int k = 2; k <= m; k *= 2) {
        for (int j = k / 2; j > 0; j /= 2) {
            for (int i = threadIdx.x; i < m / 2; i += SAMPLE_THREADS) {
                const int p = 2 * i - (i & (j - 1)), q = p + j;
                const u64 x = list[p], y = list[q];
                if ((x > y) == !(p & k)) {
                    list[p] = y;
                    list[q] = x;
                }
            }
            __syncthreads(); /* one compare-exchange stage is done */
        }
    }
}

/* One row as a kernel reads it. */
struct row_view {
    const sample_args &a;
    int row, e0, n_entries;
    const float *logits;

    __device__ row_view(const sample_args &args, int r) : a(args), row(r) {
        e0 = a.entry_start[r];
        n_entries = a.rows[r].n_bias + a.rows[r].n_seen;
        logits = a.logits + (size_t)r * a.stride;
    }
    __device__ int n_groups() const { return a.n_slices * GROUPS; }
    __device__ const float *groups(bool raw) const {
        return (raw ? a.group_raw : a.group_top) + (size_t)row * n_groups();
    }
    __device__ const float *entries(bool raw) const {
        return (raw ? a.entry_raw : a.entry_adj) + e0;
    }
    __device__ int entry_id(int i) const {
        const sample_row &r = a.rows[row];
        return i < r.n_bias ? a.bias[r.i_bias + i].token : a.seen[r.i_seen + i - r.n_bias].token;
    }
    /* May be drawn: raw logits may hold padding rows of the vocabulary. */
    __device__ bool allowed(bool raw, int id) const { return raw || !a.never || !a.never[id]; }
};

/* Appends a key to a list of LIST_MAX; *n counts what was meant to be appended. */
__device__ __forceinline__ void list_push(u64 *list, int *n, u64 k) {
    const int i = atomicAdd(n, 1);
    if (i < LIST_MAX) list[i] = k;
}

/* A row's group maxima, a block's share of them in registers: thread t has groups j *
 * SAMPLE_THREADS
 * + t. All loads are in flight at once; read one by one they took 6 us. */
enum { GROUP_ROUNDS = SAMPLER_VOCAB_MAX / 32 / SAMPLE_THREADS };
struct group_share {
    float top[GROUP_ROUNDS];
    __device__ __forceinline__ group_share(const row_view &v, bool raw) {
        const float *groups = v.groups(raw);
#pragma unroll
        for (int j = 0; j < GROUP_ROUNDS; j++) {
            const int i = j * SAMPLE_THREADS + (int)threadIdx.x;
            top[j] = i < v.n_groups() ? __ldcg(groups + i) : -FLT_MAX;
        }
    }
};

/* A lower bound of the k-th largest value of the row, by a histogram of group maxima (bins of 1/16
 * below `top`; k groups hold k values at least as large). All threads. */
__device__ inline float kth_bound(block_scratch &s, const row_view &v, const group_share &g,
                                  unsigned *bins, int k, bool raw, float top) {
    auto count = [&](float x) {
        if (is_hole(x)) return;
        atomicAdd(bins + (int)fminf(fmaxf((top - x) * 16.0f, 0.0f), BINS - 1.0f), 1u);
    };
    for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) bins[i] = 0;
    __syncthreads(); /* bins are clear */
#pragma unroll
    for (int j = 0; j < GROUP_ROUNDS; j++) count(g.top[j]);
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) count(v.entries(raw)[i]);
    __syncthreads(); /* bins are complete */
    double all;
    const double x0 = bins[2 * threadIdx.x], x1 = bins[2 * threadIdx.x + 1];
    const double upto = block_scan(s, x0 + x1, &all);
    const int b = block_count(s, (upto - x1 < k) + (upto < k));
    return b >= BINS - 1 ? -FLT_MAX : top - (float)(b + 1) * (1.0f / 16.0f) - 1e-6f * fabsf(top);
}

/* All values >= low of the row into list, through the group maxima. *n > LIST_MAX: too many, the
 * list is not complete. *n must be 0. All threads. */
__device__ inline void gather(const row_view &v, const group_share &g, float low, bool raw,
                              u64 *list, int *n) {
    const int t = threadIdx.x, lane = t & 31;
    __syncthreads(); /* *n is set */
#pragma unroll
    for (int j = 0; j < GROUP_ROUNDS; j++) {
        unsigned m = __ballot_sync(ptx::FULL, g.top[j] >= low && !is_hole(g.top[j]));
        if (m && __any_sync(ptx::FULL, *(volatile int *)n > LIST_MAX)) m = 0;
        while (m) { /* the warp reads a group's 32 tokens together */
            const int group = j * SAMPLE_THREADS + (t & ~31) + __ffs((int)m) - 1;
            m &= m - 1;
            const int id = group / GROUPS * SLICE + group_token(group % GROUPS, lane);
            if (id < v.a.n_vocab) {
                const float x = __ldcg(v.logits + id);
                if (x >= low && !is_hole(x) && v.allowed(raw, id)) {
                    list_push(list, n, key_of(x, id));
                }
            }
        }
    }
    for (int i = t; i < v.n_entries; i += SAMPLE_THREADS) {
        const float x = v.entries(raw)[i];
        if (x >= low && !is_hole(x)) list_push(list, n, key_of(x, v.entry_id(i)));
    }
    __syncthreads(); /* the list is complete */
}

/* Runs f(slice, values of the thread's 8 tokens) over the row's slices and then its entries, every
 * n_ranks-th from `rank`, the next slice's loads in flight. Tokens of groups below `low` are not
 * read: they come as holes. What may not be drawn is a hole unless raw. */
template <class F>
__device__ inline void for_each_slice(const row_view &v, bool raw, float low, int rank, int n_ranks,
                                      F f) {
    const int n = v.a.n_slices + (v.n_entries + SLICE - 1) / SLICE;
    const float *groups = v.groups(raw);
    auto load = [&](int s, float(&x)[8]) {
        const int o = s * SLICE + threadIdx.x * 8;
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = -FLT_MAX;
        if (s >= v.a.n_slices) {
            const int e = o - v.a.n_slices * SLICE;
            for (int j = 0; j < 8; j++) {
                if (e + j < v.n_entries) x[j] = v.entries(raw)[e + j];
            }
        } else if (o < v.a.n_vocab && groups[s * GROUPS + group_of(threadIdx.x * 8)] >= low) {
            const float4 p = __ldcg((const float4 *)(v.logits + o));
            const float4 q = __ldcg((const float4 *)(v.logits + o) + 1);
            x[0] = p.x, x[1] = p.y, x[2] = p.z, x[3] = p.w;
            x[4] = q.x, x[5] = q.y, x[6] = q.z, x[7] = q.w;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (o + j >= v.a.n_vocab || !v.allowed(raw, o + j)) x[j] = -FLT_MAX;
            }
        }
    };
    float now[8], next[8];
    if (rank < n) load(rank, now);
    for (int s = rank; s < n; s += n_ranks) {
        if (s + n_ranks < n) load(s + n_ranks, next);
        f(s, now);
#pragma unroll
        for (int j = 0; j < 8; j++) now[j] = next[j];
    }
}
/* Token of value j of slice s in for_each_slice. */
__device__ __forceinline__ int slice_token(const row_view &v, int s, int j) {
    const int o = s * SLICE + threadIdx.x * 8 + j;
    return s < v.a.n_slices ? o : v.entry_id(o - v.a.n_slices * SLICE);
}

/* Puts the row's marked logits back. */
__device__ inline void restore_row(const row_view &v) {
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        const float x = v.entries(true)[i];
        /* A seen token that has a bias too was merged into the bias's entry: marked as a hole here.
         */
        if (__float_as_uint(x) != __float_as_uint(-FLT_MAX)) {
            v.a.logits[(size_t)v.row * v.a.stride + v.entry_id(i)] = x;
        }
    }
}

/* A row with a NaN or +infinity. */
__device__ inline void write_not_finite(const sample_args &a, int row) {
    a.token[row] = -1;
    if (a.out) {
        a.out[row].token = -1;
        a.out[row].finite = false;
        a.out[row].n_top = 0;
    }
}
__device__ inline void write_token(const sample_args &a, int row, int id) {
    a.token[row] = id;
    if (a.out) {
        a.out[row].token = id;
        a.out[row].finite = true;
        a.out[row].n_top = 0;
    }
}
#endif
