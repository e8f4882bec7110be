/* Activations from rows to the order that the wgmma kernels read (activation_order.cuh).
 *   x [n_rows, dim] halves; y [dim / 64][columns][64]; four inputs a thread
 *   bytes 4 * dim a row: 64 x 4096 = 1 MB from L2; launch bound (1.5 us). */
#include "kernels/cuda/activation_order.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace {

enum { REORDER_THREADS = 256 };

__global__ __launch_bounds__(REORDER_THREADS) void reorder_kernel(const reorder_args a) {
    const int k = (int)(blockIdx.x * REORDER_THREADS + threadIdx.x) * 4, row = (int)blockIdx.y;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    if (k >= a.dim) return;
    const uint2 v = *(const uint2 *)(a.x + (size_t)row * (size_t)a.dim + k);
    activation_store(a.y, a.columns, row, k, v.x, v.y);
}

} // namespace

extern "C" status cuda_reorder(const reorder_args *a, cudaStream_t stream) {
    if (a->n_rows < 1 || a->columns < a->n_rows || a->dim % 64 != 0) return E_INVAL;
    const dim3 grid((unsigned)((a->dim / 4 + REORDER_THREADS - 1) / REORDER_THREADS),
                    (unsigned)a->n_rows);
    return cuda_launch(reorder_kernel, grid, dim3(REORDER_THREADS), 0, stream, a->pdl, *a);
}
