/* Embedding rows: x[r,:] = token_embd[token[r],:], and the residual's half copy x * 2^-3.
 *   table: GGUF blocks as in the file, n_vocab rows; token < 0: ~token is a sample of the previous
 *   step, resolved here; an id outside the vocabulary reads row 0
 *   grid (rows, parts of a row), a value a thread; a row is 2-16 KB: latency bound. H200, 4096
 *   values of Q6_K: 1.9 us; with one block a row it was 11.4
 *
 * Numerics: exact dequantisation in float32. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gguf_block.cuh"
#include "kernels/cuda/ops.h"

namespace {

enum { EMBED_THREADS = 256 };

__global__ __launch_bounds__(EMBED_THREADS) void embed_kernel(const embed_args a, int block_elems,
                                                              int block_bytes, size_t row_bytes) {
    const int r = (int)blockIdx.x;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    int token = a.token[r];
    if (token < 0) token = a.previous[~token];
    if (token < 0 || token >= a.n_vocab) token = 0; /* a not-finite row's -1: its result is void */
    const uint8_t *row = (const uint8_t *)a.table + (size_t)token * row_bytes;
    const int k = (int)(blockIdx.y * EMBED_THREADS + threadIdx.x);
    if (k < a.n_embd) {
        const float v = gguf_block::value(a.type, row, k, block_elems, block_bytes);
        a.x[(size_t)r * (size_t)a.n_embd + k] = v;
        ((__half *)a.x_half)[(size_t)r * (size_t)a.ld_half + k] =
            __float2half_rn(saturate_half(v * RESIDUAL_HALF_SCALE));
    }
}

} // namespace

extern "C" status cuda_embed(const embed_args *a, cudaStream_t stream) {
    const dtype_info *info = dtype_get((int)a->type);
    if (a->n_rows <= 0 || info == nullptr) return E_INVAL;
    const dim3 grid((unsigned)a->n_rows,
                    (unsigned)((a->n_embd + EMBED_THREADS - 1) / EMBED_THREADS));
    return cuda_launch(embed_kernel, grid, dim3(EMBED_THREADS), 0, stream, a->pdl, *a,
                       info->block_elems, info->block_bytes, dtype_row_bytes(a->type, a->n_embd));
}
