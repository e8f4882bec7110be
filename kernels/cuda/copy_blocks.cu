/* Copies KV blocks in all layers: the copies of copy-on-write, before the step's first write.
 *   pool [n_layers][n_blocks] blocks of block_bytes (a multiple of 16); copies [n_copies]
 *   grid (parts of a block, n_layers, n_copies), 256 threads, 16 bytes each
 *   bytes: 2 * n_copies * n_layers * block_bytes; 8B, 16 bits, 32 tokens: 8.4 MB a copy = 1.9 us */
#include "kernels/cuda/attention.h"

#define COPY_THREADS 256
#define COPY_WIDTH   4 /* 16-byte words a thread */

__global__ void __launch_bounds__(COPY_THREADS)
    copy_blocks_kernel(char *pool, size_t n_blocks, size_t block_bytes, const block_copy *copies,
                       int copy0) {
    const block_copy c = copies[copy0 + blockIdx.z];
    char *layer = pool + blockIdx.y * n_blocks * block_bytes;
    const uint4 *from = (const uint4 *)(layer + (size_t)c.from * block_bytes);
    uint4 *to = (uint4 *)(layer + (size_t)c.to * block_bytes);
    const size_t first = (size_t)blockIdx.x * COPY_THREADS * COPY_WIDTH + threadIdx.x;
    const size_t n = block_bytes / sizeof(uint4);
    uint4 v[COPY_WIDTH];
#pragma unroll
    for (int j = 0; j < COPY_WIDTH; j++) {
        const size_t i = first + (size_t)j * COPY_THREADS;
        if (i < n) v[j] = from[i];
    }
#pragma unroll
    for (int j = 0; j < COPY_WIDTH; j++) {
        const size_t i = first + (size_t)j * COPY_THREADS;
        if (i < n) to[i] = v[j];
    }
}

extern "C" status cuda_copy_blocks(void *pool, int n_layers, int n_blocks, size_t block_bytes,
                                   const block_copy *copies, int n_copies, cudaStream_t stream) {
    if (n_copies == 0) return OK;
    if (n_copies < 0 || n_layers < 1 || n_blocks < 1 || block_bytes % sizeof(uint4) != 0) {
        return E_INVAL;
    }
    const size_t span = (size_t)COPY_THREADS * COPY_WIDTH * sizeof(uint4);
    enum { COPIES_A_LAUNCH = 65535 };
    for (int at = 0; at < n_copies; at += COPIES_A_LAUNCH) {
        const int n = n_copies - at < COPIES_A_LAUNCH ? n_copies - at : COPIES_A_LAUNCH;
        const dim3 grid((unsigned)((block_bytes + span - 1) / span), (unsigned)n_layers,
                        (unsigned)n);
        copy_blocks_kernel<<<grid, COPY_THREADS, 0, stream>>>((char *)pool, (size_t)n_blocks,
                                                              block_bytes, copies, at);
        if (cudaGetLastError() != cudaSuccess) return E_DEVICE;
    }
    return OK;
}
