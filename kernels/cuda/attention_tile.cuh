/* Paged, variable-length, causal attention over tiles of rows with mma.sync: sm_80 and up. Serves
 * prefill where the wgmma kernel is not built (devices, I8, head_dim 80 and 256) and every row in
 * deterministic mode.
 *   out[r,h,:] = softmax(q[r,h,:] K^T * scale) V, keys [max(0, pos + 1 - window), pos]
 *   M: 64 packed (token, head in group) rows, 4 warps of 16; keys in tiles of BN, double buffered
 *   grid: one block a tile; shared memory: Q 64 x D, two stages of K and V (I8: two byte stages
 *   and one converted to halves)
 *   flops as in attention_prefill.cuh. Measured (H200), 8,192 rows of the 8B shape: F16 249
 *   TFLOP/s, I8 177 (without chunks of keys 264 and 185); one row at 4,096 keys 20 us a layer
 *
 * Numerics: float32 scores, state and accumulators, P in 16 bits, key tiles in ascending order at
 * fixed places. The running maximum is kept in base-2 units, so a tile in which a row sees nothing
 * multiplies its state by exactly 1: a row's bits depend on its own query and keys alone, not on
 * the rows around it, on chunking or on block_tokens.
 * Source: FlashAttention-2 (Dao 2023). */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_TILE_CUH
#define INFERD_KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/attention_device.cuh"

namespace tiles {

template <int D_, int TYPE_, int BN_> struct shape {
    static constexpr int D = D_, TYPE = TYPE_, BN = BN_, BM = 64, THREADS = 128;
    static constexpr int MMA = TYPE == KV_BF16 ? KV_BF16 : KV_F16; /* I8 computes in halves */
    static constexpr int E = TYPE == KV_I8 ? 1 : 2;
    using L = kv_rows<D, 2>; /* of what is computed with */
    using S = kv_rows<D, E>; /* of the pool */
    static constexpr int RB = L::RB, Q_BYTES = BM * D * 2, TILE = BN * D * 2;
    static constexpr int STAGE = E == 2 ? 2 * TILE : S::head_bytes(BN); /* as it comes */
    static constexpr bool Q_IN_REGS = D <= 128;
    /* Keys come in chunks of 512 at fixed places, each with a softmax state of its own; states are
     * merged in ascending order, in one block or by the last of several: the same bits. The sum so
     * far lies where Q was, and behind it. At 256 it would not fit: one chunk. */
    static constexpr int CHUNK = Q_IN_REGS ? 512 / BN : 0; /* key tiles; 0: no chunks */
    static constexpr int HEAD = CHUNK ? BM * D * 4 : Q_BYTES;
    static constexpr int SMEM = HEAD + 2 * STAGE + (E == 1 ? 2 * TILE : 0);
};

/* Byte offset of 16-byte chunk c of row r in a tile of n rows. */
template <class L> __device__ __forceinline__ int chunk_at(int n, int r, int c) {
    return L::chunk(n, 0, r, c);
}

template <class T>
__device__ __forceinline__ size_t packed_row(const prefill_args &a, const attention_tile &t,
                                             int r) {
    const int token = r / a.group;
    return ((size_t)(t.row0 + token) * a.n_heads + t.kv_head * a.group + r - token * a.group) *
           T::D;
}

template <class T>
__device__ __forceinline__ void load_q(const prefill_args &a, const attention_tile &t, uint32_t q) {
    for (int e = threadIdx.x; e < T::BM * (T::D / 8); e += T::THREADS) {
        const int r = e / (T::D / 8), c = e % (T::D / 8);
        const int row = min(t.packed0 + r, t.n_rows * a.group - 1);
        ptx::cp_async16(q + chunk_at<typename T::L>(T::BM, r, c),
                        a.q + packed_row<T>(a, t, row) + c * 8);
    }
}

/* Keys [j * BN, (j + 1) * BN) as they lie in the pool, in the stage's own slabs of BN rows; a
 * thread keeps its chunk column and goes down the rows. Keys behind the last are read from its
 * block: finite, and masked. */
template <class T>
__device__ __forceinline__ void load_kv(const prefill_args &a, const attention_tile &t, int j,
                                        uint32_t stage) {
    constexpr int CHUNKS = T::D * T::E / 16, ROWS = T::THREADS / CHUNKS; /* rows a round */
    const int page = 1 << a.block_shift, last = (t.kv_len - 1) >> a.block_shift;
    const char *heads = a.kv + (size_t)t.kv_head * a.head_bytes;
    const int32_t *block = a.block + t.i_block;
    const int c = threadIdx.x % CHUNKS, r0 = threadIdx.x / CHUNKS;
    const int slab = c / T::S::CW, column = c % T::S::CW;
    const int v_src = page * T::D * T::E;
    constexpr int V_DST = T::BN * T::D * T::E;
#pragma unroll
    for (int i = 0; i < (T::BN + ROWS - 1) / ROWS; i++) {
        const int r = r0 + i * ROWS, key = j * T::BN + r;
        if (T::THREADS % CHUNKS != 0 && r0 >= ROWS) break;
        if (T::BN % ROWS != 0 && r >= T::BN) break;
        const int id = __ldg(block + min(key >> a.block_shift, last));
        const int token = key & (page - 1);
        /* The swizzle depends on the row's number modulo 8 only, the same in pool and stage. */
        const int in = (column ^ T::S::swizzle(r)) * 16;
        const char *src =
            heads + (size_t)id * a.block_bytes + (slab * page + token) * T::S::RB + in;
        const uint32_t dst = stage + (slab * T::BN + r) * T::S::RB + in;
        ptx::cp_async16(dst, src);
        ptx::cp_async16(dst + V_DST, src + v_src);
    }
    if constexpr (T::E == 1) { /* scales: 4 keys a copy */
        for (int e = threadIdx.x; e < 2 * T::BN / 4; e += T::THREADS) {
            const int v = e / (T::BN / 4), r = e % (T::BN / 4) * 4, key = j * T::BN + r;
            const int id = __ldg(block + min(key >> a.block_shift, last));
            const int src = 2 * page * T::D + (v * page + (key & (page - 1))) * 4;
            ptx::cp_async16(stage + 2 * V_DST + (v * T::BN + r) * 4,
                            heads + (size_t)id * a.block_bytes + src);
        }
    }
}

/* I8 stage to K and V tiles in halves, without their scales. */
template <class T> __device__ __forceinline__ void convert_i8(const char *stage, char *tile) {
    constexpr int CHUNKS = T::D / 16;
    for (int e = threadIdx.x; e < 2 * T::BN * CHUNKS; e += T::THREADS) {
        const int v = e / (T::BN * CHUNKS), r = e / CHUNKS % T::BN, c = e % CHUNKS;
        const char *src = stage + v * T::BN * T::D + chunk_at<typename T::S>(T::BN, r, c);
        const uint4 x = *(const uint4 *)src;
        uint4 y, z;
        i8_pairs_k(x.x, y.x, y.y);
        i8_pairs_k(x.y, y.z, y.w);
        i8_pairs_k(x.z, z.x, z.y);
        i8_pairs_k(x.w, z.z, z.w);
        char *dst = tile + v * T::TILE;
        *(uint4 *)(dst + chunk_at<typename T::L>(T::BN, r, 2 * c)) = y;
        *(uint4 *)(dst + chunk_at<typename T::L>(T::BN, r, 2 * c + 1)) = z;
    }
}

/* 16 rows x 16 values at (r0, k-step k) of a tile of n rows: a lane's ldmatrix address. Matrices:
 * rows 0-7 and 8-15 of the first 8 values, then of the second 8. */
template <class T>
__device__ __forceinline__ uint32_t lane_at(uint32_t tile, int n, int r0, int k, int lane) {
    return tile + chunk_at<typename T::L>(n, r0 + (lane & 15), 2 * k + (lane >> 4));
}

/* Weights of two softmax states with maxima m and n in their merger; m becomes the merged maximum.
 */
__device__ __forceinline__ void merge_weights(float &m, float n, float &a, float &b) {
    const float top = fmaxf(m, n), base = top == -INFINITY ? 0.0f : top;
    a = ptx::exp2_approx(m - base);
    b = ptx::exp2_approx(n - base);
    m = top;
}
/* One sum of the merger; spelled out so that every caller rounds alike. */
__device__ __forceinline__ float merge_sum(float x, float a, float y, float b) {
    return __fmaf_rn(x, a, __fmul_rn(y, b));
}

/* Softmax state of the chunks so far; their values lie in shared memory. */
struct rows16_sum {
    float m0, m1, l0, l1;
};

/* A warp's 16 rows: a lane holds rows lane / 4 and + 8, columns (lane % 4) * 2 of every 8. */
template <class T> struct rows16 {
    float o[T::D / 8][4], m0, m1, l0, l1; /* m: maximum in base-2 units */
    uint32_t q[T::Q_IN_REGS ? T::D / 16 : 1][4];

    __device__ __forceinline__ void load_q_regs(uint32_t q_tile, int warp, int lane) {
#pragma unroll
        for (int k = 0; k < T::D / 16; k++) {
            ptx::ldmatrix(q[k], lane_at<T>(q_tile, T::BM, warp * 16, k, lane));
        }
    }
    __device__ __forceinline__ void clear() {
        m0 = m1 = -INFINITY;
        l0 = l1 = 0.0f;
#pragma unroll
        for (int d = 0; d < T::D / 8; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.0f;
    }
    /* Adds the state of a finished chunk to the sum of the chunks before it (first: there is none)
     * and clears it. sum: the block's, a float a thread in turn. */
    __device__ __forceinline__ void fold(rows16_sum &t, float *sum, bool first) {
        float a0 = 0.0f, b0 = 1.0f, a1 = 0.0f, b1 = 1.0f;
        if (first) {
            t = rows16_sum{m0, m1, l0, l1};
        } else {
            merge_weights(t.m0, m0, a0, b0);
            merge_weights(t.m1, m1, a1, b1);
            t.l0 = merge_sum(t.l0, a0, l0, b0);
            t.l1 = merge_sum(t.l1, a1, l1, b1);
        }
#pragma unroll
        for (int i = 0; i < T::D / 2; i++) {
            float *x = sum + i * T::THREADS;
            const float y = o[i / 4][i % 4];
            *x = first ? y : i % 4 < 2 ? merge_sum(*x, a0, y, b0) : merge_sum(*x, a1, y, b1);
        }
        clear();
    }
    __device__ __forceinline__ void unfold(const rows16_sum &t, const float *sum) {
        m0 = t.m0;
        m1 = t.m1;
        l0 = t.l0;
        l1 = t.l1;
#pragma unroll
        for (int i = 0; i < T::D / 2; i++) o[i / 4][i % 4] = sum[i * T::THREADS];
    }
    /* The chunk's state to its slot; the last block of the tile's chunks to arrive takes the sum of
     * all, in order. False: another block will. All threads. */
    __device__ __forceinline__ bool merge_slots(const prefill_args &a, const attention_tile &t,
                                                int *flag) {
        const int th = threadIdx.x;
        float4 *own = a.partial + (size_t)t.slot * (T::D / 8) * T::THREADS + th;
#pragma unroll
        for (int d = 0; d < T::D / 8; d++) {
            own[d * T::THREADS] = make_float4(o[d][0], o[d][1], o[d][2], o[d][3]);
        }
        a.partial_ml[(size_t)t.slot * T::THREADS + th] = make_float4(m0, l0, m1, l1);
        __syncthreads(); /* the block's state is written before thread 0 announces it */
        if (th == 0) {
            const unsigned last = (unsigned)t.n_split - 1;
            *flag = ptx::atomic_inc_acq_rel(a.counter + t.slot0, last) == last;
        }
        __syncthreads(); /* flag is set */
        if (!*flag) return false;
        for (int k = 0; k < t.n_split; k++) {
            const size_t slot = (size_t)(t.slot0 + k);
            const float4 ml = __ldcg(a.partial_ml + slot * T::THREADS + th);
            float a0 = 0.0f, b0 = 1.0f, a1 = 0.0f, b1 = 1.0f;
            if (k == 0) {
                m0 = ml.x, l0 = ml.y, m1 = ml.z, l1 = ml.w;
            } else {
                merge_weights(m0, ml.x, a0, b0);
                merge_weights(m1, ml.z, a1, b1);
                l0 = merge_sum(l0, a0, ml.y, b0);
                l1 = merge_sum(l1, a1, ml.w, b1);
            }
#pragma unroll
            for (int d = 0; d < T::D / 8; d++) {
                const float4 x = __ldcg(a.partial + (slot * (T::D / 8) + d) * T::THREADS + th);
                o[d][0] = k == 0 ? x.x : merge_sum(o[d][0], a0, x.x, b0);
                o[d][1] = k == 0 ? x.y : merge_sum(o[d][1], a0, x.y, b0);
                o[d][2] = k == 0 ? x.z : merge_sum(o[d][2], a1, x.z, b1);
                o[d][3] = k == 0 ? x.w : merge_sum(o[d][3], a1, x.w, b1);
            }
        }
        return true;
    }
    __device__ __forceinline__ void scores(float (&s)[T::BN / 8][4], uint32_t k_tile,
                                           uint32_t q_tile, int warp, int lane) {
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < T::D / 16; k++) {
            uint32_t a[4];
            if constexpr (T::Q_IN_REGS) {
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = q[k][i];
            } else {
                ptx::ldmatrix(a, lane_at<T>(q_tile, T::BM, warp * 16, k, lane));
            }
#pragma unroll
            for (int n = 0; n < T::BN / 16; n++) {
                uint32_t f[4];
                ptx::ldmatrix(f, lane_at<T>(k_tile, T::BN, n * 16, k, lane));
                mma<T::MMA>(s[2 * n], a, f[0], f[2]);
                mma<T::MMA>(s[2 * n + 1], a, f[1], f[3]);
            }
        }
    }
    /* I8: each key's scale, K's into the scores, V's into the weights. */
    static __device__ __forceinline__ void scale_keys(float (&s)[T::BN / 8][4], const float *scale,
                                                      int lane) {
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++) {
            const float2 k = *(const float2 *)(scale + n * 8 + (lane & 3) * 2);
            s[n][0] *= k.x;
            s[n][1] *= k.y;
            s[n][2] *= k.x;
            s[n][3] *= k.y;
        }
    }
    /* s to weights; the state follows. lim: last key that each row sees; low: last key it no longer
     * sees. */
    __device__ __forceinline__ void softmax(float (&s)[T::BN / 8][4], float scale_log2, int first,
                                            int lim0, int lim1, int low0, int low1, int lane) {
        const int k0 = first + (lane & 3) * 2;
        if (first + T::BN > lim0 + 1 || first <= low1) {
#pragma unroll
            for (int n = 0; n < T::BN / 8; n++) {
                const int k = k0 + n * 8;
                if (k > lim0 || k <= low0) s[n][0] = -INFINITY;
                if (k + 1 > lim0 || k + 1 <= low0) s[n][1] = -INFINITY;
                if (k > lim1 || k <= low1) s[n][2] = -INFINITY;
                if (k + 1 > lim1 || k + 1 <= low1) s[n][3] = -INFINITY;
            }
        }
        float x0 = s[0][0], x1 = s[0][2];
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++) {
            x0 = fmaxf(x0, fmaxf(s[n][0], s[n][1]));
            x1 = fmaxf(x1, fmaxf(s[n][2], s[n][3]));
        }
#pragma unroll
        for (int i = 1; i < 4; i *= 2) {
            x0 = fmaxf(x0, __shfl_xor_sync(ptx::FULL, x0, i));
            x1 = fmaxf(x1, __shfl_xor_sync(ptx::FULL, x1, i));
        }
        const float n0 = fmaxf(m0, x0 * scale_log2), n1 = fmaxf(m1, x1 * scale_log2);
        /* A row may have seen nothing yet. */
        const float b0 = n0 == -INFINITY ? 0.0f : n0, b1 = n1 == -INFINITY ? 0.0f : n1;
        const float f0 = ptx::exp2_approx(m0 - b0), f1 = ptx::exp2_approx(m1 - b1);
        m0 = n0;
        m1 = n1;
        l0 *= f0;
        l1 *= f1;
#pragma unroll
        for (int d = 0; d < T::D / 8; d++) {
            o[d][0] *= f0;
            o[d][1] *= f0;
            o[d][2] *= f1;
            o[d][3] *= f1;
        }
#pragma unroll
        for (int n = 0; n < T::BN / 8; n++) {
            s[n][0] = ptx::exp2_approx(fmaf(s[n][0], scale_log2, -b0));
            s[n][1] = ptx::exp2_approx(fmaf(s[n][1], scale_log2, -b0));
            s[n][2] = ptx::exp2_approx(fmaf(s[n][2], scale_log2, -b1));
            s[n][3] = ptx::exp2_approx(fmaf(s[n][3], scale_log2, -b1));
            l0 += s[n][0] + s[n][1];
            l1 += s[n][2] + s[n][3];
        }
    }
    __device__ __forceinline__ void values(const float (&s)[T::BN / 8][4], uint32_t v_tile,
                                           int lane) {
#pragma unroll
        for (int k = 0; k < T::BN / 16; k++) {
            const uint32_t a[4] = {pack<T::MMA>(s[2 * k][0], s[2 * k][1]),
                                   pack<T::MMA>(s[2 * k][2], s[2 * k][3]),
                                   pack<T::MMA>(s[2 * k + 1][0], s[2 * k + 1][1]),
                                   pack<T::MMA>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
            for (int d = 0; d < T::D / 16; d++) {
                uint32_t f[4];
                ptx::ldmatrix_trans(f, lane_at<T>(v_tile, T::BN, k * 16, d, lane));
                mma<T::MMA>(o[2 * d], a, f[0], f[1]);
                mma<T::MMA>(o[2 * d + 1], a, f[2], f[3]);
            }
        }
    }
};

__device__ __forceinline__ void store_pair(void *out, int type, size_t i, float x, float y) {
    if (type == DTYPE_F32)
        *(float2 *)((float *)out + i) = make_float2(x, y);
    else if (type == DTYPE_BF16)
        *(uint32_t *)((uint16_t *)out + i) = ptx::pack_bf16(x, y);
    else
        *(uint32_t *)((uint16_t *)out + i) = ptx::pack_f16(to_f16_range(x), to_f16_range(y));
}

template <class T>
__device__ __forceinline__ void store_rows(const prefill_args &a, const attention_tile &t,
                                           rows16<T> &w, int row, int lane) {
#pragma unroll
    for (int i = 1; i < 4; i *= 2) {
        w.l0 += __shfl_xor_sync(ptx::FULL, w.l0, i);
        w.l1 += __shfl_xor_sync(ptx::FULL, w.l1, i);
    }
    const int n_packed = t.n_rows * a.group, d0 = (lane & 3) * 2;
    if (row < n_packed) {
        const size_t at = packed_row<T>(a, t, row) + d0;
#pragma unroll
        for (int d = 0; d < T::D / 8; d++) {
            store_pair(a.out, a.out_type, at + d * 8, w.o[d][0] / w.l0, w.o[d][1] / w.l0);
        }
    }
    if (row + 8 < n_packed) {
        const size_t at = packed_row<T>(a, t, row + 8) + d0;
#pragma unroll
        for (int d = 0; d < T::D / 8; d++) {
            store_pair(a.out, a.out_type, at + d * 8, w.o[d][2] / w.l1, w.o[d][3] / w.l1);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(T::THREADS) attention_tile_kernel(const prefill_args a) {
    extern __shared__ __align__(1024) char sm[];
    __shared__ int flag;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const int4 *p = (const int4 *)(a.tiles + blockIdx.x);
    const int4 x = __ldg(p), y = __ldg(p + 1), z = __ldg(p + 2);
    const attention_tile t = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w, z.x, z.y, z.z, z.w};
    if (t.row0 < 0) return; /* padding of a captured grid */
    const uint32_t q_tile = ptx::smem(sm), stages = q_tile + T::HEAD;
    const uint32_t halves = stages + 2 * T::STAGE; /* I8 only */
    load_q<T>(a, t, q_tile);
    load_kv<T>(a, t, t.tile_begin, stages);
    ptx::cp_async_commit();

    const int row = t.packed0 + warp * 16 + (lane >> 2), before = t.kv_len - t.n_rows;
    const int lim0 = before + row / a.group, lim1 = before + (row + 8) / a.group;
    const int low0 = a.window > 0 ? lim0 - a.window : -1;
    const int low1 = a.window > 0 ? lim1 - a.window : -1;
    rows16<T> w;
    rows16_sum sum = {};
    float *folded = (float *)sm + threadIdx.x;
    int n_folded = 0;
    w.clear();
    for (int j = t.tile_begin; j < t.tile_end; j++) {
        const int now = (j - t.tile_begin) & 1;
        if (j + 1 < t.tile_end) load_kv<T>(a, t, j + 1, stages + (now ^ 1) * T::STAGE);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        __syncthreads(); /* every thread's part of stage `now` (and of Q) has landed */
        uint32_t k_tile = stages + now * T::STAGE;
        if constexpr (T::E == 1) {
            convert_i8<T>(sm + T::HEAD + now * T::STAGE, sm + T::HEAD + 2 * T::STAGE);
            __syncthreads(); /* the halves are complete */
            k_tile = halves;
        }
        if constexpr (T::Q_IN_REGS) {
            if (j == t.tile_begin) w.load_q_regs(q_tile, warp, lane);
        }
        if constexpr (T::CHUNK > 0) { /* other warps have long had their Q */
            if (j > t.tile_begin && j % T::CHUNK == 0) w.fold(sum, folded, n_folded++ == 0);
        }
        float s[T::BN / 8][4];
        const float *scales =
            (const float *)(sm + T::HEAD + now * T::STAGE + 2 * T::BN * T::D * T::E); /* I8 only */
        w.scores(s, k_tile, q_tile, warp, lane);
        if constexpr (T::E == 1) w.scale_keys(s, scales, lane);
        w.softmax(s, a.scale_log2, j * T::BN, lim0, lim1, low0, low1, lane);
        if constexpr (T::E == 1) w.scale_keys(s, scales + T::BN, lane);
        w.values(s, k_tile + T::TILE, lane);
        __syncthreads(); /* the stage (and the halves) may be overwritten */
    }
    ptx::cp_async_wait<0>();
    if (n_folded > 0) {
        w.fold(sum, folded, false);
        w.unfold(sum, folded);
    }
    if (T::CHUNK > 0 && t.n_split > 1 && !w.merge_slots(a, t, &flag)) return;
    store_rows<T>(a, t, w, row, lane);
}

} // namespace tiles
#endif
