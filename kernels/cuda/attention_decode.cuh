/* Paged grouped-query decode attention on tensor cores: one query token a row, split-KV.
 *   out[row,h,:] = softmax(q[row,h,:] K^T * scale) V over keys [max(0, kv_len - window), kv_len)
 *   q [rows, n_heads, D] 16-bit; K, V in the paged pool (kv_layout.h); out [rows, n_heads, D]
 *   grid: one block an item (attention.h), padding items leave; block: W warps; shared memory: a
 *   ring of ST stages of TK keys a warp, and one partial state a warp
 *   bytes: 2 * kv_len * D * elem_bytes a (row, KV head), read once for up to 8 query heads: memory
 *   bound. 8B shape (32/8 heads, D 128, 16 bits), batch 64 at 4,096 keys: 1.07 GB = 242 us at
 *   4.43 TB/s. Measured (H200): 241-246 us, 96 % of the read bandwidth of the same run; at 512
 *   keys 36 us (33 us behind the append with dependent launch); batch 1 at 512: 3.7 us behind it.
 *   I8: 23.5 us at 512, 135 us at 4,096
 *
 * Every warp is autonomous: it fills its own ring (bulk copies on mbarriers from sm_90, cp.async
 * groups before) and there is no block-wide barrier until the end of an item. S^T = K Q^T has 16
 * keys as M and up to 8 query heads as N, O^T = V^T P^T; movmatrix turns S^T into the P^T operand.
 * I8: ldmatrix moves bytes; the order of d inside a k-step (K) and of rows inside a tile (V) is
 * permuted to fit; K's scale goes into the scores and V's into P, both free in this layout.
 *
 * Numerics: float32 scores, maximum, sum and accumulators; P in 16 bits; base-2 exponentials. The
 * order of additions depends on the item's bounds only. The last block to finish a split row merges
 * (its counter wraps to 0 by itself), always in slot order.
 * Source: FlashDecoding (Dao et al. 2023); online softmax (Milakov & Gimelshein 2018). */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_DECODE_CUH
#define INFERD_KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/attention_internal.h"

namespace decode {

/* Shapes fixed at compile time. TYPE: KV_BF16, KV_F16, KV_I8. SUBK: keys that lie together in a
 * stage: min(block_tokens, TK). */
template <int D_, int TYPE_, int W_, int TK_, int ST_, int SUBK_> struct shape {
    static constexpr int D = D_, TYPE = TYPE_, W = W_, TK = TK_, ST = ST_, SUBK = SUBK_;
    using L = kv_rows<D, TYPE == KV_I8 ? 1 : 2>;
    static constexpr int E = L::E, RB = L::RB, NS = L::NS;
    static constexpr int MT = TK / 16, NT = W * 32;
    static constexpr int SUB = TK / SUBK;            /* parts of a stage */
    static constexpr int PART = L::head_bytes(SUBK); /* bytes of a part */
    static constexpr int STAGE = SUB * PART;         /* bytes of a stage */
    static constexpr int ROWS = SUBK * D * E;        /* V's rows behind K's in a part */
    static constexpr int NX = (RB + 31) / 32;        /* 32-byte chunk pairs in a slab row */
    static constexpr int KX = (D * E + 31) / 32;     /* chunk pairs in a row of D */
    static constexpr int OPITCH = D + 4;             /* floats; + 4 against conflicts */
    static constexpr int N_COPIES = 2 * NS + (E == 1 ? 2 : 0);
    static_assert(N_COPIES <= 32 && SUB <= 32, "one lane a copy");
};

template <class T> __device__ __forceinline__ int n_tiles(const attention_item &it, int warp) {
    const int t = (it.k1 - it.k0 + T::TK - 1) / T::TK - warp;
    return t > 0 ? (t + T::W - 1) / T::W : 0;
}

/* The warp's ring of stages: who fills it, and where it stands. */
template <class T> struct ring {
    const decode_args &a;
    uint32_t base, bar; /* shared addresses: stages, one mbarrier each */
    int warp, lane;
    int fill, take, phase; /* next stage to fill, to use; parity of take's barrier */
    int id, id_next;       /* KV block ids of parts 0..31 and 32..63 from the window's start */

    __device__ __forceinline__ int load_ids(const attention_item &it, int first) const {
        const int part = first + lane;
        const int k = it.k0 + (warp + part / T::SUB * T::W) * T::TK + part % T::SUB * T::SUBK;
        return k < it.k1 ? __ldg(a.block + it.i_block + (k >> a.block_shift)) : -1;
    }
    __device__ __forceinline__ void start(const attention_item &it) {
        id = load_ids(it, 0);
        id_next = load_ids(it, 32);
    }
    /* Starts the copy of the warp's i-th tile into the next stage. */
    __device__ __forceinline__ void issue(const attention_item &it, int i) {
        const uint32_t dst = base + fill * T::STAGE;
        const int part0 = (i * T::SUB) & 31;
        const int first = it.k0 + (warp + i * T::W) * T::TK;
        const size_t head = (size_t)it.kv_head * a.head_bytes;
#if PTX_SM90
        const uint32_t b = bar + fill * 8;
        if (T::SUBK == 1 << a.block_shift) { /* whole blocks: one copy each */
            const int pg = __shfl_sync(ptx::FULL, id, part0 + (lane < T::SUB ? lane : 0));
            const bool mine = lane < T::SUB && pg >= 0;
            const int n = __popc(__ballot_sync(ptx::FULL, mine));
            if (lane == 0) ptx::mbar_expect(b, n * T::PART);
            __syncwarp(); /* the barrier expects the bytes before they can arrive */
            if (mine) {
                ptx::bulk_load(dst + lane * T::PART, a.kv + (size_t)pg * a.block_bytes + head,
                               T::PART, b);
            }
        } else { /* a piece of a block: a copy per slab of K and V, and the scales */
            const int pg = __shfl_sync(ptx::FULL, id, part0);
            const int page = 1 << a.block_shift, at = first & (page - 1);
            if (lane == 0) ptx::mbar_expect(b, T::STAGE);
            __syncwarp(); /* as above */
            const char *src = a.kv + (size_t)pg * a.block_bytes + head;
            if (lane < 2 * T::NS) {
                ptx::bulk_load(dst + lane * T::TK * T::RB, src + (size_t)(lane * page + at) * T::RB,
                               T::TK * T::RB, b);
            } else if (lane < T::N_COPIES) {
                const int v = lane - 2 * T::NS;
                ptx::bulk_load(dst + 2 * T::ROWS + v * T::TK * 4,
                               src + (size_t)2 * page * T::D * T::E + (v * page + at) * 4,
                               T::TK * 4, b);
            }
        }
#else
        const int page = 1 << a.block_shift;
        static_assert(T::SUB <= 2, "two parts a stage at most");
        const int pg0 = __shfl_sync(ptx::FULL, id, part0);
        const int pg1 = __shfl_sync(ptx::FULL, id, part0 + T::SUB - 1);
        for (int c = lane; c < T::STAGE / 16; c += 32) {
            const int part = c * 16 / T::PART, off = c * 16 % T::PART;
            const int pg = part == 0 ? pg0 : pg1;
            if (pg < 0) continue;
            const int at = (first + part * T::SUBK) & (page - 1);
            size_t src;
            if (off < 2 * T::ROWS) {
                constexpr int slab_bytes = T::SUBK * T::RB;
                src = (size_t)(off / slab_bytes * page + at) * T::RB + off % slab_bytes;
            } else {
                const int s = off - 2 * T::ROWS;
                src = (size_t)2 * page * T::D * T::E + (size_t)(s / (T::SUBK * 4) * page + at) * 4 +
                      s % (T::SUBK * 4);
            }
            ptx::cp_async16(dst + c * 16, a.kv + (size_t)pg * a.block_bytes + head + src);
        }
        ptx::cp_async_commit();
#endif
        if (++fill == T::ST) fill = 0;
        if (T::SUB * (i + 1) % 32 == 0) {
            id = id_next;
            id_next = load_ids(it, T::SUB * (i + 1) + 32);
        }
    }
    __device__ __forceinline__ void prologue(const attention_item &it, int n) {
#pragma unroll
        for (int s = 0; s < T::ST; s++) {
            if (s < n) issue(it, s);
#if !PTX_SM90
            else
                ptx::cp_async_commit(); /* every stage is one group, so that waits can count */
#endif
        }
    }
    __device__ __forceinline__ uint32_t wait() {
#if PTX_SM90
        ptx::mbar_wait(bar + take * 8, phase);
#else
        ptx::cp_async_wait<T::ST - 1>();
        __syncwarp(); /* other lanes' copies have landed too */
#endif
        return base + take * T::STAGE;
    }
    /* The stage is read: fill it again with tile i + ST of n. */
    __device__ __forceinline__ void release(const attention_item &it, int i, int n) {
        __syncwarp(); /* every lane has read the stage */
        if (i + T::ST < n) issue(it, i + T::ST);
#if !PTX_SM90
        else
            ptx::cp_async_commit();
#endif
        if (++take == T::ST) {
            take = 0;
            phase ^= 1;
        }
    }
};

/* Query fragments: the B operand, heads as N. I8 wants d = 4t..4t+3 of a k-step in lane t. */
template <class T>
__device__ __forceinline__ void load_q(uint32_t (&qf)[T::D / 16][2], const decode_args &a,
                                       const attention_item &it, int lane) {
    const int h = lane >> 2;
    const uint16_t *q =
        a.q + ((size_t)it.row * a.n_heads + it.head + (h < it.n_heads ? h : 0)) * T::D;
#pragma unroll
    for (int k = 0; k < T::D / 16; k++) {
        if (T::E == 2) {
            const uint32_t *p = (const uint32_t *)(q + k * 16) + (lane & 3);
            qf[k][0] = p[0];
            qf[k][1] = p[4];
        } else {
            const uint2 u = *((const uint2 *)(q + k * 16) + (lane & 3));
            qf[k][0] = u.x;
            qf[k][1] = u.y;
        }
        if (h >= it.n_heads) qf[k][0] = qf[k][1] = 0;
    }
}

/* Online-softmax state of a warp: columns h and h + 1 of the 8 heads, h = 2 * (lane % 4). */
template <class T> struct state {
    float o[T::D / 16][4];
    float m0, m1, l0, l1;

    __device__ __forceinline__ void clear() {
        m0 = m1 = -INFINITY;
        l0 = l1 = 0.0f;
#pragma unroll
        for (int d = 0; d < T::D / 16; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.0f;
    }
    __device__ __forceinline__ void rescale(float x0, float x1) {
        const float n0 = fmaxf(m0, x0), n1 = fmaxf(m1, x1);
        const float f0 = ptx::exp2_approx(m0 - n0), f1 = ptx::exp2_approx(m1 - n1);
        m0 = n0;
        m1 = n1;
        l0 *= f0;
        l1 *= f1;
#pragma unroll
        for (int d = 0; d < T::D / 16; d++) {
            o[d][0] *= f0;
            o[d][1] *= f1;
            o[d][2] *= f0;
            o[d][3] *= f1;
        }
    }
};

/* Lane addresses of ldmatrix, one for each distinct swizzle pattern along a row. */
template <class T> struct lanes {
    uint32_t k[T::NX], v[T::NX];
    __device__ __forceinline__ explicit lanes(int lane) {
        const int kr = lane & 15, kc = lane >> 4;
        const int vr = (lane & 7) + (T::E == 2 ? (lane >> 4) << 3 : lane & 8);
        const int vc = T::E == 2 ? (lane >> 3) & 1 : lane >> 4;
#pragma unroll
        for (int x = 0; x < T::NX; x++) { /* head_dim 80 in I8: the last pair is one chunk */
            k[x] = kr * T::RB + (min(x * 2 + kc, T::RB / 16 - 1) ^ T::L::swizzle(kr)) * 16;
            v[x] =
                T::ROWS + vr * T::RB + (min(x * 2 + vc, T::RB / 16 - 1) ^ T::L::swizzle(vr)) * 16;
        }
    }
    static __device__ __forceinline__ uint32_t tile(int x, int mt) {
        return (mt * 16 / T::SUBK) * T::PART + (x / T::NX) * T::SUBK * T::RB +
               (mt * 16 % T::SUBK) * T::RB;
    }
};

/* s = K q of one stage. */
template <class T>
__device__ __forceinline__ void scores(float (&s)[T::MT][4], const uint32_t (&qf)[T::D / 16][2],
                                       const lanes<T> &at, uint32_t stage) {
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++) s[mt][0] = s[mt][1] = s[mt][2] = s[mt][3] = 0.0f;
#pragma unroll
    for (int x = 0; x < T::KX; x++) {
#pragma unroll
        for (int mt = 0; mt < T::MT; mt++) {
            uint32_t f[4];
            ptx::ldmatrix(f, stage + at.k[x % T::NX] + lanes<T>::tile(x, mt));
            if constexpr (T::E == 2) {
                mma<T::TYPE>(s[mt], f, qf[x][0], qf[x][1]);
            } else {
#pragma unroll
                for (int j = 0; j < 2; j++) { /* two k-steps in one load */
                    if (2 * x + j < T::D / 16) {
                        uint32_t g[4];
                        i8_pairs_k(f[2 * j], g[0], g[2]);
                        i8_pairs_k(f[2 * j + 1], g[1], g[3]);
                        const int k = 2 * x + j < T::D / 16 ? 2 * x + j : 0;
                        ptx::mma_f16(s[mt], g, qf[k][0], qf[k][1]);
                    }
                }
            }
        }
    }
}

/* o += V^T p of one 16-key tile. */
template <class T>
__device__ __forceinline__ void values(float (&o)[T::D / 16][4], uint32_t b0, uint32_t b1,
                                       const lanes<T> &at, uint32_t stage, int mt) {
#pragma unroll
    for (int x = 0; x < T::KX; x++) {
        uint32_t f[4];
        ptx::ldmatrix_trans(f, stage + at.v[x % T::NX] + lanes<T>::tile(x, mt));
        if constexpr (T::E == 2) {
            mma<T::TYPE>(o[x], f, b0, b1);
        } else {
#pragma unroll
            for (int j = 0; j < 2; j++) { /* bytes (d,k)(d+1,k)(d,k+1)(d+1,k+1): rows d, d + 1 */
                if (2 * x + j < T::D / 16) {
                    uint32_t g[4];
                    i8_pairs_v(f[2 * j], g[0], g[1]);
                    i8_pairs_v(f[2 * j + 1], g[2], g[3]);
                    const int d = 2 * x + j < T::D / 16 ? 2 * x + j : 0;
                    ptx::mma_f16(o[d], g, b0, b1);
                }
            }
        }
    }
}

/* The item's last tile has `left` keys: mask the rest, and zero their V rows so that stale NaNs
 * cannot leak in (0 * NaN). */
template <class T>
__device__ __forceinline__ void mask_tail(float (&s)[T::MT][4], float (&vs)[T::MT][2], int left,
                                          uint32_t stage, int lane) {
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++) {
        if (mt * 16 + (lane >> 2) >= left) {
            s[mt][0] = s[mt][1] = -INFINITY;
            vs[mt][0] = 0.0f;
        }
        if (mt * 16 + (lane >> 2) + 8 >= left) {
            s[mt][2] = s[mt][3] = -INFINITY;
            vs[mt][1] = 0.0f;
        }
    }
    constexpr int CHUNKS = T::D * T::E / 16;
    for (int j = lane; j < (T::TK - left) * CHUNKS; j += 32) {
        const int r = left + j / CHUNKS, c = j % CHUNKS;
        ptx::zero16_shared(stage + r / T::SUBK * T::PART + T::L::chunk(T::SUBK, 1, r % T::SUBK, c));
    }
#if PTX_SM90
    ptx::proxy_fence(); /* before the copy engine writes here again */
#endif
    __syncwarp(); /* the zeros are in place before any lane's ldmatrix */
}

/* Keys below `low` (the window's edge) in a tile that begins at key `first`. */
template <class T>
__device__ __forceinline__ void mask_window(float (&s)[T::MT][4], int low, int lane) {
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++) {
        if (mt * 16 + (lane >> 2) < low) s[mt][0] = s[mt][1] = -INFINITY;
        if (mt * 16 + (lane >> 2) + 8 < low) s[mt][2] = s[mt][3] = -INFINITY;
    }
}

/* One stage of TK keys, `left` of them real, the first at position `first`. */
template <class T>
__device__ __forceinline__ void tile_step(state<T> &st, const uint32_t (&qf)[T::D / 16][2],
                                          const lanes<T> &at, uint32_t stage, float scale_log2,
                                          int left, int low, int lane) {
    float s[T::MT][4], vs[T::MT][2];
    scores<T>(s, qf, at, stage);
    if constexpr (T::E == 1) { /* scales of keys mt * 16 + lane / 4 (+ 8) */
#pragma unroll
        for (int mt = 0; mt < T::MT; mt++) {
            const uint32_t p = stage + mt * 16 / T::SUBK * T::PART + 2 * T::ROWS +
                               (mt * 16 % T::SUBK + (lane >> 2)) * 4;
            const float k0 = ptx::load_shared(p), k1 = ptx::load_shared(p + 32);
            s[mt][0] *= k0;
            s[mt][1] *= k0;
            s[mt][2] *= k1;
            s[mt][3] *= k1;
            vs[mt][0] = ptx::load_shared(p + T::SUBK * 4);
            vs[mt][1] = ptx::load_shared(p + T::SUBK * 4 + 32);
        }
    }
    if (left < T::TK) mask_tail<T>(s, vs, left, stage, lane);
    if (low > 0) mask_window<T>(s, low, lane);

    float x0 = s[0][0], x1 = s[0][1];
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++) {
        x0 = fmaxf(x0, fmaxf(s[mt][0], s[mt][2]));
        x1 = fmaxf(x1, fmaxf(s[mt][1], s[mt][3]));
    }
#pragma unroll
    for (int j = 4; j < 32; j *= 2) {
        x0 = fmaxf(x0, __shfl_xor_sync(ptx::FULL, x0, j));
        x1 = fmaxf(x1, __shfl_xor_sync(ptx::FULL, x1, j));
    }
    x0 *= scale_log2;
    x1 *= scale_log2;
    /* A new maximum is rare after the first tiles. */
    if (__any_sync(ptx::FULL, x0 > st.m0 || x1 > st.m1)) st.rescale(x0, x1);
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++) {
        const float p0 = ptx::exp2_approx(fmaf(s[mt][0], scale_log2, -st.m0));
        const float p1 = ptx::exp2_approx(fmaf(s[mt][1], scale_log2, -st.m1));
        const float p2 = ptx::exp2_approx(fmaf(s[mt][2], scale_log2, -st.m0));
        const float p3 = ptx::exp2_approx(fmaf(s[mt][3], scale_log2, -st.m1));
        st.l0 += p0 + p2;
        st.l1 += p1 + p3;
        uint32_t b0, b1;
        if constexpr (T::E == 2) {
            b0 = ptx::movmatrix(pack<T::TYPE>(p0, p1));
            b1 = ptx::movmatrix(pack<T::TYPE>(p2, p3));
        } else {
            b0 = ptx::movmatrix(ptx::pack_f16(p0 * vs[mt][0], p1 * vs[mt][0]));
            b1 = ptx::movmatrix(ptx::pack_f16(p2 * vs[mt][1], p3 * vs[mt][1]));
        }
        values<T>(st.o, b0, b1, at, stage, mt);
    }
}

/* The warps' states to shared memory: sO[warp][head][OPITCH], sml[warp][8] (max in log2, sum). */
template <class T>
__device__ __forceinline__ void store_state(state<T> &st, float *sO, float2 *sml, int n_heads,
                                            int warp, int lane) {
#pragma unroll
    for (int j = 4; j < 32; j *= 2) {
        st.l0 += __shfl_xor_sync(ptx::FULL, st.l0, j);
        st.l1 += __shfl_xor_sync(ptx::FULL, st.l1, j);
    }
    const int h = (lane & 3) * 2;
    if (lane < 4) {
        sml[warp * 8 + h] = make_float2(st.m0, st.l0);
        sml[warp * 8 + h + 1] = make_float2(st.m1, st.l1);
    }
    constexpr int STEP = T::E == 2 ? 1 : 2, NEXT = T::E == 2 ? 8 : 1; /* I8: rows d and d + 1 */
    float *p = sO + (warp * n_heads + h) * T::OPITCH + (lane >> 2) * STEP;
#pragma unroll
    for (int d = 0; d < T::D / 16; d++, p += 16) {
        if (h < n_heads) {
            p[0] = st.o[d][0];
            p[NEXT] = st.o[d][2];
        }
        if (h + 1 < n_heads) {
            p[T::OPITCH] = st.o[d][1];
            p[T::OPITCH + NEXT] = st.o[d][3];
        }
    }
}

template <class T>
__global__ void __launch_bounds__(T::NT) attention_decode_kernel(const decode_args a) {
    extern __shared__ __align__(1024) char sm[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    float *sO = (float *)(sm + T::W * T::ST * T::STAGE);
    float2 *sml = (float2 *)(sO + T::W * a.slot_heads * T::OPITCH);
    int *flag = (int *)(sml + T::W * 8);
    attention_item it = load_item(a.items + blockIdx.x);
    if (it.row < 0) return;
    ring<T> r{a,
              ptx::smem(sm) + warp * T::ST * T::STAGE,
              ptx::smem(flag + 4) + warp * T::ST * 8,
              warp,
              lane,
              0,
              0,
              0,
              0,
              0};
#if PTX_SM90
    if (lane == 0) {
        for (int s = 0; s < T::ST; s++) ptx::mbar_init(r.bar + s * 8, 1);
        ptx::mbar_init_fence();
    }
    __syncwarp(); /* the barriers exist before any lane starts a copy */
#endif
    ptx::pdl_trigger();
    r.start(it);
    int n_next = n_tiles<T>(it, warp);
    /* Old keys may be read before the previous kernel ends, the one being written may not: it lies
     * in the item's last tile, which is in the first stages of one warp, or of none. */
    const int last = (it.k1 - it.k0 - 1) / T::TK;
    const bool early = it.k1 < it.kv_len || last % T::W != warp || last / T::W >= T::ST;
    if (!early) ptx::pdl_wait();
    r.prologue(it, n_next);
    if (early) ptx::pdl_wait();

    const lanes<T> at(lane);
    for (;;) {
        const int n = n_next;
        attention_item next;
        next.row = -1;
        if (it.next >= 0) next = load_item(a.items + it.next);
        uint32_t qf[T::D / 16][2];
        load_q<T>(qf, a, it, lane);
        state<T> st;
        st.clear();
        for (int i = 0; i < n; i++) {
            const int first = it.k0 + (warp + i * T::W) * T::TK;
            const uint32_t stage = r.wait();
            tile_step<T>(st, qf, at, stage, a.scale_log2, it.k1 - first,
                         a.window > 0 ? it.kv_len - a.window - first : 0, lane);
            r.release(it, i, n);
        }
        if (next.row >= 0) { /* fill the ring across the seam */
            r.start(next);
            n_next = n_tiles<T>(next, warp);
            r.prologue(next, n_next);
        }
        store_state<T>(st, sO, sml, it.n_heads, warp, lane);
        finish_item<T>(a, it, sO, sml, flag);
        if (next.row < 0) break;
        it = next;
        __syncthreads(); /* sO, sml and flag are read before the next item writes them */
    }
}

} // namespace decode
#endif
