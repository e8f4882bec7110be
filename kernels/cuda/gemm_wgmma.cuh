/* Linear layer of 9..128 rows on wgmma: Y^T = W X^T. Weights are the register-A operand, expanded
 * in registers from the same chunks as the matrix-vector kernels read; activations the
 * shared-memory B operand, in the order of activation_order.cuh. Hopper only.
 *
 *   block   2 consumer warpgroups x MB m64 blocks = a row block; one warp copies weights (ring of
 *           WS stages of 64 * SU inputs), one copies activations (ring of XS slots of 64 inputs)
 *   grid    whole row blocks, or stream-K: block b takes an equal, contiguous run of (row block,
 *           stage) units. A shared row block is added up with 16-byte reductions into y (zeros or
 *           the residual); for SwiGLU two neighbours share it and the first adds (take_sums)
 *   bytes   the matrix once, X from L2. 8B gate_up (28672 x 4096, Q4_K), 64 rows: 67.9 MB = 15.4
 *           us at 4.4 TB/s, 15.0 GFLOP = 19 us at 790 TFLOP/s; measured on an H200: 40.8 us with
 *           the norm kernel before it and SwiGLU; cuBLASLt on halves 59 for the product alone
 *
 * Numerics: half weights and activations, float32 sums. The order of additions of a shared row
 * block is fixed for SwiGLU, not for the others.
 * Source: Marlin and Machete (register-A weights). */
#ifndef INFERD_KERNELS_CUDA_GEMM_WGMMA_CUH
#define INFERD_KERNELS_CUDA_GEMM_WGMMA_CUH

#include "kernels/cuda/activation_order.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_wgmma_table.h"
#include "kernels/cuda/weight_format.cuh"

/* The block of a variant: shared memory by part. */
template <int F, int NB, int MB, int SU, int WS, int XS> struct wgmma_block {
    static constexpr int STAGE = wf_traits<F>::BYTES * SU / wf_traits<F>::UNITS;
    static constexpr int PITCH = STAGE % 128 != 0 ? STAGE / 128 * 128 + 256 : STAGE;
    static constexpr int COLUMNS = NB, TILES = 8 * MB, ROWS = 16 * TILES, X_BYTES = NB * 128,
                         SUM_PITCH = ROWS + 4;
    static constexpr int WARPS = 8, THREADS = WARPS * 32 + 64;
    static constexpr int SMEM =
        XS * X_BYTES + WS * PITCH * TILES + NB * SUM_PITCH * 4 + (2 * WS + 2 * XS) * 8 + 1024;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA_F4(o)  "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3])
#define WGMMA_F16(o) WGMMA_F4(o), WGMMA_F4(o + 4), WGMMA_F4(o + 8), WGMMA_F4(o + 12)
#define WGMMA_A      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc)

/* d[64 x NB] += a[64 x 16] b[16 x NB]; a in registers, b by descriptor. */
template <int NB>
__device__ __forceinline__ void wgmma(float (&d)[NB / 2], const uint32_t *a, uint64_t desc) {
    if constexpr (NB == 16) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 "
                     "{%0,%1,%2,%3,%4,%5,%6,%7},{%8,%9,%10,%11},%12,1,1,1,0;"
                     : WGMMA_F4(0), WGMMA_F4(4)
                     : WGMMA_A);
    } else if constexpr (NB == 32) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
                     "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15},"
                     "{%16,%17,%18,%19},%20,1,1,1,0;"
                     : WGMMA_F16(0)
                     : WGMMA_A);
    } else if constexpr (NB == 64) {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                     "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31},"
                     "{%32,%33,%34,%35},%36,1,1,1,0;"
                     : WGMMA_F16(0), WGMMA_F16(16)
                     : WGMMA_A);
    } else {
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                     "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                     "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                     "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63},"
                     "{%64,%65,%66,%67},%68,1,1,1,0;"
                     : WGMMA_F16(0), WGMMA_F16(16), WGMMA_F16(32), WGMMA_F16(48)
                     : WGMMA_A);
    }
}
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void consumers_meet() {
    asm volatile("bar.sync 1, 256;" ::: "memory");
}
template <bool FIRST> __device__ __forceinline__ uint64_t eviction_policy() {
    uint64_t p;
    if (FIRST)
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    else
        asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p));
    return p;
}
__device__ __forceinline__ void bulk_load_policy(uint32_t dst, const void *src, int bytes,
                                                 uint32_t bar, uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0],[%1],%2,[%3],%4;" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}

/* Where a block's shared memory lies, and its run of units. */
template <class B> struct wgmma_shared {
    uint32_t x, w;        /* rings, shared-memory addresses */
    const uint8_t *w_ptr; /* the weight ring again, for ordinary loads */
    float *sums;
    uint32_t w_full, w_empty, x_full, x_empty;
    int u0, u1, n_stages, block; /* units [u0, u1); stages of a row block; this block's number */
};

/* Weight copies, one lane a 16-row tile; they start before the kernel before has ended. */
template <class B, int WS>
__device__ __forceinline__ void copy_weights(const wgmma_args &p, const wgmma_shared<B> &s,
                                             int lane) {
    int stage = 0;
    uint32_t phase = 1;
    const uint64_t policy = eviction_policy<true>();
    for (int u = s.u0; u < s.u1; u++) {
        ptx::mbar_wait(s.w_empty + stage * 8, phase);
        if (lane == 0) ptx::mbar_expect(s.w_full + stage * 8, B::STAGE * B::TILES);
        __syncwarp();
        if (lane < B::TILES) {
            int tile = u / s.n_stages * B::TILES + lane;
            if (tile >= p.m.n_tiles) tile = p.m.n_tiles - 1; /* its rows are not stored */
            const uint8_t *a =
                p.m.chunks +
                ((size_t)tile * (size_t)s.n_stages + (size_t)(u % s.n_stages)) * B::STAGE;
            const uint32_t off = B::PITCH > B::STAGE ? (uint32_t)(uintptr_t)a & 127 : 0;
            bulk_load_policy(s.w + (stage * B::TILES + lane) * B::PITCH + off, a, B::STAGE,
                             s.w_full + stage * 8, policy);
        }
        if (++stage == WS) {
            stage = 0;
            phase ^= 1;
        }
    }
}

template <class B, int SU, int XS>
__device__ __forceinline__ void copy_activations(const wgmma_args &p, const wgmma_shared<B> &s) {
    int slot = 0;
    uint32_t phase = 1;
    const uint64_t policy = eviction_policy<false>();
    for (int v = s.u0 * SU; v < s.u1 * SU; v++) {
        ptx::mbar_wait(s.x_empty + slot * 8, phase);
        ptx::mbar_expect(s.x_full + slot * 8, B::X_BYTES);
        bulk_load_policy(s.x + slot * B::X_BYTES,
                         (const uint8_t *)p.x + (size_t)(v % (s.n_stages * SU)) * B::X_BYTES,
                         B::X_BYTES, s.x_full + slot * 8, policy);
        if (++slot == XS) {
            slot = 0;
            phase ^= 1;
        }
    }
}

/* A row block shared by two neighbours, for LINEAR_GLU: block b + 1 begins with its last inputs,
 * leaves their sums in the workspace and says so; block b, which ends with its first inputs, adds
 * them. All blocks are resident, and nobody waits before it has told. */
template <class B>
__device__ __forceinline__ void leave_sums(const wgmma_args &p, const wgmma_shared<B> &s,
                                           int block) {
    float4 *to = (float4 *)(p.partial + (size_t)block * (size_t)(B::COLUMNS * B::ROWS));
    for (int o = (int)threadIdx.x; o < p.n_rows * (B::ROWS / 4); o += B::WARPS * 32) {
        to[o] =
            *(const float4 *)(s.sums + o / (B::ROWS / 4) * B::SUM_PITCH + o % (B::ROWS / 4) * 4);
    }
    __threadfence();
    consumers_meet(); /* every thread's part is written */
    if (threadIdx.x == 0) {
        asm volatile("st.release.gpu.global.u32 [%0],%1;" ::"l"(p.flags + block), "r"(1)
                     : "memory");
    }
}

template <class B>
__device__ __forceinline__ void take_sums(const wgmma_args &p, const wgmma_shared<B> &s,
                                          int block) {
    if (threadIdx.x == 0) {
        unsigned told = 0;
        while (told == 0) {
            asm volatile("ld.acquire.gpu.global.u32 %0,[%1];"
                         : "=r"(told)
                         : "l"(p.flags + block)
                         : "memory");
        }
        p.flags[block] = 0; /* for the next launch */
    }
    consumers_meet(); /* the neighbour's sums are there */
    const float4 *from =
        (const float4 *)(p.partial + (size_t)block * (size_t)(B::COLUMNS * B::ROWS));
    for (int o = (int)threadIdx.x; o < p.n_rows * (B::ROWS / 4); o += B::WARPS * 32) {
        float4 *to = (float4 *)(s.sums + o / (B::ROWS / 4) * B::SUM_PITCH + o % (B::ROWS / 4) * 4);
        const float4 v = __ldcg(from + o), w = *to;
        *to = make_float4(w.x + v.x, w.y + v.y, w.z + v.z, w.w + v.w);
    }
    consumers_meet(); /* sums are complete */
}

/* SwiGLU of the row block's sums: gate and up rows lie in turns of 16. */
template <class B>
__device__ __forceinline__ void write_glu(const wgmma_args &p, const wgmma_shared<B> &s, int rb) {
    for (int o = (int)threadIdx.x; o < p.n_rows * (B::ROWS / 8); o += B::WARPS * 32) {
        const int n = o / (B::ROWS / 8), q = o % (B::ROWS / 8) * 4, k = rb * (B::ROWS / 2) + q;
        if (k >= p.m.n_out / 2) continue;
        const float *g = s.sums + n * B::SUM_PITCH + q / 16 * 32 + q % 16;
        float h[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            h[i] = saturate_half(g[i] / (1.0f + __expf(-g[i])) * g[i + 16] * ACT_HALF_SCALE);
        }
        activation_store(p.half_out, p.columns, n, k, ptx::pack_f16(h[0], h[1]),
                         ptx::pack_f16(h[2], h[3]));
    }
}

/* y += the row block's sums, by reductions. */
template <class B>
__device__ __forceinline__ void add_sums(const wgmma_args &p, const wgmma_shared<B> &s, int rb) {
    for (int o = (int)threadIdx.x; o < p.n_rows * (B::ROWS / 4); o += B::WARPS * 32) {
        const int n = o / (B::ROWS / 4), q = o % (B::ROWS / 4) * 4, r = rb * B::ROWS + q;
        if (r >= p.m.n_out) continue;
        const float4 v = *(const float4 *)(s.sums + n * B::SUM_PITCH + q);
        asm volatile(
            "red.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(p.y + (size_t)n * (size_t)p.ldy + r),
            "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
            : "memory");
    }
}

/* What becomes of the sums in s.sums [column][row]; first, last: they hold the row block's first
 * and last inputs. */
template <class B>
__device__ __forceinline__ void write_sums(const wgmma_args &p, const wgmma_shared<B> &s, int rb,
                                           int block, bool first, bool last) {
    consumers_meet(); /* s.sums is complete */
    if (p.output != LINEAR_GLU) {
        add_sums<B>(p, s, rb);
    } else if (!first) {
        leave_sums<B>(p, s, block);
    } else {
        if (!last) take_sums<B>(p, s, block + 1);
        write_glu<B>(p, s, rb);
    }
    consumers_meet(); /* s.sums may be written again */
}

/* A consumer warp. A struct, so that the pieces can be read one by one; it lives in registers. */
template <class B, int F, int NB, int MB, int SU, int WS, int XS> struct wgmma_consumer {
    const wgmma_args &p;
    const wgmma_shared<B> &s;
    const int wg, wq, lane;
    int stage = 0, slot = 0, last_slot = 0;
    uint32_t phase = 0, x_phase = 0;
    float acc[MB][NB / 2];

    __device__ __forceinline__ wgmma_consumer(const wgmma_args &args, const wgmma_shared<B> &shared,
                                              int warp, int lane_)
        : p(args), s(shared), wg(warp >> 2), wq(warp & 3), lane(lane_) {}

    /* This warp's 16-row tile of m64 block m. */
    __device__ __forceinline__ int tile_of(int m) const { return (wg * MB + m) * 4 + wq; }

    /* Its chunk of stage k in the ring: at the place in the 128-byte line that it came from. */
    __device__ __forceinline__ const uint8_t *weights(int rb, int k, int m) const {
        const int i = tile_of(m), tile = min(rb * B::TILES + i, p.m.n_tiles - 1);
        const uint8_t *from =
            p.m.chunks + ((size_t)tile * (size_t)s.n_stages + (size_t)k) * B::STAGE;
        const uint32_t off = B::PITCH > B::STAGE ? (uint32_t)(uintptr_t)from & 127 : 0;
        return s.w_ptr + (stage * B::TILES + i) * B::PITCH + off;
    }

    /* acc += stage k of row block rb. first: no products of this row block are in flight. */
    __device__ __forceinline__ void multiply(int rb, int k, bool first) {
        ptx::mbar_wait(s.w_full + stage * 8, phase);
        wf_frag<F> f[MB];
        uint32_t a[2][MB][16];
        const uint8_t *c[MB];
#pragma unroll
        for (int m = 0; m < MB; m++) c[m] = weights(rb, k, m);
#pragma unroll
        for (int v = 0; v < SU; v++) { /* expand 64 inputs while the products of the last run */
            if (v % wf_traits<F>::UNITS == 0) {
#pragma unroll
                for (int m = 0; m < MB; m++) {
                    f[m].load(c[m] + v / wf_traits<F>::UNITS * wf_traits<F>::BYTES, lane);
                }
            }
#pragma unroll
            for (int m = 0; m < MB; m++) f[m].expand(v % wf_traits<F>::UNITS, a[v & 1][m]);
            ptx::mbar_wait(s.x_full + slot * 8, x_phase);
            /* K-major, 128-byte swizzle, 1,024 bytes between groups of 8 columns */
            const uint64_t desc = (uint64_t)(((s.x + slot * B::X_BYTES) & 0x3ffff) >> 4) |
                                  (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int m = 0; m < MB; m++) wgmma<NB>(acc[m], a[v & 1][m] + 4 * i, desc + 2 * i);
            }
            wgmma_commit();
            wgmma_wait<1>();
            if ((v > 0 || !first) && lane == 0) ptx::mbar_arrive(s.x_empty + last_slot * 8);
            last_slot = slot;
            if (++slot == XS) {
                slot = 0;
                x_phase ^= 1;
            }
        }
        __syncwarp(); /* every lane's loads of this stage have been consumed */
        if (lane == 0) ptx::mbar_arrive(s.w_empty + stage * 8);
        if (++stage == WS) {
            stage = 0;
            phase ^= 1;
        }
    }

    /* The accumulators, scaled: straight to y, or to shared memory for write_sums. */
    __device__ __forceinline__ void emit(int rb, bool first_stage, bool direct) {
        const int g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int m = 0; m < MB; m++) {
            const int rl = tile_of(m) * 16 + g;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = rb * B::ROWS + rl + 8 * h;
                const float scale = row < p.m.n_tiles * TILE_ROWS ? p.m.row_scale[row] : 0.0f;
                const bool biased = p.bias != nullptr && first_stage && row < p.m.n_out;
                const float bias = biased ? p.bias[row] : 0.0f;
#pragma unroll
                for (int j = 0; j < NB / 4; j++) {
                    const int column = j / 2 * 8 + 2 * t + (j & 1);
                    const float v = acc[m][4 * (j / 2) + 2 * h + (j & 1)] * scale + bias;
                    if (!direct) {
                        s.sums[column * B::SUM_PITCH + rl + 8 * h] = v;
                    } else if (column < p.n_rows && row < p.m.n_out) {
                        p.y[(size_t)column * (size_t)p.ldy + row] = v;
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void run() {
        for (int u = s.u0; u < s.u1;) {
            const int rb = u / s.n_stages, k0 = u % s.n_stages;
            const int n = min(s.n_stages - k0, s.u1 - u);
            u += n;
#pragma unroll
            for (int m = 0; m < MB; m++) {
#pragma unroll
                for (int i = 0; i < NB / 2; i++) acc[m][i] = 0;
            }
            for (int k = 0; k < n; k++) multiply(rb, k0 + k, k == 0);
            wgmma_wait<0>();
            if (lane == 0) ptx::mbar_arrive(s.x_empty + last_slot * 8);
            const bool direct = n == s.n_stages && p.output == LINEAR_STORE;
            emit(rb, k0 == 0, direct);
            if (!direct) write_sums<B>(p, s, rb, s.block, k0 == 0, k0 + n == s.n_stages);
        }
    }
};
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* A thread block's work as number `block` of the n_blocks that share matrix p.m. */
template <int F, int NB, int MB, int SU, int WS, int XS>
__device__ __forceinline__ void wgmma_work(const wgmma_args &p, uint8_t *raw, int block,
                                           int n_blocks) {
    using B = wgmma_block<F, NB, MB, SU, WS, XS>;
    uint8_t *xs = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023); /* swizzle atoms */
    uint8_t *ws = xs + XS * B::X_BYTES;
    wgmma_shared<B> s;
    s.x = ptx::smem(xs);
    s.w = ptx::smem(ws);
    s.w_ptr = ws;
    s.sums = (float *)(ws + WS * B::PITCH * B::TILES);
    s.w_full = ptx::smem(s.sums + NB * B::SUM_PITCH);
    s.w_empty = s.w_full + WS * 8;
    s.x_full = s.w_empty + WS * 8;
    s.x_empty = s.x_full + XS * 8;
    s.n_stages = p.m.n_units / SU;
    s.block = block;
    const int row_blocks = (p.m.n_tiles + B::TILES - 1) / B::TILES;
    const long long part = p.whole ? row_blocks : (long long)row_blocks * s.n_stages;
    const int a_part = p.whole ? s.n_stages : 1;
    s.u0 = (int)(block * part / n_blocks) * a_part;
    s.u1 = (int)((block + 1) * part / n_blocks) * a_part;
    const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    if (threadIdx.x == 0) {
        for (int i = 0; i < WS; i++) {
            ptx::mbar_init(s.w_full + i * 8, 1);
            ptx::mbar_init(s.w_empty + i * 8, B::WARPS);
        }
        for (int i = 0; i < XS; i++) {
            ptx::mbar_init(s.x_full + i * 8, 1);
            ptx::mbar_init(s.x_empty + i * 8, B::WARPS);
        }
        ptx::mbar_init_fence();
    }
    __syncthreads(); /* barriers are ready */
    ptx::pdl_trigger();
    if (warp == B::WARPS) {
        copy_weights<B, WS>(p, s, lane);
    } else if (warp == B::WARPS + 1) {
        if (lane != 0) return;
        ptx::pdl_wait();
        copy_activations<B, SU, XS>(p, s);
    } else {
        ptx::pdl_wait(); /* y and half_out belong to the kernels before until here */
        wgmma_consumer<B, F, NB, MB, SU, WS, XS>(p, s, warp, lane).run();
    }
}
#endif

template <int F, int NB, int MB, int SU, int WS, int XS>
__global__ __launch_bounds__(320, 1) void wgmma_kernel(const __grid_constant__ wgmma_args p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t raw[];
    wgmma_work<F, NB, MB, SU, WS, XS>(p, raw, (int)blockIdx.x, (int)gridDim.x);
#else
    __trap(); /* built without sm_90a: the host must not choose this kernel */
#endif
}

/* Two matrices of different formats over the same activations (q and k, then v): the first n_first
 * blocks take the first. One launch less in half of a Q4_K_M model's layers. */
template <int F, int G, int NB, int SU, int WF, int WG, int XS>
__global__ __launch_bounds__(320, 1) void wgmma_pair_kernel(const __grid_constant__ wgmma_args p,
                                                            const __grid_constant__ wgmma_args q,
                                                            int n_first) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t raw[];
    const int block = (int)blockIdx.x;
    if (block < n_first) {
        wgmma_work<F, NB, 1, SU, WF, XS>(p, raw, block, n_first);
    } else {
        wgmma_work<G, NB, 1, SU, WG, XS>(q, raw, block - n_first, (int)gridDim.x - n_first);
    }
#else
    __trap();
#endif
}

template <int F, int NB, int MB, int SU, int WS, int XS> wgmma_variant wgmma_instance() {
    using B = wgmma_block<F, NB, MB, SU, WS, XS>;
    static_assert(B::SMEM <= 227 * 1024, "shared memory");
    return {(const void *)wgmma_kernel<F, NB, MB, SU, WS, XS>, NB, MB, SU, B::SMEM};
}

/* Ring depths by what fits; the fastest that were measured. W: stages of weights, X: slots
 * of activations, by columns; D: two m64 blocks a warpgroup. */
template <int F, int SU> struct wgmma_depth {
    static constexpr int STAGE = wf_traits<F>::BYTES * SU / wf_traits<F>::UNITS;
    static constexpr bool SMALL = STAGE < 2600, MIDDLE = STAGE < 3600;
    static constexpr int W16D = SMALL ? 4 : MIDDLE ? 3 : 2, X16D = 8;
    static constexpr int W32D = SMALL ? 3 : 2, X32D = SMALL ? 12 : 8;
    static constexpr int W32 = SMALL ? 6 : MIDDLE ? 5 : 4, X32 = 10;
    static constexpr int W64 = SMALL ? 4 : 3, X64 = MIDDLE ? 8 : 6;
    static constexpr int W128 = SMALL ? 3 : 2, X128 = MIDDLE ? 5 : 4;
};

/* The variants of a format. */
template <int F, int SU> const wgmma_variant *wgmma_table() {
    using D = wgmma_depth<F, SU>;
    static const wgmma_variant v[WGMMA_VARIANTS] = {
        wgmma_instance<F, 16, 2, SU, D::W16D, D::X16D>(),
        wgmma_instance<F, 32, 2, SU, D::W32D, D::X32D>(),
        wgmma_instance<F, 32, 1, SU, D::W32, D::X32>(),
        wgmma_instance<F, 64, 1, SU, D::W64, D::X64>(),
        wgmma_instance<F, 128, 1, SU, D::W128, D::X128>(),
    };
    return v;
}

template <int F, int G, int NB, int SU, int WF, int WG, int XS>
wgmma_pair_variant wgmma_pair_instance() {
    constexpr int A = wgmma_block<F, NB, 1, SU, WF, XS>::SMEM;
    constexpr int B = wgmma_block<G, NB, 1, SU, WG, XS>::SMEM;
    static_assert(A <= 227 * 1024 && B <= 227 * 1024, "shared memory");
    return {(const void *)wgmma_pair_kernel<F, G, NB, SU, WF, WG, XS>, NB, SU, A > B ? A : B};
}

template <int F, int G, int SU> const wgmma_pair_variant *wgmma_pair_table() {
    using A = wgmma_depth<F, SU>;
    using B = wgmma_depth<G, SU>;
    static const wgmma_pair_variant v[WGMMA_PAIR_VARIANTS] = {
        wgmma_pair_instance<F, G, 16, SU, A::W32, B::W32, B::X32>(),
        wgmma_pair_instance<F, G, 32, SU, A::W32, B::W32, B::X32>(),
        wgmma_pair_instance<F, G, 64, SU, A::W64, B::W64, B::X64>(),
        wgmma_pair_instance<F, G, 128, SU, A::W128, B::W128, B::X128>(),
    };
    return v;
}
#endif
