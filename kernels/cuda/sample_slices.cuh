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
    int win, last;
};

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
        s.w[t * 8 + j] =
            !is_hole(y) && v.allowed(false, id) && k.has(y, id) ? k.weigh(y) : 0.0f;
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
    for (int j = 0; j < 8; j++) {
        const float w = s.w[t * 8 + j];
        if (w <= 0.0f) continue;
        upto += (double)w;
        if (upto > x) atomicMin(&s.win, t * 8 + j);
        atomicMax(&s.last, t * 8 + j);
    }
    __syncthreads(); /* win and last are complete */
    const int at = s.win < SLICE ? s.win : s.last; /* rounding: the last that may be drawn */
    return slice * SLICE + at;
}

/* Draws with u from the kept set; mass[] holds each slice's kept mass without extra[]. All threads. */
__device__ inline int draw_by_slices(block_scratch &b, slice_scratch &s, const row_view &v,
                                     const kept_set &k, double u) {
    __syncthreads(); /* mass[] and extra[] are complete */
    const int n = v.a.n_slices;
    double total = 0.0;
    int last = 0;
    for (int i = 0; i < n; i++) {
        const double m = s.mass[i] + (double)s.extra[i] * (1.0 / MASS_UNIT);
        total += m;
        if (m > 0.0) last = i;
    }
    double x = u * total;
    int slice = 0;
    for (; slice < last; slice++) {
        const double m = s.mass[slice] + (double)s.extra[slice] * (1.0 / MASS_UNIT);
        if (x < m) break;
        x -= m;
    }
    return draw_in_slice(b, s, v, k, slice, x);
}
#endif
