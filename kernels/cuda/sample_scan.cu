/* The one full read of the logits.
 *   per 32-token group: maximum; per 4,096-token slice: maximum, its lowest id, sums of exp
 *   relative to it (at the row's temperature, and raw) where the row needs them, not-finite flag
 *   grid (slices, rows), 256 threads, 16 tokens each; logits read once with 16-byte loads
 *   bytes: 4 * rows * n_vocab: 64 rows of 151,936: 38.9 MB = 8.8 us at 4.43 TB/s
 *   greedy-only batch: nothing but the maximum; the last slice of a row writes its token
 *   numerics: float32 sums in a fixed order within a slice; a NaN or +infinity marks the row
 * Measured (H200), greedy batch of 151,936 tokens: 1, 8, 64, 256 rows 2.4, 3.1, 8.8, 41.8 us. */
#include "kernels/cuda/sample_device.cuh"

#define SCAN_THREADS 256
#define SCAN_WARPS   (SCAN_THREADS / 32)
#define SCAN_TOKENS  (SLICE / SCAN_THREADS)

struct scan_scratch {
    float top[SCAN_WARPS], raw[SCAN_WARPS], sum_top[SCAN_WARPS], sum_raw[SCAN_WARPS];
    unsigned arg;
    int bad;
};

/* Token of the thread's j-th value: 4 runs of 4. */
__device__ __forceinline__ int scan_token(int j) {
    return (j / 4) * SCAN_THREADS * 4 + threadIdx.x * 4 + j % 4;
}

__device__ __forceinline__ float warp_top(float x, int from) {
    for (int d = from; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(ptx::FULL, x, d));
    return x;
}

__device__ __forceinline__ void load_slice(const sample_args &a, int row, int slice,
                                           float (&v)[SCAN_TOKENS]) {
    const float *logits = a.logits + (size_t)row * a.stride + (size_t)slice * SLICE;
    const int n = a.n_vocab - slice * SLICE;
#pragma unroll
    for (int i = 0; i < SCAN_TOKENS / 4; i++) {
        const int o = scan_token(4 * i);
        float4 x = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (o < n) x = __ldcg((const float4 *)(logits + o));
        v[4 * i] = x.x;
        v[4 * i + 1] = o + 1 < n ? x.y : -INFINITY;
        v[4 * i + 2] = o + 2 < n ? x.z : -INFINITY;
        v[4 * i + 3] = o + 3 < n ? x.w : -INFINITY;
    }
}

/* What may not be drawn becomes -infinity. */
__device__ __forceinline__ void apply_never(const sample_args &a, int slice,
                                            float (&v)[SCAN_TOKENS]) {
#pragma unroll
    for (int i = 0; i < SCAN_TOKENS / 4; i++) {
        const int id = slice * SLICE + scan_token(4 * i);
        if (id < a.n_vocab) {
            const uchar4 n = *(const uchar4 *)(a.never + id);
            if (n.x) v[4 * i] = -INFINITY;
            if (n.y) v[4 * i + 1] = -INFINITY;
            if (n.z) v[4 * i + 2] = -INFINITY;
            if (n.w) v[4 * i + 3] = -INFINITY;
        }
    }
}

__device__ __forceinline__ float max_of(const float (&v)[SCAN_TOKENS]) {
    float m = v[0];
#pragma unroll
    for (int j = 1; j < SCAN_TOKENS; j++) m = fmaxf(m, v[j]);
    return m;
}

/* The last slice of a row to arrive turns the row's best key into its token. */
__device__ static void finish_greedy(const sample_args &a, int row, float top, unsigned arg,
                                     bool bad) {
    const u64 key = bad ? ~0ull : (u64)ordered(top) << 32 | (u64)(~arg & 0xffffffffu);
    atomicMax(a.best + row, key);
    __threadfence(); /* the key is out before the ticket */
    if (atomicAdd(a.ticket + row, 1u) != (unsigned)a.n_slices - 1) return;
    __threadfence(); /* the other slices' keys are seen */
    const u64 k = atomicExch(a.best + row, 0ull);
    a.ticket[row] = 0;
    a.token[row] = k == ~0ull ? -1 : (int)~(unsigned)k;
}

__device__ static void write_sums(const sample_args &a, int row, int slice, scan_scratch &s,
                                  const float (&v)[SCAN_TOKENS], float raw_sum_in, float top) {
    const sample_row &r = a.rows[row];
    const int t = threadIdx.x;
    float sum_top = 0.0f;
    if (needs_mass(r, a.n_vocab)) {
        const float c = LOG2_E / r.temperature, from = fmaxf(top, -FLT_MAX);
#pragma unroll
        for (int j = 0; j < SCAN_TOKENS; j++) sum_top += weight(v[j], from, c);
    }
    for (int d = 1; d < 32; d *= 2) {
        sum_top += __shfl_xor_sync(ptx::FULL, sum_top, d);
        raw_sum_in += __shfl_xor_sync(ptx::FULL, raw_sum_in, d);
    }
    if (t % 32 == 0) {
        s.sum_top[t / 32] = sum_top;
        s.sum_raw[t / 32] = raw_sum_in;
    }
    __syncthreads(); /* the warps' sums, arg and bad are complete */
    if (t != 0) return;
    float x = 0.0f, y = 0.0f;
    for (int i = 0; i < SCAN_WARPS; i++) {
        x += s.sum_top[i];
        y += s.sum_raw[i];
    }
    const int o = row * a.n_slices + slice;
    a.slice_top[o] = top;
    a.sum_top[o] = x;
    a.sum_raw[o] = y;
    a.slice_arg[o] = (int)s.arg;
    a.slice_bad[o] = s.bad;
}

template <bool GREEDY>
__global__ void __launch_bounds__(SCAN_THREADS) sample_scan_kernel(const sample_args a) {
    __shared__ scan_scratch s;
    const int slice = blockIdx.x, row = blockIdx.y, t = threadIdx.x;
    float v[SCAN_TOKENS];
    ptx::pdl_trigger();
    ptx::pdl_wait();
    load_slice(a, row, slice, v);
    bool bad = false;
#pragma unroll
    for (int j = 0; j < SCAN_TOKENS; j++) bad |= !(v[j] < INFINITY);
    if (t == 0) {
        s.arg = 0xffffffffu;
        s.bad = 0;
    }
    const size_t group = ((size_t)row * a.n_slices + slice) * GROUPS + t / 2;
    float sum_raw = 0.0f;
    if (!GREEDY) { /* raw maximum and sum, before tokens are masked */
        float m = max_of(v);
        m = fmaxf(m, __shfl_xor_sync(ptx::FULL, m, 1));
        if (!(t & 1)) a.group_raw[group] = m;
        m = warp_top(m, 2);
        if (t % 32 == 0) s.raw[t / 32] = m;
    }
    if (a.never) apply_never(a, slice, v);
    const float mine = max_of(v);
    float m = fmaxf(mine, __shfl_xor_sync(ptx::FULL, mine, 1));
    if (!GREEDY && a.never && !(t & 1)) a.group_top[group] = m;
    m = warp_top(m, 2);
    if (t % 32 == 0) s.top[t / 32] = m;
    __syncthreads(); /* the warps' maxima are complete; arg and bad are set */
    float top = s.top[0];
    for (int i = 1; i < SCAN_WARPS; i++) top = fmaxf(top, s.top[i]);
    if (bad) s.bad = 1;
    if (mine == top) {
        unsigned first = 0xffffffffu;
#pragma unroll
        for (int j = SCAN_TOKENS - 1; j >= 0; j--) {
            if (v[j] == top) first = (unsigned)(slice * SLICE + scan_token(j));
        }
        atomicMin(&s.arg, first);
    }
    if (GREEDY) {
        __syncthreads(); /* arg and bad are complete */
        if (t == 0) finish_greedy(a, row, top, s.arg, s.bad);
        return;
    }
    float raw = s.raw[0];
    for (int i = 1; i < SCAN_WARPS; i++) raw = fmaxf(raw, s.raw[i]);
    if (t == 0) a.slice_raw[row * a.n_slices + slice] = raw;
    if (wants_detail(a.rows[row])) {
        float w[SCAN_TOKENS];
#pragma unroll
        for (int j = 0; j < SCAN_TOKENS; j++) w[j] = v[j];
        if (a.never) load_slice(a, row, slice, w); /* the masked values again, from L2 */
#pragma unroll
        for (int j = 0; j < SCAN_TOKENS; j++) {
            sum_raw += weight(w[j], fmaxf(raw, -FLT_MAX), LOG2_E);
        }
    }
    write_sums(a, row, slice, s, v, sum_raw, top);
}

status sample_scan_launch(const sample_args *a, bool greedy_only, bool pdl, cudaStream_t stream) {
    const dim3 grid((unsigned)a->n_slices, (unsigned)a->n_rows);
    return cuda_launch(greedy_only ? sample_scan_kernel<true> : sample_scan_kernel<false>, grid,
                       dim3(SCAN_THREADS), 0, stream, pdl, *a);
}
