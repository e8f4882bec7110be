/* The step's upload and the ids' way back.
 *   fetch    pieces of pinned host memory to their places on the device; 64 blocks x 256 threads,
 *            the pieces' 16-byte words dealt out over them
 *   publish  ids into pinned host memory; one block
 *   bytes    2-100 KB over PCIe, one round: about 3 us; a cudaMemcpyAsync a piece would be 1.5 us
 *            each in the stream. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace {

enum { FETCH_BLOCKS = 64, FETCH_THREADS = 256 };

/* Words are numbered through all pieces, so that one round over PCIe brings everything: piece by
 * piece each would wait for its own. */
__global__ __launch_bounds__(FETCH_THREADS) void step_fetch_kernel(const fetch_args a) {
    uint32_t i = blockIdx.x * FETCH_THREADS + threadIdx.x, first = 0;
    for (int p = 0; p < a.n_pieces; p++) {
        const uint32_t words = (a.piece[p].bytes + 15) / 16;
        while (i - first < words) {
            ((uint4 *)a.piece[p].to)[i - first] =
                __ldcv((const uint4 *)a.piece[p].from + (i - first));
            i += FETCH_BLOCKS * FETCH_THREADS;
        }
        first += words;
    }
}

/* One block; the host sees the ids when the event behind it has come. */
__global__ __launch_bounds__(FETCH_THREADS) void step_publish_kernel(const int32_t *ids,
                                                                     int32_t *host, int n) {
    ptx::pdl_wait();
    for (int i = (int)threadIdx.x; i < n; i += FETCH_THREADS) host[i] = ids[i];
    __threadfence_system();
}

} // namespace

extern "C" status cuda_step_fetch(const fetch_args *a, cudaStream_t stream) {
    if (a->n_pieces < 0 || a->n_pieces > FETCH_PIECES_MAX) return E_INVAL;
    step_fetch_kernel<<<FETCH_BLOCKS, FETCH_THREADS, 0, stream>>>(*a);
    return cuda_status(cudaGetLastError());
}

extern "C" status cuda_step_publish(const int32_t *ids, int32_t *host, int n, bool pdl,
                                    cudaStream_t stream) {
    if (n < 0) return E_INVAL;
    return cuda_launch(step_publish_kernel, dim3(1), dim3(FETCH_THREADS), 0, stream, pdl, ids, host,
                       n);
}
