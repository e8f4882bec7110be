/* Linear layers of 9..128 rows on Hopper's warpgroup products (gemm_wgmma.cuh). Activations come in
 * the order of activation_order.cuh. Launchers check, launch on the stream and return. */
#ifndef INFERD_KERNELS_CUDA_GEMM_WGMMA_H
#define INFERD_KERNELS_CUDA_GEMM_WGMMA_H

#include <cuda_runtime.h>

#include "kernels/cuda/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wgmma_args {
    cuda_matrix m;
    const uint16_t *x;    /* [n_units][columns][64] */
    int columns, n_rows;  /* columns: 16, 32, 64 or 128 >= n_rows */
    linear_output output; /* LINEAR_GLU: half_out in activation order, of the same columns */
    float *y;             /* STORE: holds zeros where wgmma_splits(); ADD: adds */
    int ldy;
    const float *bias;
    uint16_t *half_out;
    float *partial;  /* LINEAR_GLU: wgmma_partial_bytes() of workspace */
    unsigned *flags; /* and a flag a multiprocessor, zero at rest */
    bool pdl;
    bool whole; /* filled by the launcher: blocks take whole row blocks */
} wgmma_args;

/* The smallest column count for n_rows; 0: too many. */
int wgmma_columns(int n_rows);
/* Whether a kernel is built for the matrix. */
bool wgmma_fits(const cuda_matrix *m);
/* Whether row blocks are shared by several thread blocks, so that a stored y must start as zeros.
 * Never for LINEAR_GLU. */
bool wgmma_splits(const cuda_matrix *m, linear_output output, int n_rows, int n_sms);
status cuda_linear_wgmma(const wgmma_args *a, int n_sms, cudaStream_t stream);
size_t wgmma_partial_bytes(int n_sms);
/* Two matrices over the same activations in one launch, LINEAR_STORE into y that starts as zeros.
 */
bool wgmma_pair_fits(const cuda_matrix *first, const cuda_matrix *second, int n_rows);
status cuda_linear_wgmma_pair(const wgmma_args *first, const wgmma_args *second, int n_sms,
                              cudaStream_t stream);
status wgmma_init(void); /* once at start: shared-memory limits */

#ifdef __cplusplus
}
#endif
#endif
