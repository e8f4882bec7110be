/* Draws the rows that pick left: top-p alone, and candidates too many for a list.
 *   a cluster of 1-8 blocks a row (1 before sm_90), 512 threads each; the token does not depend on
 *   their number
 *   top-p, first read: a histogram of mass over value (32 bins a factor of 2, integer weights, so
 *   that the order of additions does not matter) gives the bin where the mass reaches p
 *   second read: the mass above that bin slice by slice; the bin itself is collected, sorted and
 *   cut exactly. The draw picks a slice by its mass and a token inside it, by ascending id
 *   tokens that cannot lie in the prefix are skipped by group maximum: all below (1 - p) Z / V
 *   together weigh less than 1 - p
 *   a bin of more than 2,048 tokens (equal logits): radix select over (value, id), always exact
 *   bytes: 2 reads of what the prefix may hold, at most 2 * 4 * n_vocab a row, and one slice
 *   measured (H200), a whole step at p = 0.9, T = 1, flat logits: 1, 64 rows 44, 122 us
 *   numerics: weights in float32 with 24 bits below the bin's top; sums in double, fixed order */
#include "kernels/cuda/sample_cluster.cuh"
#include "kernels/cuda/sample_slices.cuh"

namespace {

constexpr float BINS_A_FACTOR_2 = 32.0f;

struct prefix_scratch {
    row_scratch row;
    slice_scratch slices;
    float partial[SLICES_MAX][SAMPLE_WARPS];
};

struct prefix_row {
    kept_set kept;
    double mass;       /* of all candidates; known before the histogram when whole */
    double need;       /* p * mass */
    double before_cut; /* mass before cut_bin */
    int cut_bin;       /* where need is reached */
    bool whole;        /* the scan has summed the row: no candidate is filtered yet */
};

__device__ int bin_of(const kept_set &k, float v) {
    return (int)fminf((k.top - v) * k.c * BINS_A_FACTOR_2, BINS - 1.0f);
}

/* Mass of the row from the scan's slice sums and the entries, in a fixed order. All threads. */
__device__ double row_mass(row_scratch &s, const row_view &v, const kept_set &k) {
    double x = 0.0, all;
    for (int i = threadIdx.x; i < v.a.n_slices; i += SAMPLE_THREADS) {
        const int o = v.row * v.a.n_slices + i;
        x += (double)v.a.sum_top[o] * (double)k.weigh(fmaxf(v.a.slice_top[o], -FLT_MAX));
    }
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        const float y = v.entries(false)[i];
        if (!is_hole(y)) x += (double)k.weigh(y);
    }
    block_scan(s.block, x, &all);
    return all;
}

/* Block 0: the bin at which the mass reaches need. All its threads. */
__device__ void find_cut_bin(row_scratch &s, prefix_row &p, double (&x)[2], float top_p) {
    double upto[2], all;
    for (int q = 0; q < 2; q++) {
        x[q] *= 0x1p-24 * (double)exp2f(-(float)(2 * threadIdx.x + q) / BINS_A_FACTOR_2);
    }
    upto[1] = block_scan(s.block, x[0] + x[1], &all);
    upto[0] = upto[1] - x[1];
    if (!p.whole) p.need = (double)top_p * all;
    int b = block_count(s.block, (upto[0] < p.need) + (upto[1] < p.need));
    if (b >= BINS) { /* rounding: the last bin that holds anything */
        if (threadIdx.x == 0) s.last = 0;
        __syncthreads(); /* last is 0 */
        if (x[0] > 0.0 || x[1] > 0.0) atomicMax(&s.last, 2 * threadIdx.x + (x[1] > 0.0));
        __syncthreads(); /* last is complete */
        b = s.last;
    }
    if ((int)threadIdx.x == b / 2) s.number = b & 1 ? upto[0] : upto[0] - x[0];
    __syncthreads(); /* number is set */
    p.cut_bin = b;
    p.before_cut = s.number;
}

/* First read: mass over value, to p.cut_bin everywhere, p.need and p.before_cut in block 0. */
template <int CL>
__device__ void histogram(const row_cluster<CL> &cl, const row_view &v, prefix_row &p,
                          float top_p) {
    const kept_set k = p.kept;
    float skip = k.low;
    if (p.whole) { /* what lies below the prefix need not be read */
        const float rest = (1.0f - top_p) * 0.99f * (float)p.mass / (float)v.a.n_vocab;
        skip = fmaxf(skip, k.top + log2f(rest) / k.c - 1e-5f * fabsf(k.top));
    }
    cl.clear_bins();
    for_each_slice(v, false, skip, cl.rank, CL, [&](int, const float(&x)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (x[j] >= skip && !is_hole(x[j])) {
                const float d = (k.top - x[j]) * k.c;
                const int b = bin_of(k, x[j]);
                const float w = ptx::exp2_approx((float)b * (1.0f / BINS_A_FACTOR_2) - d);
                cl.add_small(b, __float2uint_rn(w * 0x1p24f));
            }
        }
    });
    cl.sync(); /* the bins of all blocks are complete */
    if (cl.rank == 0) {
        double x[2];
        cl.collect_bins(x);
        find_cut_bin(cl.s, p, x, top_p);
    }
    p.cut_bin = (int)cl.broadcast((u64)p.cut_bin);
}

/* A read that leaves block 0 with each slice's kept mass (entries in extra[]). with_cut: tokens of
 * cut_bin are left out and go to block 0's list instead. */
template <int CL>
__device__ void sum_slices(const row_cluster<CL> &cl, prefix_scratch &s, const row_view &v,
                           const prefix_row &p, bool with_cut) {
    const kept_set k = p.kept;
    prefix_scratch &s0 = *cl.remote(&s, 0);
    float skip = k.cut == ~0ull ? k.low : fmaxf(k.low, key_value(k.cut));
    if (with_cut && p.cut_bin < BINS - 1) { /* the bin's lowest value, with room for rounding */
        skip = fmaxf(skip, k.top - ((float)p.cut_bin + 1.01f) / (BINS_A_FACTOR_2 * k.c) -
                               1e-6f * fabsf(k.top));
    }
    clear_extra(s.slices);
    if (threadIdx.x == 0) s.row.n_list = 0;
    cl.sync(); /* block 0's list and extra[] are empty */
    for_each_slice(v, false, skip, cl.rank, CL, [&](int slice, const float(&x)[8]) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (!(x[j] >= skip) || is_hole(x[j])) continue;
            const int id = slice_token(v, slice, j);
            if (!k.has(x[j], id)) continue;
            const int b = with_cut ? bin_of(k, x[j]) : -1;
            if (with_cut && b >= p.cut_bin) {
                if (b == p.cut_bin) list_push(s0.row.list, &s0.row.n_list, key_of(x[j], id));
            } else if (slice < v.a.n_slices) {
                sum += k.weigh(x[j]);
            } else {
                add_extra(s0.slices, id, k.weigh(x[j]));
            }
        }
        for (int d = 1; d < 32; d *= 2) sum += __shfl_xor_sync(ptx::FULL, sum, d);
        if (threadIdx.x % 32 == 0 && slice < v.a.n_slices) {
            s.partial[slice][threadIdx.x / 32] = sum;
        }
    });
    __syncthreads(); /* this block's partial sums are complete */
    for (int i = cl.rank + CL * threadIdx.x; i < v.a.n_slices; i += CL * SAMPLE_THREADS) {
        double m = 0.0;
        for (int w = 0; w < SAMPLE_WARPS; w++) m += (double)s.partial[i][w];
        s0.slices.mass[i] = m;
    }
    cl.sync(); /* block 0 has every slice's mass */
}

/* Block 0: sorts the cut bin, finds where the mass reaches need, adds what stays to the slices.
 * Returns the cut key, or 0 when the list is not complete. All its threads. */
__device__ u64 cut_list(prefix_scratch &s, const prefix_row &p) {
    const int n = s.row.n_list;
    if (n > LIST_MAX || n == 0) return 0;
    block_sort(s.row.list, n);
    double w[4], sum = 0.0, all;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int i = threadIdx.x * 4 + j;
        w[j] = i < n ? (double)p.kept.weigh(key_value(s.row.list[i])) : 0.0;
        sum += w[j];
    }
    double upto = p.before_cut + block_scan(s.row.block, sum, &all) - sum;
    int below = 0;
    for (int j = 0; j < 4; j++) {
        upto += w[j];
        below += threadIdx.x * 4 + j < n && upto < p.need;
    }
    const int at = min(block_count(s.row.block, below), n - 1);
    for (int j = 0; j < 4; j++) {
        const int i = threadIdx.x * 4 + j;
        if (i <= at) add_extra(s.slices, key_id(s.row.list[i]), (float)w[j]);
    }
    return s.row.list[at];
}

template <int CL>
__device__ void draw_row(const row_cluster<CL> &cl, prefix_scratch &s, const row_view &v,
                         const sample_row &r, int pending) {
    prefix_row p = {};
    const float top = v.a.row_top[v.row];
    p.kept = kept_set{top, LOG2_E / r.temperature, min_p_bound(r, top), ~0ull};
    p.whole = needs_mass(r, v.a.n_vocab);
    if (pending == ROW_TOP_K) {
        /* The k-th value among the survivors of min-p, or the last of fewer. */
        const u64 k = cl.select(v, false, p.kept.low, 0.0f, top, (double)r.top_k, false).key;
        p.kept.low = fmaxf(p.kept.low, key_value(k));
    }
    if (filters_top_p(r)) {
        if (p.whole) p.mass = row_mass(s.row, v, p.kept);
        p.need = (double)r.top_p * p.mass;
        histogram(cl, v, p, r.top_p);
        sum_slices(cl, s, v, p, true);
        u64 cut = 0;
        if (cl.rank == 0) cut = cut_list(s, p);
        cut = cl.broadcast(cut);
        if (cut == 0) { /* equal logits by the thousand */
            const double need = cl.broadcast(p.need);
            p.kept.cut = cl.select(v, false, p.kept.low, p.kept.c, top, need, false).key;
            sum_slices(cl, s, v, p, false);
        }
        if (cut != 0) p.kept.cut = cut;
    } else {
        sum_slices(cl, s, v, p, false);
    }
    if (cl.rank != 0) return;
    const int id = draw_by_slices(s.row.block, s.slices, v, p.kept,
                                  (double)sample_uniform(r.seed, r.position));
    if (threadIdx.x == 0) write_token(v.a, v.row, id);
}

template <int CL>
__global__ void __launch_bounds__(SAMPLE_THREADS, CL == 8 ? 1 : 2)
    sample_prefix_kernel(const sample_args a) {
    __shared__ prefix_scratch s;
    const row_cluster<CL> cl(s.row);
    const row_view v(a, blockIdx.x / CL);
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const int pending = a.pending[v.row];
    if (pending != ROW_DONE) {
        draw_row(cl, s, v, a.rows[v.row], pending);
        cl.sync(); /* no block leaves while another reads its shared memory */
    }
    if (a.restore && cl.rank == 0) restore_row(v);
}

} // namespace

status sample_prefix_launch(const sample_args *a, int cluster, bool pdl, cudaStream_t stream) {
    switch (cluster) {
    case 8:
        return cuda_launch_cluster(sample_prefix_kernel<8>, *a, 8, pdl, stream);
    case 4:
        return cuda_launch_cluster(sample_prefix_kernel<4>, *a, 4, pdl, stream);
    case 2:
        return cuda_launch_cluster(sample_prefix_kernel<2>, *a, 2, pdl, stream);
    default:
        return cuda_launch_cluster(sample_prefix_kernel<1>, *a, 1, pdl, stream);
    }
}
