/* Paged, variable-length, causal prefill attention for sm_90a: wgmma, bulk copies, warp
 * specialisation, persistent blocks.
 *   out[r,h,:] = softmax(q[r,h,:] K^T * scale) V, keys [max(0, pos + 1 - window), pos]
 *   q, out [rows, n_heads, D] 16-bit; K, V in the paged pool (kv_layout.h)
 *   M dimension: packed (token, head in group) pairs, so short chunks of a grouped-query model
 *   still fill 128-row tiles and a K/V read serves the whole group
 *   grid: at most one block a multiprocessor, each a chain of tiles from the host's plan
 *   block: two consumer warpgroups of 64 rows, one producer (warp 0: K and V, warps 1-3: Q)
 *   shared memory: Q 128 x D, ring of 2 (D 64: 3) stages of 128 keys of K and V
 *   flops: 4 * D * n_heads * keys a row. 8B shape, at 772 TFLOP/s: 2,048 rows 44 us, 8,192 rows
 *   712 us. Measured (H200): 74 us = 463 TFLOP/s and 856 us = 643 TFLOP/s
 *
 * S of tile j and O of tile j + 1 are in flight together; the softmax hides behind P V. The pool's
 * slabs carry exactly wgmma's own swizzle, so a tile arrives by 1-D bulk copies, one a block and
 * slab, without tensor maps. The pool holds finite values only: masked keys get P = 0.
 *
 * Numerics: float32 scores, softmax state and accumulators; P in 16 bits. Key tiles are taken from
 * the last to the first; a tile that is cut along its keys is merged in slot order by the last
 * piece. Source: FlashAttention-2 and -3 (Dao 2023; Shah et al. 2024). */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_PREFILL_CUH
#define INFERD_KERNELS_CUDA_ATTENTION_PREFILL_CUH

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace prefill {

/* Two consumer warpgroups; PP: they take turns at the tensor cores. FULL: also serves plans that
 * cut tiles, and windows; that code's mere presence costs 3-13 %, so there is a kernel without it.
 */
template <int D_, bool BF16_, bool PP_, bool FULL_> struct shape {
    static constexpr int D = D_, BN = 128, NWG = 2, BM = NWG * 64, ST = D == 64 ? 3 : 2;
    static constexpr bool BF16 = BF16_, PP = PP_, FULL = FULL_;
    using L = kv_rows<D, 2>;
    static constexpr int RB = L::RB, NS = L::NS, SW = RB / 2; /* SW: values in a slab row */
    static constexpr int Q_BYTES = BM * D * 2, TILE_BYTES = BN * D * 2, KSTEPS = SW / 16;
    static constexpr int SMEM = Q_BYTES + ST * TILE_BYTES * 2 + (2 + 4 * ST) * 8 + 1024;
    static constexpr int THREADS = (NWG + 1) * 128;
    /* Descriptor bits: swizzle mode, 8-row stride, leading offset. */
    static constexpr uint64_t D_BASE = (uint64_t)(SW == 64 ? 1 : 2) << 62 | (uint64_t)(8 * RB >> 4)
                                                                                << 32;
    static constexpr uint64_t D_K = D_BASE | 1ull << 16;
    static constexpr uint64_t D_V = D_BASE | (uint64_t)(BN * RB >> 4) << 16;
};

/* Shared addresses of a block. */
template <class T> struct layout {
    uint32_t q, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty;
    __device__ explicit layout(const void *raw) {
        q = (ptx::smem(raw) + 1023) & ~1023u;
        k = q + T::Q_BYTES;
        v = k + T::ST * T::TILE_BYTES;
        q_full = v + T::ST * T::TILE_BYTES;
        q_empty = q_full + 8;
        k_full = q_empty + 8;
        k_empty = k_full + T::ST * 8;
        v_full = k_empty + T::ST * 8;
        v_empty = v_full + T::ST * 8;
    }
};

__device__ __forceinline__ attention_tile load_tile(const attention_tile *p) {
    const int4 *q = (const int4 *)p;
    const int4 a = __ldg(q), b = __ldg(q + 1), c = __ldg(q + 2);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
}

/* Element offset of packed row r of a tile's sequence in q and out. */
__device__ __forceinline__ size_t packed_row(const prefill_args &a, const attention_tile &t, int r,
                                             int dim) {
    const int token = r / a.group;
    return ((size_t)(t.row0 + token) * a.n_heads + t.kv_head * a.group + r - token * a.group) * dim;
}

#if WGMMA_BUILT

/* Warp 0 of the producer: K and V tiles, the last (masked) one first; a lane a (block, slab). */
template <class T>
__device__ __forceinline__ void produce_kv(const prefill_args &a, const layout<T> &m, int lane) {
    const int page = 1 << a.block_shift, n_copies = (T::BN >> a.block_shift) * T::NS;
    const int pg = lane / T::NS, slab = lane % T::NS;
    int s = 0, phase = 1;
    for (int i = blockIdx.x; i >= 0;) {
        const attention_tile t = load_tile(a.tiles + i);
        const int last = (t.kv_len - 1) >> a.block_shift;
        const int32_t *block = a.block + t.i_block;
        auto block_of = [&](int j) {
            return __ldg(block + min(j * (T::BN >> a.block_shift) + pg, last));
        };
        int id = lane < n_copies ? block_of(t.tile_end - 1) : 0;
        for (int j = t.tile_end - 1; j >= t.tile_begin; j--) {
            const char *src = a.kv + (size_t)id * a.block_bytes + (size_t)t.kv_head * a.head_bytes +
                              slab * page * T::RB;
            const uint32_t off = s * T::TILE_BYTES + slab * T::BN * T::RB + pg * page * T::RB;
            if (j > t.tile_begin && lane < n_copies) id = block_of(j - 1);
            ptx::mbar_wait(m.k_empty + s * 8, phase);
            if (lane == 0) ptx::mbar_expect(m.k_full + s * 8, T::TILE_BYTES);
            __syncwarp(); /* the barrier expects the bytes before they can arrive */
            if (lane < n_copies) {
                ptx::bulk_load(m.k + off, src, page * T::RB, m.k_full + s * 8);
            }
            ptx::mbar_wait(m.v_empty + s * 8, phase);
            if (lane == 0) ptx::mbar_expect(m.v_full + s * 8, T::TILE_BYTES);
            __syncwarp(); /* as above */
            if (lane < n_copies) {
                ptx::bulk_load(m.v + off, src + page * T::D * 2, page * T::RB, m.v_full + s * 8);
            }
            if (++s == T::ST) {
                s = 0;
                phase ^= 1;
            }
        }
        i = t.next;
    }
}

/* Warps 1-3 of the producer: the tile's queries, in wgmma's swizzle. */
template <class T>
__device__ __forceinline__ void produce_q(const prefill_args &a, const layout<T> &m, int thread,
                                          int lane) {
    int phase = 1;
    for (int i = blockIdx.x; i >= 0;) {
        const attention_tile t = load_tile(a.tiles + i);
        ptx::mbar_wait(m.q_empty, phase);
        phase ^= 1;
#pragma unroll 4
        for (int e = thread; e < T::BM * (T::D / 8); e += 96) {
            const int r = e / (T::D / 8), c = e % (T::D / 8);
            const int row = min(t.packed0 + r, t.n_rows * a.group - 1);
            const int x = c % (T::SW / 8) ^ T::L::swizzle(r);
            ptx::cp_async16(m.q + c / (T::SW / 8) * T::BM * T::RB + r * T::RB + x * 16,
                            a.q + packed_row(a, t, row, T::D) + c * 8);
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        ptx::proxy_fence(); /* wgmma reads what cp.async wrote */
        __syncwarp();       /* the whole warp's part is in place */
        if (lane == 0) ptx::mbar_arrive(m.q_full);
        i = t.next;
    }
}

/* One consumer warpgroup: w is 0 or 1. A thread holds rows row, row + 8 and columns (lane % 4) * 2
 * of every 8. */
template <class T> struct consumer {
    const prefill_args &a;
    const layout<T> &m;
    const int w, warp, lane;
    float o[T::D / 2], s[T::BN / 2], m0, m1, l0, l1, f0, f1;
    uint32_t p[T::BN / 4];
    int k_stage, k_phase, v_stage, v_phase;
    int row, lim0, lim1, full; /* last key that rows row, row + 8 see; keys below full: all see */

    __device__ __forceinline__ void start_tile(const attention_tile &t) {
        const int before = t.kv_len - t.n_rows;
        row = t.packed0 + w * 64 + warp * 16 + (lane >> 2);
        lim0 = before + row / a.group;
        lim1 = before + (row + 8) / a.group;
        full = before + (t.packed0 + w * 64) / a.group + 1;
        m0 = m1 = -INFINITY;
        l0 = l1 = 0.0f;
        f0 = f1 = 1.0f;
#pragma unroll
        for (int i = 0; i < T::D / 2; i++) o[i] = 0.0f;
    }
    __device__ __forceinline__ void start_scores() {
        ptx::mbar_wait(m.k_full + k_stage * 8, k_phase);
        const uint64_t dq = T::D_K | (m.q + w * 64 * T::RB) >> 4;
        const uint64_t dk = T::D_K | (m.k + k_stage * T::TILE_BYTES) >> 4;
        wgmma::pin(s);
        wgmma::fence();
#pragma unroll
        for (int k = 0; k < T::D / 16; k++) {
            const int slab = k / T::KSTEPS, in = k % T::KSTEPS;
            wgmma::smem_smem<T::BN, T::BF16>(s, dq + (slab * T::BM * T::RB >> 4) + in * 2,
                                             dk + (slab * T::BN * T::RB >> 4) + in * 2, k > 0);
        }
        wgmma::commit();
    }
    __device__ __forceinline__ void start_values() {
        ptx::mbar_wait(m.v_full + v_stage * 8, v_phase);
        const uint64_t dv = T::D_V | (m.v + v_stage * T::TILE_BYTES) >> 4;
        wgmma::pin(o);
        wgmma::fence();
#pragma unroll
        for (int k = 0; k < T::BN / 16; k++) {
            wgmma::regs_smem<T::D, T::BF16>(o, p + k * 4, dv + (k * 16 * T::RB >> 4));
        }
        wgmma::commit();
    }
    __device__ __forceinline__ void k_done() {
        if (lane == 0) ptx::mbar_arrive(m.k_empty + k_stage * 8);
        if (++k_stage == T::ST) {
            k_stage = 0;
            k_phase ^= 1;
        }
    }
    __device__ __forceinline__ void v_done() {
        if (lane == 0) ptx::mbar_arrive(m.v_empty + v_stage * 8);
        if (++v_stage == T::ST) {
            v_stage = 0;
            v_phase ^= 1;
        }
    }
    __device__ __forceinline__ void mask(int j) {
        const int k0 = j * T::BN + (lane & 3) * 2;
        if ((j + 1) * T::BN > full) {
#pragma unroll
            for (int i = 0; i < T::BN / 8; i++) {
                const int k = k0 + i * 8;
                if (k > lim0) s[i * 4] = -INFINITY;
                if (k + 1 > lim0) s[i * 4 + 1] = -INFINITY;
                if (k > lim1) s[i * 4 + 2] = -INFINITY;
                if (k + 1 > lim1) s[i * 4 + 3] = -INFINITY;
            }
        }
        if (T::FULL && a.window > 0 && j * T::BN <= lim1 - a.window) {
            const int low0 = lim0 - a.window, low1 = lim1 - a.window; /* the last key unseen */
#pragma unroll
            for (int i = 0; i < T::BN / 8; i++) {
                const int k = k0 + i * 8;
                if (k <= low0) s[i * 4] = -INFINITY;
                if (k + 1 <= low0) s[i * 4 + 1] = -INFINITY;
                if (k <= low1) s[i * 4 + 2] = -INFINITY;
                if (k + 1 <= low1) s[i * 4 + 3] = -INFINITY;
            }
        }
    }
    /* Scores of key tile j to weights in s; f0, f1: what the state so far is multiplied by. */
    __device__ __forceinline__ void softmax(int j) {
        const float sc = a.scale_log2;
        mask(j);
        float x0 = m0, x1 = m1;
#pragma unroll
        for (int i = 0; i < T::BN / 8; i++) {
            x0 = fmaxf(x0, fmaxf(s[i * 4], s[i * 4 + 1]));
            x1 = fmaxf(x1, fmaxf(s[i * 4 + 2], s[i * 4 + 3]));
        }
#pragma unroll
        for (int q = 1; q < 4; q *= 2) {
            x0 = fmaxf(x0, __shfl_xor_sync(ptx::FULL, x0, q));
            x1 = fmaxf(x1, __shfl_xor_sync(ptx::FULL, x1, q));
        }
        /* A row may see nothing of this tile and nothing before it. */
        const float b0 = x0 == -INFINITY ? 0.0f : x0 * sc, b1 = x1 == -INFINITY ? 0.0f : x1 * sc;
        f0 = ptx::exp2_approx(m0 * sc - b0);
        f1 = ptx::exp2_approx(m1 * sc - b1);
        m0 = x0;
        m1 = x1;
        l0 *= f0;
        l1 *= f1;
#pragma unroll
        for (int i = 0; i < T::BN / 8; i++) {
            s[i * 4] = ptx::exp2_approx(fmaf(s[i * 4], sc, -b0));
            s[i * 4 + 1] = ptx::exp2_approx(fmaf(s[i * 4 + 1], sc, -b0));
            s[i * 4 + 2] = ptx::exp2_approx(fmaf(s[i * 4 + 2], sc, -b1));
            s[i * 4 + 3] = ptx::exp2_approx(fmaf(s[i * 4 + 3], sc, -b1));
            l0 += s[i * 4] + s[i * 4 + 1];
            l1 += s[i * 4 + 2] + s[i * 4 + 3];
        }
    }
    __device__ __forceinline__ void pack_weights() {
#pragma unroll
        for (int k = 0; k < T::BN / 16; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[k * 4 + i] =
                    pack < T::BF16 ? KV_BF16 : KV_F16 > (s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
            }
        }
    }
    __device__ __forceinline__ void rescale() {
#pragma unroll
        for (int i = 0; i < T::D / 8; i++) {
            o[i * 4] *= f0;
            o[i * 4 + 1] *= f0;
            o[i * 4 + 2] *= f1;
            o[i * 4 + 3] *= f1;
        }
    }
    /* Ping-pong order: the groups issue their products in turn. */
    __device__ __forceinline__ void turn() {
        if (T::PP) asm volatile("bar.sync %0,256;" ::"r"(1 + w) : "memory");
    }
    __device__ __forceinline__ void pass() {
        if (T::PP) asm volatile("bar.arrive %0,256;" ::"r"(2 - w) : "memory");
    }
    __device__ __forceinline__ void run_tile(const attention_tile &t, int q_phase) {
        start_tile(t);
        ptx::mbar_wait(m.q_full, q_phase);
        turn();
        start_scores();
        pass();
        wgmma::wait<0>();
        wgmma::pin(s);
        k_done();
        softmax(t.tile_end - 1);
        pack_weights();
        for (int j = t.tile_end - 2; j >= t.tile_begin; j--) {
            turn();
            start_scores();
            start_values();
            pass();
            wgmma::wait<1>();
            wgmma::pin(s);
            k_done();
            softmax(j);
            wgmma::wait<0>();
            wgmma::pin(o);
            v_done();
            rescale();
            pack_weights();
        }
        if (lane == 0) ptx::mbar_arrive(m.q_empty);
        start_values();
        wgmma::wait<0>();
        wgmma::pin(o);
        v_done();
#pragma unroll
        for (int q = 1; q < 4; q *= 2) {
            l0 += __shfl_xor_sync(ptx::FULL, l0, q);
            l1 += __shfl_xor_sync(ptx::FULL, l1, q);
        }
    }
    /* The piece's state to its slot, in fragment order; the last piece of a tile to arrive takes
     * the sum of all in slot order. False: another piece will. */
    __device__ __forceinline__ bool merge(const attention_tile &t, volatile int *flag) {
        const int th = threadIdx.x & 127;
        const size_t own = (size_t)t.slot * T::NWG + w;
#pragma unroll
        for (int i = 0; i < T::D / 8; i++) {
            a.partial[(own * (T::D / 8) + i) * 128 + th] =
                make_float4(o[i * 4], o[i * 4 + 1], o[i * 4 + 2], o[i * 4 + 3]);
        }
        a.partial_ml[own * 128 + th] = make_float4(m0, l0, m1, l1);
        asm volatile("bar.sync %0,128;" ::"r"(4 + w) : "memory"); /* the group's state is written */
        if (th == 0) {
            const unsigned last = (unsigned)t.n_split - 1;
            flag[w] = ptx::atomic_inc_acq_rel(a.counter + t.slot0 * T::NWG + w, last) == last;
        }
        asm volatile("bar.sync %0,128;" ::"r"(4 + w) : "memory"); /* flag is set */
        if (!flag[w]) return false;
        const float sc = a.scale_log2;
        m0 = m1 = -INFINITY;
        l0 = l1 = 0.0f;
        for (int k = 0; k < t.n_split; k++) {
            const float4 x = __ldcg(a.partial_ml + ((size_t)(t.slot0 + k) * T::NWG + w) * 128 + th);
            m0 = fmaxf(m0, x.x);
            m1 = fmaxf(m1, x.z);
        }
#pragma unroll
        for (int i = 0; i < T::D / 2; i++) o[i] = 0.0f;
        const float b0 = m0 == -INFINITY ? 0.0f : m0, b1 = m1 == -INFINITY ? 0.0f : m1;
        for (int k = 0; k < t.n_split; k++) {
            const size_t q = (size_t)(t.slot0 + k) * T::NWG + w;
            const float4 x = __ldcg(a.partial_ml + q * 128 + th);
            const float g0 = ptx::exp2_approx((x.x - b0) * sc);
            const float g1 = ptx::exp2_approx((x.z - b1) * sc);
            l0 += g0 * x.y;
            l1 += g1 * x.w;
#pragma unroll
            for (int i = 0; i < T::D / 8; i++) {
                const float4 y = __ldcg(a.partial + (q * (T::D / 8) + i) * 128 + th);
                o[i * 4] += g0 * y.x;
                o[i * 4 + 1] += g0 * y.y;
                o[i * 4 + 2] += g1 * y.z;
                o[i * 4 + 3] += g1 * y.w;
            }
        }
        return true;
    }
    __device__ __forceinline__ uint32_t out_pair(float x, float y) const {
        return a.out_type == DTYPE_BF16 ? ptx::pack_bf16(x, y)
                                        : ptx::pack_f16(to_f16_range(x), to_f16_range(y));
    }
    /* Four lanes share a row: a 4x4 transpose among them lets each store 16 bytes. */
    __device__ __forceinline__ void store(const attention_tile &t) {
        const int n_packed = t.n_rows * a.group, x = lane & 3;
        const float r0 = 1.0f / l0, r1 = 1.0f / l1;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row + h * 8;
            const float inv = h ? r1 : r0;
            const size_t at = r < n_packed ? packed_row(a, t, r, T::D) : 0;
            if (a.out_type == DTYPE_F32) {
#pragma unroll
                for (int i = 0; i < T::D / 8; i++) {
                    const float2 y =
                        make_float2(o[i * 4 + h * 2] * inv, o[i * 4 + h * 2 + 1] * inv);
                    if (r < n_packed) *(float2 *)((float *)a.out + at + i * 8 + x * 2) = y;
                }
                continue;
            }
#pragma unroll
            for (int g = 0; g < T::D / 32; g++) {
                uint32_t v[4], u[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float *z = o + (g * 4 + i) * 4 + h * 2;
                    v[i] = out_pair(z[0] * inv, z[1] * inv);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) { /* round i: lane x sends v[x ^ i] to lane x ^ i */
                    const int k = x ^ i;
                    const uint32_t y = k == 0 ? v[0] : k == 1 ? v[1] : k == 2 ? v[2] : v[3];
                    u[i] = __shfl_xor_sync(ptx::FULL, y, i);
                }
                uint32_t w4[4]; /* u[i] came from lane x ^ i */
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int k = x ^ i;
                    w4[i] = k == 0 ? u[0] : k == 1 ? u[1] : k == 2 ? u[2] : u[3];
                }
                if (r < n_packed) {
                    *(uint4 *)((uint16_t *)a.out + at + g * 32 + x * 8) =
                        make_uint4(w4[0], w4[1], w4[2], w4[3]);
                }
            }
        }
    }
};

template <class T>
__device__ __forceinline__ void consume(const prefill_args &a, const layout<T> &m,
                                        volatile int *flag, int w, int warp, int lane) {
    consumer<T> c = {a, m, w, warp, lane};
    c.k_stage = c.k_phase = c.v_stage = c.v_phase = 0;
    if (T::PP && w == 1) asm volatile("bar.arrive 1,256;" ::: "memory"); /* group 0 goes first */
    attention_tile t = load_tile(a.tiles + blockIdx.x), next = t;
    int q_phase = 0;
    for (bool more = true; more; t = next) {
        more = t.next >= 0;
        if (more) next = load_tile(a.tiles + t.next); /* its latency hides behind this tile */
        c.run_tile(t, q_phase);
        q_phase ^= 1;
        if (T::FULL && t.n_split > 1 && !c.merge(t, flag)) continue;
        c.store(t);
    }
    if (T::PP && w == 0) asm volatile("bar.sync 1,256;" ::: "memory"); /* the last arrive's */
}
#endif

template <class T>
__global__ void __launch_bounds__(T::THREADS, 1) attention_prefill_kernel(const prefill_args a) {
#if WGMMA_BUILT
    extern __shared__ char raw[];
    __shared__ volatile int flag[T::NWG];
    const layout<T> m(raw);
    const int group = threadIdx.x >> 7, warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        ptx::mbar_init(m.q_full, 3);
        ptx::mbar_init(m.q_empty, T::NWG * 4);
        for (int s = 0; s < T::ST; s++) {
            ptx::mbar_init(m.k_full + s * 8, 1);
            ptx::mbar_init(m.v_full + s * 8, 1);
            ptx::mbar_init(m.k_empty + s * 8, T::NWG * 4);
            ptx::mbar_init(m.v_empty + s * 8, T::NWG * 4);
        }
        ptx::mbar_init_fence();
    }
    __syncthreads(); /* the barriers exist */
    ptx::pdl_trigger();
    ptx::pdl_wait();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0)
            produce_kv<T>(a, m, lane);
        else
            produce_q<T>(a, m, threadIdx.x - 32, lane);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume<T>(a, m, flag, group - 1, warp, lane);
#else
    (void)a; /* other devices take the mma.sync kernel */
    __trap();
#endif
}

} // namespace prefill
#endif
