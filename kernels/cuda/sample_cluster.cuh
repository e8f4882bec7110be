/* A row's blocks as a cluster (sm_90): barrier, shared memory of the first block, broadcast, and
 * the exact selection that any input ends in. With one block a row everything is block-local, which
 * is what devices before sm_90 run. Included by sample_prefix.cu and sample_detail.cu. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_CLUSTER_CUH
#define INFERD_KERNELS_CUDA_SAMPLE_CLUSTER_CUH

#include "kernels/cuda/sample_device.cuh"

struct select_result {
    u64 key;      /* the value and id where the count or mass reaches `need` */
    double above; /* count or mass before it */
};

struct row_scratch {
    block_scratch block;
    unsigned lo[BINS], hi[BINS]; /* 64-bit sums as words with carry */
    u64 list[LIST_MAX];
    u64 word;
    double number;
    int n_list, last;
};

template <int CL> struct row_cluster {
    row_scratch &s;
    int rank;

    __device__ row_cluster(row_scratch &scratch) : s(scratch), rank(0) {
#if PTX_SM90
        if (CL > 1) asm volatile("mov.u32 %0,%%cluster_ctarank;" : "=r"(rank));
#endif
    }
    /* All threads of all blocks of the row; orders shared memory among them. */
    __device__ void sync() const {
#if PTX_SM90
        if (CL > 1) {
            asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::
                             : "memory");
            return;
        }
#endif
        __syncthreads(); /* one block: its barrier is the cluster's */
    }
    /* The same variable in block k's shared memory. */
    template <class P> __device__ P *remote(P *p, int k) const {
#if PTX_SM90
        if (CL > 1) {
            P *q;
            asm("mapa.u64 %0,%1,%2;" : "=l"(q) : "l"(p), "r"(k));
            return q;
        }
#endif
        return p;
    }
    /* Block 0 thread 0's word, to everybody. */
    __device__ u64 broadcast(u64 x) const {
        if (rank == 0 && threadIdx.x == 0) s.word = x;
        sync();
        const u64 y = *remote(&s.word, 0);
        sync(); /* read by all before it may be written again */
        return y;
    }
    __device__ double broadcast(double x) const {
        return __longlong_as_double((long long)broadcast((u64)__double_as_longlong(x)));
    }
    /* Thread t of block 0 gets bins 2t and 2t + 1 summed over the blocks. */
    __device__ void collect_bins(double (&x)[2]) const {
        for (int q = 0; q < 2; q++) {
            u64 w = 0;
            for (int k = 0; k < CL; k++) {
                w += ((u64)remote(s.hi, k)[2 * threadIdx.x + q] << 32) +
                     remote(s.lo, k)[2 * threadIdx.x + q];
            }
            x[q] = (double)w;
        }
    }
    __device__ void clear_bins() const {
        for (int i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) s.lo[i] = s.hi[i] = 0;
        sync();
    }
    __device__ void add_small(int bin, unsigned w) const {
        const unsigned old = atomicAdd(s.lo + bin, w);
        if (old + w < old) atomicAdd(s.hi + bin, 1u);
    }
    __device__ void add(int bin, u64 w) const {
        const unsigned l = (unsigned)w, old = atomicAdd(s.lo + bin, l);
        const unsigned h = (unsigned)(w >> 32) + (old + l < old);
        if (h) atomicAdd(s.hi + bin, h);
    }

    /* Walks the 50-bit (value, id) order of values >= low by radix, 10 bits a read: the first key
     * at which the count (c == 0) or mass reaches need; strict: passes need. Exact for any input;
     * five reads. All threads of all blocks. */
    __device__ select_result select(const row_view &v, bool raw, float low, float c, float top,
                                    double need, bool strict) const {
        select_result r = {0, 0.0};
        const double unit = c == 0.0f ? 1.0 : 0x1p-44;
        for (int shift = 40; shift >= 0; shift -= 10) {
            clear_bins();
            for_each_slice(v, raw, low, rank, CL, [&](int slice, const float(&x)[8]) {
                for (int j = 0; j < 8; j++) {
                    int bin = -1;
                    u64 w = 0;
                    if (x[j] >= low && !is_hole(x[j])) {
                        const u64 k = key_of(x[j], slice_token(v, slice, j));
                        if (shift == 40 || k >> (shift + 10) == r.key) {
                            bin = (int)(k >> shift) & 1023;
                            w = c == 0.0f ? 1 : (u64)((double)weight(x[j], top, c) * 0x1p44);
                        }
                    }
                    int same; /* equal logits meet in one bin: add once a warp */
                    __match_all_sync(ptx::FULL, bin, &same);
                    if (same) {
                        for (int d = 1; d < 32; d *= 2) w += __shfl_xor_sync(ptx::FULL, w, d);
                        if (threadIdx.x % 32) w = 0;
                    }
                    if (bin >= 0 && w) add(bin, w);
                }
            });
            sync(); /* the bins of all blocks are complete */
            if (rank == 0) step_select(r, unit, need, strict);
            sync(); /* block 0's choice is made */
            r.key = r.key << 10 | *remote(&s.word, 0);
            r.above = *remote(&s.number, 0);
            sync(); /* and read by all */
        }
        return r;
    }

  private:
    __device__ void step_select(const select_result &r, double unit, double need,
                                bool strict) const {
        const int t = threadIdx.x;
        double x[2], all;
        collect_bins(x);
        x[0] *= unit;
        x[1] *= unit;
        const double upto1 = r.above + block_scan(s.block, x[0] + x[1], &all), upto0 = upto1 - x[1];
        const int before =
            strict ? (upto0 <= need) + (upto1 <= need) : (upto0 < need) + (upto1 < need);
        int b = block_count(s.block, before);
        if (b >= BINS) { /* rounding: the last bin that holds anything */
            if (t == 0) s.last = 0;
            __syncthreads(); /* last is 0 */
            if (x[0] > 0.0 || x[1] > 0.0) atomicMax(&s.last, 2 * t + (x[1] > 0.0));
            __syncthreads(); /* last is complete */
            b = s.last;
        }
        if (t == b / 2) {
            s.word = (u64)b;
            s.number = b & 1 ? upto0 : upto0 - x[0];
        }
    }
};

/* One cluster of `cluster` blocks a row. */
static inline status cuda_launch_cluster(void (*kernel)(const sample_args), const sample_args &a,
                                         int cluster, bool pdl, cudaStream_t stream) {
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute at[2];
    c.gridDim = dim3((unsigned)(a.n_rows * cluster));
    c.blockDim = dim3(SAMPLE_THREADS);
    c.stream = stream;
    c.attrs = at;
    if (cluster > 1) {
        at[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
        at[c.numAttrs].val.clusterDim.x = (unsigned)cluster;
        at[c.numAttrs].val.clusterDim.y = at[c.numAttrs].val.clusterDim.z = 1;
        c.numAttrs++;
    }
    if (pdl) {
        at[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        at[c.numAttrs].val.programmaticStreamSerializationAllowed = 1;
        c.numAttrs++;
    }
    return cuda_status(cudaLaunchKernelEx(&c, kernel, a));
}
#endif
