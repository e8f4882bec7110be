/* Drawing by inverse CDF in ascending order of token id: mass per slice, then inside one slice.
 * A row's entries (bias, seen) lie outside the logits; their mass joins the slice of their id as
 * integers, so that the order of additions does not matter. Included by sample_pick.cu and
 * sample_prefix.cu. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_SLICES_CUH
#define INFERD_KERNELS_CUDA_SAMPLE_SLICES_CUH

#include "kernels/cuda/sample_device.cuh"

enum { SLICES_MAX = SAMPLER_VOCAB_MAX / SLICE };
#define MASS_UNIT 0x1p44 /* of integer masses: a row's largest weight is 1 */

/* The tokens that are still in the race: value >= low and not behind cut in (value, id) order. */
struct kept_set {
    float top, c, low; /* weight = exp2((v - top) * c) */
    u64 cut;           /* ~0: no cut */
    __device__ __forceinline__ bool has(float v, int id) const {
        return v >= low && !is_hole(v) && (cut == ~0ull || key_of(v, id) <= cut);
    }
    __device__ __forceinline__ float weigh(float v) const { return weight(v, top, c); }
};

struct slice_scratch {
    float w[SLICE];
    double mass[SLICES_MAX];
    u64 extra[SLICES_MAX];
    double x;  /* of the draw: mass inside the slice */
    int slice; /* that it falls into */
    int win, last;
};
static_assert(SLICES_MAX <= 64, "two slices a lane");

/* All threads; extra[] is clear when it returns. */
__device__ inline void clear_extra(slice_scratch &s) {
    __syncthreads(); /* the last use of extra[] is over */
    if (threadIdx.x < SLICES_MAX) s.extra[threadIdx.x] = 0;
    __syncthreads(); /* extra[] is clear */
}
__device__ __forceinline__ void add_extra(slice_scratch &s, int id, float w) {
    atomicAdd(&s.extra[id / SLICE], (u64)((double)w * MASS_UNIT));
}
/* Adds the entries that are kept. All threads; the caller synchronises. */
__device__ inline void add_entries(slice_scratch &s, const row_view &v, const kept_set &k) {
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        const float x = v.entries(false)[i];
        if (is_hole(x)) continue;
        const int id = v.entry_id(i);
        if (k.has(x, id)) add_extra(s, id, k.weigh(x));
    }
}

/* The token at mass x inside a slice. All threads. */
__device__ inline int draw_in_slice(block_scratch &b, slice_scratch &s, const row_view &v,
                                    const kept_set &k, int slice, double x) {
    const int t = threadIdx.x, first = slice * SLICE + t * 8;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int id = first + j;
        const float y = id < v.a.n_vocab ? __ldcg(v.logits + id) : -FLT_MAX;
        s.w[t * 8 + j] = !is_hole(y) && v.allowed(false, id) && k.has(y, id) ? k.weigh(y) : 0.0f;
    }
    if (t == 0) {
        s.win = SLICE;
        s.last = 0;
    }
    __syncthreads(); /* the logits' weights are in place */
    for (int i = t; i < v.n_entries; i += SAMPLE_THREADS) {
        const float y = v.entries(false)[i];
        if (is_hole(y)) continue;
        const int id = v.entry_id(i);
        if (id / SLICE == slice && k.has(y, id)) s.w[id % SLICE] = k.weigh(y);
    }
    __syncthreads(); /* and the entries' */
    double sum = 0.0, all;
    for (int j = 0; j < 8; j++) sum += (double)s.w[t * 8 + j];
    double upto = block_scan(b, sum, &all) - sum;
    int win = SLICE, last = 0; /* one atomic a warp: 4,096 on one address took 6 us */
    for (int j = 0; j < 8; j++) {
        const float w = s.w[t * 8 + j];
        if (w <= 0.0f) continue;
        upto += (double)w;
        last = t * 8 + j;
        if (upto > x && win == SLICE) win = last;
    }
    win = __reduce_min_sync(ptx::FULL, win);
    last = __reduce_max_sync(ptx::FULL, last);
    if (t % 32 == 0) {
        atomicMin(&s.win, win);
        atomicMax(&s.last, last);
    }
    __syncthreads();                               /* win and last are complete */
    const int at = s.win < SLICE ? s.win : s.last; /* rounding: the last that may be drawn */
    return slice * SLICE + at;
}

/* The first warp finds the slice that u falls into and the mass before it: two slices a lane. */
__device__ inline void choose_slice(slice_scratch &s, int n, double u) {
    const int lane = threadIdx.x;
    double m[2];
    for (int j = 0; j < 2; j++) {
        const int i = 2 * lane + j;
        m[j] = i < n ? s.mass[i] + (double)s.extra[i] * (1.0 / MASS_UNIT) : 0.0;
    }
    double upto = m[0] + m[1];
    for (int d = 1; d < 32; d *= 2) {
        const double z = __shfl_up_sync(ptx::FULL, upto, d);
        if (lane >= d) upto += z;
    }
    const double x = u * __shfl_sync(ptx::FULL, upto, 31);
    const double middle = upto - m[1];
    /* Lowest slice with mass that passes x; else (rounding) the last with mass. */
    int first = SLICES_MAX, last = -1;
    if (m[1] > 0.0)
        last = 2 * lane + 1;
    else if (m[0] > 0.0)
        last = 2 * lane;
    if (m[0] > 0.0 && middle > x)
        first = 2 * lane;
    else if (m[1] > 0.0 && upto > x)
        first = 2 * lane + 1;
    first = __reduce_min_sync(ptx::FULL, first);
    last = __reduce_max_sync(ptx::FULL, last);
    const int slice = first < SLICES_MAX ? first : last;
    if (lane == slice / 2) {
        s.slice = slice;
        s.x = x - (slice & 1 ? middle : middle - m[0]);
    }
}

/* Draws with u from the kept set; mass[] holds each slice's kept mass without extra[]. All threads.
 */
__device__ inline int draw_by_slices(block_scratch &b, slice_scratch &s, const row_view &v,
                                     const kept_set &k, double u) {
    __syncthreads(); /* mass[] and extra[] are complete */
    if (threadIdx.x < 32) choose_slice(s, v.a.n_slices, u);
    __syncthreads(); /* slice and x are set */
    return draw_in_slice(b, s, v, k, s.slice, s.x);
}
#endif
