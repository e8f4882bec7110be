/* Paged, variable-length, causal attention over tiles of rows with mma.sync: sm_80 and up. Serves
 * prefill where the wgmma kernel is not built (devices, I8, head_dim 80 and 256) and every row in
 * deterministic mode.
 *   out[r,h,:] = softmax(q[r,h,:] K^T * scale) V, keys [max(0, pos + 1 - window), pos]
 *   M: 64 packed (token, head in group) rows, 4 warps of 16; keys in tiles of BN, double buffered
 *   grid: one block a tile; shared memory: Q 64 x D, two stages of K and V (I8: two byte stages
 *   and one converted to halves)
 *   flops as in attention_prefill.cuh. Measured (H200), 8,192 rows of the 8B shape: F16 264
 *   TFLOP/s, I8 185 (addresses per chunk: 177; K and V scaled one by one: 134)
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
    static constexpr int SMEM = Q_BYTES + 2 * STAGE + (E == 1 ? 2 * TILE : 0);
    static constexpr bool Q_IN_REGS = D <= 128;
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

/* A warp's 16 rows: a lane holds rows lane / 4 and + 8, columns (lane % 4) * 2 of every 8. */
template <class T> struct rows16 {
    float o[T::D / 8][4], m0, m1, l0, l1; /* m: maximum in base-2 units */
    uint32_t q[T::Q_IN_REGS ? T::D / 16 : 1][4];

    __device__ __forceinline__ void clear() {
        m0 = m1 = -INFINITY;
        l0 = l1 = 0.0f;
#pragma unroll
        for (int d = 0; d < T::D / 8; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.0f;
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
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const int4 *p = (const int4 *)(a.tiles + blockIdx.x);
    const int4 x = __ldg(p), y = __ldg(p + 1), z = __ldg(p + 2);
    const attention_tile t = {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w, z.x, z.y, z.z, z.w};
    const uint32_t q_tile = ptx::smem(sm), stages = q_tile + T::Q_BYTES;
    const uint32_t halves = stages + 2 * T::STAGE; /* I8 only */
    load_q<T>(a, t, q_tile);
    load_kv<T>(a, t, t.tile_begin, stages);
    ptx::cp_async_commit();

    const int row = t.packed0 + warp * 16 + (lane >> 2), before = t.kv_len - t.n_rows;
    const int lim0 = before + row / a.group, lim1 = before + (row + 8) / a.group;
    const int low0 = a.window > 0 ? lim0 - a.window : -1;
    const int low1 = a.window > 0 ? lim1 - a.window : -1;
    rows16<T> w;
    w.clear();
    for (int j = t.tile_begin; j < t.tile_end; j++) {
        const int now = (j - t.tile_begin) & 1;
        if (j + 1 < t.tile_end) load_kv<T>(a, t, j + 1, stages + (now ^ 1) * T::STAGE);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();
        __syncthreads(); /* every thread's part of stage `now` (and of Q) has landed */
        uint32_t k_tile = stages + now * T::STAGE;
        if constexpr (T::E == 1) {
            convert_i8<T>(sm + T::Q_BYTES + now * T::STAGE, sm + T::Q_BYTES + 2 * T::STAGE);
            __syncthreads(); /* the halves are complete */
            k_tile = halves;
        }
        if constexpr (T::Q_IN_REGS) {
            if (j == t.tile_begin) {
#pragma unroll
                for (int k = 0; k < T::D / 16; k++) {
                    ptx::ldmatrix(w.q[k], lane_at<T>(q_tile, T::BM, warp * 16, k, lane));
                }
            }
        }
        float s[T::BN / 8][4];
        const float *scales = (const float *)(sm + T::Q_BYTES + now * T::STAGE +
                                              2 * T::BN * T::D * T::E); /* I8 only */
        w.scores(s, k_tile, q_tile, warp, lane);
        if constexpr (T::E == 1) w.scale_keys(s, scales, lane);
        w.softmax(s, a.scale_log2, j * T::BN, lim0, lim1, low0, low1, lane);
        if constexpr (T::E == 1) w.scale_keys(s, scales + T::BN, lane);
        w.values(s, k_tile + T::TILE, lane);
        __syncthreads(); /* the stage (and the halves) may be overwritten */
    }
    ptx::cp_async_wait<0>();
    store_rows<T>(a, t, w, row, lane);
}

} // namespace tiles
#endif
