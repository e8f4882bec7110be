/* Draws the rows that pick left: temperature alone, top-p alone, candidates too many for a list.
 *   a cluster of 1-8 blocks a row (1 before sm_90), 512 threads each; the result does not depend on it
 *   Drawing by inverse CDF in descending order is finding the shortest prefix whose mass passes u; top-p
 *   is the same question with p. One read makes a histogram of mass over value (32 bins a factor of 2,
 *   integer weights, so that the order of additions does not matter); a second read collects the bins
 *   that p and u fall into; these are sorted and cut exactly. Tokens that cannot lie in the prefix are
 *   skipped by group maximum: all below (1 - p) Z / V together weigh less than 1 - p.
 *   A bin of more than 2,048 tokens (equal logits): radix select over (value, id), always exact
 *   bytes: 2 reads of what the prefix may hold; at most 2 * 4 * n_vocab a row
 *   numerics: weights in float32 with 24 bits below the bin's top; sums in double, fixed order */
#include "kernels/cuda/sample_cluster.cuh"

namespace {

constexpr float BINS_A_FACTOR_2 = 32.0f;

struct prefix_row {
    float top, c, low;   /* largest value; log2(e) / T; nothing below low is a candidate */
    double mass;         /* of all candidates */
    double need;         /* p * mass; 0: no top-p */
    double u;            /* the draw */
    int cut_bin;         /* where need is reached; -1: no top-p */
    int draw_lo, draw_hi; /* bins that the draw may fall into */
    double before_cut, before_draw; /* mass before cut_bin, before draw_lo */
};

__device__ int bin_of(const prefix_row &p, float v) {
    return (int)fminf((p.top - v) * p.c * BINS_A_FACTOR_2, BINS - 1.0f);
}

/* Mass of the row from the scan's slice sums and the entries, in a fixed order. All threads. */
__device__ double row_mass(row_scratch &s, const row_view &v, const prefix_row &p) {
    double x = 0.0, all;
    for (int i = threadIdx.x; i < v.a.n_slices; i += SAMPLE_THREADS) {
        const int o = v.row * v.a.n_slices + i;
        const float top = fmaxf(v.a.slice_top[o], -FLT_MAX);
        x += (double)v.a.sum_top[o] * (double)weight(top, p.top, p.c);
    }
    for (int i = threadIdx.x; i < v.n_entries; i += SAMPLE_THREADS) {
        const float y = v.entries(false)[i];
        if (!is_hole(y)) x += (double)weight(y, p.top, p.c);
    }
    block_scan(s.block, x, &all);
    return all;
}

/* Bin at which mass passes (strict) or reaches need, and the mass before it. Block 0, all threads.
 * upto: the thread's two inclusive sums; x: its two bins. */
__device__ int find_bin(row_scratch &s, const double (&upto)[2], const double (&x)[2], double need,
                        bool strict, double *before) {
    const int n = strict ? (upto[0] <= need) + (upto[1] <= need)
                         : (upto[0] < need) + (upto[1] < need);
    int b = block_count(s.block, n);
    if (b >= BINS) {
        if (threadIdx.x == 0) s.last = 0;
        __syncthreads(); /* last is 0 */
        if (x[0] > 0.0 || x[1] > 0.0) atomicMax(&s.last, 2 * threadIdx.x + (x[1] > 0.0));
        __syncthreads(); /* last is complete */
        b = s.last;
    }
    if ((int)threadIdx.x == b / 2) s.number = b & 1 ? upto[0] : upto[0] - x[0];
    __syncthreads(); /* number is set */
    const double r = s.number;
    __syncthreads(); /* and read */
    *before = r;
    return b;
}

/* First read: the histogram, and in block 0 the bins that matter. */
template <int CL>
__device__ void histogram(const row_cluster<CL> &cl, const row_view &v, prefix_row &p, bool whole) {
    row_scratch &s = cl.s;
    float skip = p.low;
    if (whole) { /* mass known: what lies below the prefix need not be read */
        const float rest = 1.0f - (float)(p.need > 0.0 ? p.need / p.mass : p.u);
        skip = p.top + log2f(rest * 0.99f * (float)p.mass / (float)v.a.n_vocab) / p.c -
               1e-5f * fabsf(p.top);
        skip = fmaxf(skip, p.low);
    }
    cl.clear_bins();
    for_each_slice(v, false, skip, cl.rank, CL, [&](int, const float(&x)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (x[j] >= skip && !is_hole(x[j])) {
                const float d = (p.top - x[j]) * p.c;
                const int b = bin_of(p, x[j]);
                const float w = ptx::exp2_approx((float)b * (1.0f / BINS_A_FACTOR_2) - d);
                cl.add(b, __float2uint_rn(w * 0x1p24f));
            }
        }
    });
    cl.sync(); /* the bins of all blocks are complete */
    if (cl.rank == 0) {
        double x[2], upto[2], all;
        cl.collect_bins(x);
        for (int q = 0; q < 2; q++) {
            x[q] *= 0x1p-24 * (double)exp2f(-(float)(2 * threadIdx.x + q) / BINS_A_FACTOR_2);
        }
        upto[1] = block_scan(s.block, x[0] + x[1], &all);
        upto[0] = upto[1] - x[1];
        if (!whole) {
            p.mass = all;
            p.need *= all;
        }
        double from = p.u * p.mass, to = from;
        if (p.need > 0.0) {
            p.cut_bin = find_bin(s, upto, x, p.need, false, &p.before_cut);
            if ((int)threadIdx.x == p.cut_bin / 2) s.cum[0] = upto[p.cut_bin & 1];
            __syncthreads(); /* mass up to the cut bin's end is set */
            from = p.u * p.before_cut;
            to = p.u * s.cum[0];
        }
        double unused;
        p.draw_lo = find_bin(s, upto, x, from, true, &p.before_draw);
        p.draw_hi = max(p.draw_lo, find_bin(s, upto, x, to, true, &unused));
    }
    cl.sync(); /* block 0 has read every block's bins */
    p.cut_bin = (int)(long long)cl.broadcast((u64)(long long)p.cut_bin);
    p.draw_lo = (int)cl.broadcast((u64)p.draw_lo);
    p.draw_hi = (int)cl.broadcast((u64)p.draw_hi);
}

/* Second read: the tokens of the cut bin and of the draw's bins, into block 0's lists. */
template <int CL>
__device__ void collect(const row_cluster<CL> &cl, const row_view &v, const prefix_row &p) {
    row_scratch &s0 = *cl.remote(&cl.s, 0);
    const int last = max(p.cut_bin, p.draw_hi);
    float skip = p.low; /* the lowest value of the last bin, with room for rounding */
    if (last < BINS - 1) {
        skip = fmaxf(skip, p.top - ((float)last + 1.01f) / (BINS_A_FACTOR_2 * p.c) -
                               1e-6f * fabsf(p.top));
    }
    for_each_slice(v, false, skip, cl.rank, CL, [&](int slice, const float(&x)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (x[j] >= skip && x[j] >= p.low && !is_hole(x[j])) {
                const int b = bin_of(p, x[j]);
                const bool cut = b == p.cut_bin, draw = b >= p.draw_lo && b <= p.draw_hi;
                if (cut || draw) {
                    const u64 k = key_of(x[j], slice_token(v, slice, j));
                    if (cut) list_push(s0.list, &s0.n_list, k);
                    if (draw) list_push(s0.draw, &s0.n_draw, k);
                }
            }
        }
    });
    cl.sync(); /* the lists are complete */
}

/* Index in a sorted list at which mass, `before` included, passes (strict) or reaches need; *upto is
 * the mass up to and with it. Block 0, all threads. */
__device__ int find_in_list(row_scratch &s, const u64 *list, int n, const prefix_row &p,
                            double before, double need, bool strict, double *upto) {
    double w[4], sum = 0.0, all;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int i = threadIdx.x * 4 + j;
        w[j] = i < n ? (double)weight(key_value(list[i]), p.top, p.c) : 0.0;
        sum += w[j];
    }
    double q = before + block_scan(s.block, sum, &all) - sum, end[4];
    int passed = 0;
    for (int j = 0; j < 4; j++) {
        q += w[j];
        end[j] = q;
        passed += threadIdx.x * 4 + j < n && (strict ? q <= need : q < need);
    }
    const int at = min(block_count(s.block, passed), n - 1);
    for (int j = 0; j < 4; j++) {
        if ((int)threadIdx.x * 4 + j == at) s.number = end[j];
    }
    __syncthreads(); /* number is set */
    *upto = s.number;
    __syncthreads(); /* and read */
    return at;
}

/* The token, or -1 when a list overflowed. Block 0, all threads. */
__device__ int draw_from_bins(row_scratch &s, const prefix_row &p) {
    double kept = p.mass, unused;
    const int n = s.n_list, m = s.n_draw;
    if (p.cut_bin >= 0) {
        if (n > LIST_MAX || n == 0) return -1;
        block_sort(s.list, n);
        const int cut = find_in_list(s, s.list, n, p, p.before_cut, p.need, false, &kept);
        const double x = p.u * kept;
        if (x >= p.before_cut) {
            const int i = find_in_list(s, s.list, n, p, p.before_cut, x, true, &unused);
            return key_id(s.list[min(i, cut)]);
        }
    }
    if (m > LIST_MAX || m == 0) return -1;
    block_sort(s.draw, m);
    return key_id(
        s.draw[find_in_list(s, s.draw, m, p, p.before_draw, p.u * kept, true, &unused)]);
}

/* By radix select: equal logits by the thousand. All threads of all blocks. */
template <int CL>
__device__ int draw_by_select(const row_cluster<CL> &cl, const row_view &v, const prefix_row &p) {
    double kept = cl.broadcast(p.mass);
    const double need = cl.broadcast(p.need);
    if (need > 0.0) {
        const select_result cut = cl.select(v, false, p.low, p.c, p.top, need, false);
        kept = cut.above + (double)weight(key_value(cut.key), p.top, p.c);
        if (p.u * kept >= cut.above) return key_id(cut.key);
    }
    return key_id(cl.select(v, false, p.low, p.c, p.top, p.u * kept, true).key);
}

template <int CL>
__device__ void draw_row(const row_cluster<CL> &cl, const row_view &v, const sample_row &r,
                         int pending) {
    row_scratch &s = cl.s;
    prefix_row p = {};
    p.top = v.a.row_top[v.row];
    p.c = LOG2_E / r.temperature;
    p.low = min_p_bound(r, p.top);
    p.u = (double)sample_uniform(r.seed, r.position);
    p.cut_bin = -1;
    const bool top_p = filters_top_p(r), whole = needs_mass(r, v.a.n_vocab);
    if (pending == ROW_TOP_K) {
        /* The k-th value among the survivors of min-p, or the last of fewer. */
        const u64 k = cl.select(v, false, p.low, 0.0f, p.top, (double)r.top_k, false).key;
        p.low = fmaxf(p.low, key_value(k));
    }
    if (whole) p.mass = row_mass(s, v, p);
    p.need = top_p ? (double)r.top_p * (whole ? p.mass : 1.0) : 0.0;
    if (threadIdx.x == 0) s.n_list = s.n_draw = 0;
    histogram(cl, v, p, whole);
    collect(cl, v, p);
    int id = -1;
    if (cl.rank == 0) id = draw_from_bins(s, p);
    id = (int)(long long)cl.broadcast((u64)(long long)id);
    if (id < 0) id = draw_by_select(cl, v, p);
    if (cl.rank == 0 && threadIdx.x == 0) write_token(v.a, v.row, id);
}

template <int CL>
__global__ void __launch_bounds__(SAMPLE_THREADS, CL == 8 ? 1 : 2)
    sample_prefix_kernel(const sample_args a) {
    __shared__ row_scratch s;
    const row_cluster<CL> cl(s);
    const row_view v(a, blockIdx.x / CL);
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const int pending = a.pending[v.row];
    if (pending != ROW_DONE) {
        draw_row(cl, v, a.rows[v.row], pending);
        cl.sync(); /* no block leaves while another reads its shared memory */
    }
    if (a.restore && cl.rank == 0) restore_row(v);
}

} // namespace

status sample_prefix_launch(const sample_args *a, int cluster, bool pdl, cudaStream_t stream) {
    switch (cluster) {
    case 8: return cuda_launch_cluster(sample_prefix_kernel<8>, *a, 8, pdl, stream);
    case 4: return cuda_launch_cluster(sample_prefix_kernel<4>, *a, 4, pdl, stream);
    case 2: return cuda_launch_cluster(sample_prefix_kernel<2>, *a, 2, pdl, stream);
    default: return cuda_launch_cluster(sample_prefix_kernel<1>, *a, 1, pdl, stream);
    }
}
