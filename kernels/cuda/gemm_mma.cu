/* Linear layer for any format, shape and architecture: Y^T = W X^T on mma.sync m16n8k16.
 *   x [n_rows, ldx] halves, W chunks (weight_format.cuh), outputs as linear.h says
 *   grid (tile groups, column groups of 8 * NT rows of x); block: 8 warps; a warp takes every
 *   eighth chunk of its tile's inputs from global memory; partial sums meet in shared memory
 *   bytes: W once a column group; x from L2. NT = 1 for up to 8 rows, else 4. 8B Q4_K_M step,
 *   one row, H200: 3,000 us against 1,690 with the matrix-vector kernels
 *
 * Numerics: the order of additions (chunks of a warp ascending, then warps 0..7) depends on n_in
 * and the format only, so a row's bits do not depend on the other rows: the deterministic mode's
 * kernel.
 * Source: Marlin (weights expanded in registers beside mma), simplified. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/weight_format.cuh"

namespace {

enum { WARPS = 8, THREADS = WARPS * 32 };

/* B fragments of one unit: lane's 16 inputs of column n * 8 + g. */
template <int NT>
__device__ __forceinline__ void load_x(const linear_args &a, int n_in, int column0, int unit,
                                       int lane, uint32_t (&x)[NT][8]) {
    const int g = lane >> 2, k = unit * UNIT_INPUTS + 16 * (lane & 3);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const int row = column0 + n * 8 + g;
        uint4 p = make_uint4(0, 0, 0, 0), q = p;
        if (row < a.n_rows && k < n_in) {
            const uint4 *s = (const uint4 *)(a.x + (size_t)row * (size_t)a.ldx + k);
            p = s[0];
            q = s[1];
        }
        x[n][0] = p.x;
        x[n][1] = p.y;
        x[n][2] = p.z;
        x[n][3] = p.w;
        x[n][4] = q.x;
        x[n][5] = q.y;
        x[n][6] = q.z;
        x[n][7] = q.w;
    }
}

/* Sums of one tile for this warp's chunks. */
template <int F, int NT>
__device__ __forceinline__ void tile_sums(const cuda_matrix &m, const linear_args &a, int tile,
                                          int column0, int warp, int lane, float (&acc)[NT][4]) {
    using T = wf_traits<F>;
    const int n_chunks = m.n_units / T::UNITS;
    const uint8_t *w = m.chunks + (size_t)tile * (size_t)n_chunks * T::BYTES;
    for (int c = warp; c < n_chunks; c += WARPS) {
        wf_frag<F> f;
        f.load(w + (size_t)c * T::BYTES, lane);
#pragma unroll
        for (int u = 0; u < T::UNITS; u++) {
            uint32_t x[NT][8], e[16];
            load_x<NT>(a, m.n_in, column0, c * T::UNITS + u, lane, x);
            f.expand(u, e);
#pragma unroll
            for (int s = 0; s < 4; s++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    mma_half(acc[n], e + 4 * s, x[n][2 * s], x[n][2 * s + 1]);
                }
            }
        }
    }
}

__device__ __forceinline__ void write_output(const cuda_matrix &m, const linear_args &a, int tile,
                                             int row, int column, float v, float v2) {
    if (a.output == LINEAR_GLU) {
        const int n = (tile >> 1) * TILE_ROWS + row;
        if (n >= m.n_out / 2) return;
        const float h = v / (1.0f + __expf(-v)) * v2 * ACT_HALF_SCALE;
        ((__half *)a.half_out)[(size_t)column * (size_t)a.ld_half + n] =
            __float2half_rn(saturate_half(h));
        return;
    }
    const int n = tile * TILE_ROWS + row;
    if (n >= m.n_out) return;
    if (a.bias != nullptr) v += a.bias[n];
    float *y = a.y + (size_t)column * (size_t)a.ldy + n;
    if (a.output == LINEAR_ADD) v += *y;
    *y = v;
    if (a.half_out != nullptr) {
        ((__half *)a.half_out)[(size_t)column * (size_t)a.ld_half + n] =
            __float2half_rn(saturate_half(v * RESIDUAL_HALF_SCALE));
    }
}

template <int F, int NT>
__global__ __launch_bounds__(THREADS) void linear_mma_kernel(const cuda_matrix m,
                                                             const linear_args a) {
    constexpr int COLUMNS = 8 * NT, STRIDE = COLUMNS + 1;
    __shared__ float part[WARPS][TILE_ROWS][STRIDE];
    __shared__ float first[TILE_ROWS][STRIDE]; /* LINEAR_GLU: the gate tile's sums */
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int tiles = a.output == LINEAR_GLU ? 2 : 1, tile0 = (int)blockIdx.x * tiles;
    const int column0 = (int)blockIdx.y * COLUMNS;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    for (int i = 0; i < tiles; i++) {
        const int tile = tile0 + i;
        float acc[NT][4] = {};
        tile_sums<F, NT>(m, a, tile, column0, warp, lane, acc);
        if (i > 0) __syncthreads(); /* the sums of part[] before are read */
#pragma unroll
        for (int n = 0; n < NT; n++) {
            part[warp][g][n * 8 + 2 * t] = acc[n][0];
            part[warp][g][n * 8 + 2 * t + 1] = acc[n][1];
            part[warp][g + 8][n * 8 + 2 * t] = acc[n][2];
            part[warp][g + 8][n * 8 + 2 * t + 1] = acc[n][3];
        }
        __syncthreads(); /* part[] complete */
        for (int o = (int)threadIdx.x; o < TILE_ROWS * COLUMNS; o += THREADS) {
            const int row = o % TILE_ROWS, column = o / TILE_ROWS;
            if (column0 + column >= a.n_rows) break;
            float v = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) v += part[w][row][column];
            v *= m.row_scale[tile * TILE_ROWS + row];
            if (i + 1 < tiles) {
                first[row][column] = v; /* read by this very thread */
            } else if (tiles == 2) {
                write_output(m, a, tile, row, column0 + column, first[row][column], v);
            } else {
                write_output(m, a, tile, row, column0 + column, v, 0);
            }
        }
    }
}

template <int F> status launch(const cuda_matrix *m, const linear_args *a, cudaStream_t stream) {
    const int tiles = a->output == LINEAR_GLU ? 2 : 1, columns = a->n_rows <= 8 ? 8 : 32;
    const dim3 grid((unsigned)(m->n_tiles / tiles),
                    (unsigned)((a->n_rows + columns - 1) / columns));
    if (columns == 8) {
        return cuda_launch(linear_mma_kernel<F, 1>, grid, dim3(THREADS), 0, stream, a->pdl, *m, *a);
    }
    return cuda_launch(linear_mma_kernel<F, 4>, grid, dim3(THREADS), 0, stream, a->pdl, *m, *a);
}

} // namespace

extern "C" status cuda_linear_mma(const cuda_matrix *m, const linear_args *a, cudaStream_t stream) {
    if (a->n_rows <= 0 || a->ldx % 8 != 0 || m->n_in % 16 != 0) return E_INVAL;
    if (a->output == LINEAR_GLU && m->n_tiles % 2 != 0) return E_INVAL;
    switch (m->format) {
    case WF_Q4K:
        return launch<WF_Q4K>(m, a, stream);
    case WF_Q5K:
        return launch<WF_Q5K>(m, a, stream);
    case WF_Q6K:
        return launch<WF_Q6K>(m, a, stream);
    case WF_Q80:
        return launch<WF_Q80>(m, a, stream);
    case WF_Q40:
        return launch<WF_Q40>(m, a, stream);
    case WF_Q41:
        return launch<WF_Q41>(m, a, stream);
    case WF_Q50:
        return launch<WF_Q50>(m, a, stream);
    case WF_Q51:
        return launch<WF_Q51>(m, a, stream);
    case WF_F16:
        return launch<WF_F16>(m, a, stream);
    default:
        return E_INVAL;
    }
}
