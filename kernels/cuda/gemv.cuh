/* Linear layer of 1..8 rows on tensor cores, memory bound: a block owns a run of 16-row tiles and
 * all inputs; its warps split the inputs, so a warp's activations stay in registers while it walks
 * over the tiles. Each warp streams its weights through a private ring of bulk copies: no producer,
 * no "empty" barriers, no block barrier in the main loop. A slot is re-armed only after the MMAs
 * that consumed its registers; right after the loads were issued is a race (measured).
 *
 *   grid    one block an SM, but no more than tiles (pairs of tiles for SwiGLU)
 *   block   n_warps warps; a warp takes UW units of 64 inputs a pass. Inputs beyond what one pass
 *           holds take more of them, with the sums of all tiles in registers (MULTI)
 *   smem    rings | sums: 4 or 8 tiles x n_warps x n_rows x 20 floats | barriers, squares, row
 * scales bytes   the matrix once. 8B gate_up (28672 x 4096, Q4_K): 67.9 MB = 15.4 us at 4.4 TB/s;
 *           measured on an H200, one row: 19.5 us with norm and SwiGLU (the bare product 17.2)
 *
 * Folded in:
 *   norm    x is the residual times 2^-3 in halves; a fragment is multiplied by the norm weight,
 *           each warp sums its squares, and 1/rms scales the outputs, where the block meets anyway
 *   rope    pairs (2i, 2i+1) sit in one tile: a shuffle rotates; k and v go to the cache
 *   glu     gate and up tiles lie in turns; a block takes whole pairs
 * Everything that does not depend on the kernel before is read before griddepcontrol.wait.
 *
 * Numerics: half weights and activations, float32 sums in a fixed order: same bits in every run.
 * Source: our studies of linear layers and of the decode step. */
#ifndef INFERD_KERNELS_CUDA_GEMV_CUH
#define INFERD_KERNELS_CUDA_GEMV_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemv_table.h"
#include "kernels/cuda/weight_format.cuh"

enum { GEMV_WARPS_MAX = 16, GEMV_THREADS_MAX = 512, GEMV_SUM_STRIDE = 20, GEMV_TILES_MULTI = 2 };

/* Ring slot of UW units: keeps a copy's place in its 128-byte line, so that copies go line by line.
 */
template <int F, int UW> struct gemv_slot {
    static constexpr int CHUNKS = UW / wf_traits<F>::UNITS;
    static constexpr int BYTES = CHUNKS * wf_traits<F>::BYTES;
    static constexpr int PITCH = BYTES % 128 != 0 ? BYTES / 128 * 128 + 256 : BYTES;
};

/* Barriers of a warp: an even count, so that no two warps share 16 bytes (racecheck's grain). */
__host__ __device__ constexpr int gemv_bars(int n_slots) {
    return (n_slots + 1) & ~1;
}

#if PTX_SM90
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t p;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    return p;
}
__device__ __forceinline__ void bulk_load_once(uint32_t dst, const void *src, int bytes,
                                               uint32_t bar, uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0],[%1],%2,[%3],%4;" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
}

/* Half x rows: lane's 16 inputs of unit `unit` of row g, zero past the edges. */
__device__ __forceinline__ void gemv_load_x(uint32_t (&x)[8], const uint16_t *rows, int g,
                                            int n_rows, int n_in, int unit, int t) {
    const int k = unit * UNIT_INPUTS + 16 * t;
    uint4 p = make_uint4(0, 0, 0, 0), q = p;
    if (g < n_rows && k < n_in) {
        const uint4 *s = (const uint4 *)(rows + (size_t)g * (size_t)n_in + k);
        p = __ldcg(s);
        q = __ldcg(s + 1);
    }
    x[0] = p.x;
    x[1] = p.y;
    x[2] = p.z;
    x[3] = p.w;
    x[4] = q.x;
    x[5] = q.y;
    x[6] = q.z;
    x[7] = q.w;
}

/* What an output of q, k or v needs besides its sum: read before the products, used after. */
struct gemv_place {
    int block, token; /* of the cache: the column's position */
    float2 angle;     /* (cos, sin) of the pair */
};

__device__ __forceinline__ float2 gemv_angle(const gemv_rope &r, int column, int n) {
    n += r.column0;
    const int head = n / r.kv.head_dim, d = n - head * r.kv.head_dim;
    if (head >= r.n_heads + r.kv.n_kv_heads || d >= r.n_rot) return make_float2(1, 0);
    return __ldcg(r.rope + (size_t)column * (size_t)(r.n_rot / 2) + d / 2);
}

__device__ __forceinline__ void gemv_find_place(const gemv_rope &r, int column, gemv_place &at) {
    const int pos = __ldcg(r.row_pos + column), seq = __ldcg(r.row_seq + column);
    at.block = __ldcg(r.block + __ldcg(r.block_start + seq) + pos / r.kv.block_tokens);
    at.token = pos % r.kv.block_tokens;
}

/* One output of q, k or v: rotated, to its place. The partner of the pair is in the neighbouring
 * lane, so all lanes come here; write: this lane has an output. */
__device__ __forceinline__ void gemv_rope_output(const gemv_rope &r, const gemv_place &at,
                                                 bool write, int column, int n, float v) {
    const float other = __shfl_xor_sync(ptx::FULL, v, 1);
    if (!write) return;
    n += r.column0;
    const int d_head = r.kv.head_dim, n_kv = r.kv.n_kv_heads, head = n / d_head;
    v = v * at.angle.x + (n & 1 ? other : -other) * at.angle.y; /* (1, 0) where nothing rotates */
    v = v != v ? 0.0f : v; /* the cache holds finite values only */
    uint16_t bits;
    if (r.kv.type == DTYPE_F16) {
        bits = __half_as_ushort(__float2half_rn(saturate_half(v)));
    } else {
        v = fminf(fmaxf(v, -3.38e38f), 3.38e38f);
        bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
    }
    if (head < r.n_heads) {
        r.q[(size_t)column * (size_t)(r.n_heads * d_head) + n] = bits;
        return;
    }
    const int value = head >= r.n_heads + n_kv ? 1 : 0;
    uint8_t *to = r.kv_layer + kv_head_offset(&r.kv, at.block, head - r.n_heads - value * n_kv) +
                  kv_elem_offset(&r.kv, value, at.token, n - head * d_head);
    *(uint16_t *)to = bits;
}

/* One block's work. A struct, so that the pieces can be read one by one: everything is inlined and
 * lives in registers. block, n_blocks: this block's place among those that share the matrix. */
template <int F, int UW, int EP, bool MULTI> struct gemv_work {
    using slot_t = gemv_slot<F, UW>;
    static constexpr bool NORM = EP != GEMV_RESIDUAL;
    static constexpr int SUM_TILES = gemv_sum_tiles(EP);
    static constexpr int PAIR = EP == GEMV_GLU ? 2 : 1, CST = GEMV_SUM_STRIDE;
    static constexpr int NACC = MULTI ? GEMV_TILES_MULTI : 1;
    static constexpr bool MOVES = slot_t::PITCH > slot_t::BYTES; /* a copy keeps its line offset */

    const gemv_args &p;
    int warp, lane, t0, n_tiles, my_passes, n_steps, fill_tile, fill_pass, slot, step;
    int row, column, sub; /* this thread's output: row of tile i0 + sub, column */
    size_t tile_bytes;
    const uint8_t *src, *ring;
    float *sums, *squares, *scales;
    uint32_t bar, ring_at, phase;
    uint64_t policy;
    float inverse, residual; /* 1 / rms of the column; of the first reduction */
    uint32_t x[UW][8], gamma[NORM ? UW : 1][8];
    gemv_place place;

    __device__ __forceinline__ gemv_work(const gemv_args &args, uint8_t *smem, int block,
                                         int n_blocks)
        : p(args) {
        const int tid = (int)threadIdx.x, slots = p.n_warps * p.n_slots;
        warp = tid >> 5;
        lane = tid & 31;
        ring = smem + (size_t)(warp * p.n_slots) * slot_t::PITCH;
        sums = (float *)(smem + (size_t)slots * slot_t::PITCH);
        uint64_t *bars = (uint64_t *)(sums + SUM_TILES * p.n_warps * p.n_rows * CST);
        squares = (float *)(bars + p.n_warps * gemv_bars(p.n_slots));
        scales = squares + p.n_warps * 8;
        bar = ptx::smem(bars + warp * gemv_bars(p.n_slots));
        ring_at = ptx::smem(ring);
        const int groups = p.m.n_tiles / PAIR;
        t0 = PAIR * (int)((long long)block * groups / n_blocks);
        n_tiles = PAIR * (int)((long long)(block + 1) * groups / n_blocks) - t0;
        const int n_slices = p.m.n_units / UW; /* slice pass * n_warps + warp is this warp's */
        tile_bytes = (size_t)n_slices * slot_t::BYTES;
        src = p.m.chunks + (size_t)t0 * tile_bytes + (size_t)warp * slot_t::BYTES;
        my_passes = warp < n_slices ? (n_slices - warp + p.n_warps - 1) / p.n_warps : 0;
        n_steps = n_tiles * my_passes;
        fill_tile = fill_pass = slot = step = 0;
        phase = 0;
        inverse = 1;
        residual = 0;
        row = tid & 15;
        column = (tid >> 4) % p.n_rows;
        sub = (tid >> 4) / p.n_rows;
        policy = evict_first_policy();
    }

    __device__ __forceinline__ const uint8_t *slice(int tile, int pass) const {
        return src + (size_t)tile * tile_bytes + (size_t)(pass * p.n_warps) * slot_t::BYTES;
    }

    /* Orders the next copy into slot s. One lane. */
    __device__ __forceinline__ void fill(int s) {
        const uint8_t *a = slice(fill_tile, fill_pass);
        const uint32_t off = MOVES ? (uint32_t)(uintptr_t)a & 127 : 0;
        ptx::mbar_expect(bar + s * 8, slot_t::BYTES);
        bulk_load_once(ring_at + s * slot_t::PITCH + off, a, slot_t::BYTES, bar + s * 8, policy);
        if (++fill_tile == n_tiles) {
            fill_tile = 0;
            fill_pass++;
        }
    }

    /* What does not depend on the kernel before: first copies, row scales, norm weights. */
    __device__ __forceinline__ void start() {
        ptx::pdl_trigger(); /* the next kernel's weights do not depend on this one */
        if (lane == 0) {
            for (int i = 0; i < p.n_slots; i++) ptx::mbar_init(bar + i * 8, 1);
            ptx::mbar_init_fence();
            for (int i = 0; i < p.n_slots && i < n_steps; i++) fill(i);
        }
        __syncthreads(); /* the barriers exist before any lane waits on them */
        for (int i = (int)threadIdx.x; i < n_tiles * 16; i += p.n_warps * 32) {
            scales[i] = __ldg(p.m.row_scale + t0 * 16 + i);
        }
        if constexpr (NORM) {
#pragma unroll
            for (int u = 0; u < UW; u++) {
                gemv_load_x(gamma[u], p.norm, 0, 1, p.m.n_in, warp * UW + u, lane & 3);
            }
        }
    }

    __device__ __forceinline__ void load_x(uint32_t (&to)[UW][8], int pass) const {
#pragma unroll
        for (int u = 0; u < UW; u++) {
            const int unit = (pass * p.n_warps + warp) * UW + u;
            gemv_load_x(to[u], p.x, lane >> 2, p.n_rows, p.m.n_in, unit, lane & 3);
        }
    }

    /* x *= norm weights; the squares of this warp's inputs, for 1 / rms. */
    __device__ __forceinline__ void apply_norm() {
        float s = 0;
#pragma unroll
        for (int u = 0; u < UW; u++) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float2 f = __half22float2(as_half2(x[u][j]));
                s += f.x * f.x + f.y * f.y;
                x[u][j] = half2_bits(__hmul2(as_half2(x[u][j]), as_half2(gamma[u][j])));
            }
        }
        s += __shfl_xor_sync(ptx::FULL, s, 1);
        s += __shfl_xor_sync(ptx::FULL, s, 2);
        if ((lane & 3) == 0) squares[warp * 8 + (lane >> 2)] = s;
    }

    /* ac += this warp's slice of tile i times x. */
    __device__ __forceinline__ void multiply(int i, int pass, float (&ac)[2][4]) {
        ptx::mbar_wait(bar + slot * 8, phase);
        const uint32_t off = MOVES ? (uint32_t)(uintptr_t)slice(i, pass) & 127 : 0;
        const uint8_t *c = ring + slot * slot_t::PITCH + off;
        wf_frag<F> f[slot_t::CHUNKS];
#pragma unroll
        for (int k = 0; k < slot_t::CHUNKS; k++) f[k].load(c + k * wf_traits<F>::BYTES, lane);
#pragma unroll
        for (int u = 0; u < UW; u++) {
            uint32_t w[16];
            f[u / wf_traits<F>::UNITS].expand(u % wf_traits<F>::UNITS, w);
#pragma unroll
            for (int s = 0; s < 4; s++)
                mma_half(ac[s & 1], w + 4 * s, x[u][2 * s], x[u][2 * s + 1]);
        }
        __syncwarp(); /* all lanes have consumed the slot */
        if (lane == 0 && step + p.n_slots < n_steps) fill(slot);
        step++;
        if (++slot == p.n_slots) {
            slot = 0;
            phase ^= 1;
        }
    }

    __device__ __forceinline__ void store(int i, const float (&ac)[2][4]) {
        float *r = sums + ((i % SUM_TILES) * p.n_warps + warp) * p.n_rows * CST;
        const int c = 2 * (lane & 3), g = lane >> 2;
        if (c < p.n_rows) {
            r[c * CST + g] = ac[0][0] + ac[1][0];
            r[c * CST + g + 8] = ac[0][2] + ac[1][2];
        }
        if (c + 1 < p.n_rows) {
            r[(c + 1) * CST + g] = ac[0][1] + ac[1][1];
            r[(c + 1) * CST + g + 8] = ac[0][3] + ac[1][3];
        }
    }

    __device__ __forceinline__ float sum(int i) const {
        const float *q = sums + (i % SUM_TILES) * p.n_warps * p.n_rows * CST + column * CST + row;
        float v = 0;
#pragma unroll
        for (int j = 0; j < GEMV_WARPS_MAX; j++) { /* unrolled: the loads go out together */
            if (j < p.n_warps) v += q[j * p.n_rows * CST];
        }
        return v * scales[i * 16 + row] * inverse;
    }

    __device__ __forceinline__ void put_half(int n, float v) const {
        p.half_out[(size_t)column * (size_t)p.ld_half + n] =
            __half_as_ushort(__float2half_rn(saturate_half(v)));
    }

    /* Outputs of tiles i0 .. i0 + count: at most one a thread. */
    __device__ __forceinline__ void reduce(int i0, int count) {
        __syncthreads(); /* sums of these tiles are complete; those of the group before are read */
        if (NORM && i0 == 0) {
            float s = 0;
#pragma unroll
            for (int j = 0; j < GEMV_WARPS_MAX; j++) {
                if (j < p.n_warps) s += squares[j * 8 + column];
            }
            constexpr float XS = RESIDUAL_HALF_SCALE;
            inverse = rsqrtf(s / (XS * XS * (float)p.m.n_in) + p.eps) / XS;
        }
        if constexpr (EP == GEMV_GLU) {
            const int first = i0 + 2 * sub, n = (t0 + first) / 2 * 16 + row;
            if (2 * sub < count && n < p.m.n_out / 2) {
                const float a = sum(first), b = sum(first + 1);
                put_half(n, a / (1.0f + __expf(-a)) * b * ACT_HALF_SCALE);
            }
            return;
        }
        const int i = i0 + sub, n = (t0 + i) * 16 + row;
        const bool write = sub < count && n < p.m.n_out;
        float v = write ? sum(i) : 0;
        if (write && p.bias != nullptr) v += __ldg(p.bias + n);
        if constexpr (EP == GEMV_ROPE) {
            if (i0 > 0 && write) place.angle = gemv_angle(p.rope, column, n);
            gemv_rope_output(p.rope, place, write, column, n, v);
            return;
        }
        if (!write) return;
        float *y = p.y + (size_t)column * (size_t)p.ldy + n;
        if constexpr (EP == GEMV_RESIDUAL) {
            v += i0 == 0 ? residual : *y;
            put_half(n, v * RESIDUAL_HALF_SCALE);
        }
        *y = v;
    }

    __device__ __forceinline__ void one_pass() {
        int i0 = 0; /* first tile of the group that is reduced together */
        for (int i = 0; i < n_tiles; i++) {
            float acc[2][4] = {};
            if (my_passes > 0) multiply(i, 0, acc);
            store(i, acc);
            if (i + 1 == i0 + p.group || i == n_tiles - 1) {
                reduce(i0, i + 1 - i0);
                i0 = i + 1;
            }
        }
    }

    __device__ __forceinline__ void many_passes() {
        float acc[NACC][2][4] = {};
        uint32_t next[UW][8] = {};
#pragma unroll 1
        for (int pass = 0; pass < p.n_passes; pass++) {
            if (pass + 1 < p.n_passes) load_x(next, pass + 1); /* travels during this pass */
#pragma unroll
            for (int i = 0; i < NACC; i++) {
                if (pass < my_passes && i < n_tiles) multiply(i, pass, acc[i]);
            }
#pragma unroll
            for (int u = 0; u < UW; u++) {
#pragma unroll
                for (int j = 0; j < 8; j++) x[u][j] = next[u][j];
            }
        }
#pragma unroll
        for (int i = 0; i < NACC; i++) {
            if (i < n_tiles) store(i, acc[i]);
        }
        reduce(0, n_tiles);
    }

    __device__ __forceinline__ void run() {
        start();
        ptx::pdl_wait();
        load_x(x, 0);
        if constexpr (EP == GEMV_ROPE) {
            gemv_find_place(p.rope, column, place);
            place.angle = gemv_angle(p.rope, column, (t0 + sub) * 16 + row);
        }
        if (EP == GEMV_RESIDUAL && sub < n_tiles && sub < p.group) {
            const int n = (t0 + sub) * 16 + row;
            if (n < p.m.n_out) residual = __ldcg(p.y + (size_t)column * (size_t)p.ldy + n);
        }
        if constexpr (NORM) apply_norm();
        if constexpr (MULTI)
            many_passes();
        else
            one_pass();
    }
};
#endif

/* q, k, v keep to 96 registers, so that a block of attention (128 threads of 127) fits beside them:
 * it then starts while they end. The bound is the way to say so. */
constexpr int gemv_bound(int output) {
    return output == GEMV_ROPE ? 640 : GEMV_THREADS_MAX;
}

template <int F, int UW, int EP, bool MULTI>
__global__ __launch_bounds__(gemv_bound(EP),
                             1) void gemv_kernel(const __grid_constant__ gemv_args p) {
#if PTX_SM90
    extern __shared__ __align__(128) uint8_t smem[];
    gemv_work<F, UW, EP, MULTI>(p, smem, (int)blockIdx.x, (int)gridDim.x).run();
#else
    __trap(); /* older than sm_90: the host must not choose this kernel */
#endif
}

/* Two matrices of different formats over the same inputs (q and k, then v): the first n_first
 * blocks take the first. One launch less in half of a Q4_K_M model's layers. */
template <int F, int G, int UW, int EP>
__global__ __launch_bounds__(gemv_bound(EP),
                             1) void gemv_pair_kernel(const __grid_constant__ gemv_args p,
                                                      const __grid_constant__ gemv_args q,
                                                      int n_first) {
#if PTX_SM90
    extern __shared__ __align__(128) uint8_t smem[];
    const int block = (int)blockIdx.x;
    if (block < n_first) {
        gemv_work<F, UW, EP, false>(p, smem, block, n_first).run();
    } else {
        gemv_work<G, UW, EP, false>(q, smem, block - n_first, (int)gridDim.x - n_first).run();
    }
#endif
}

/* The kernels of format F for UW units a warp. */
template <int F, int UW> const gemv_kernels *gemv_instance() {
    static const gemv_kernels k = {
        UW,
        gemv_slot<F, UW>::BYTES,
        gemv_slot<F, UW>::PITCH,
        {(const void *)gemv_kernel<F, UW, GEMV_STORE, false>,
         (const void *)gemv_kernel<F, UW, GEMV_ROPE, false>,
         (const void *)gemv_kernel<F, UW, GEMV_GLU, false>,
         (const void *)gemv_kernel<F, UW, GEMV_RESIDUAL, false>},
        (const void *)gemv_kernel<F, UW, GEMV_RESIDUAL, true>,
    };
    return &k;
}
#endif
