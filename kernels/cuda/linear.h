/* Linear layers: y = W x for every row of the step, in the kernel that suits the number of rows.
 * Activations are halves; sums are float32. Launchers check, launch on the stream and return.
 * Thread: the backend's. */
#ifndef INFERD_KERNELS_CUDA_LINEAR_H
#define INFERD_KERNELS_CUDA_LINEAR_H

#include <cuda_runtime.h>

#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum linear_output {
    LINEAR_STORE, /* y = v + bias */
    LINEAR_ADD,   /* y += v + bias; half_out, when given, gets y * 2^-3 */
    LINEAR_GLU    /* W holds gate and up tiles in turn: half_out = silu(gate) * up * 2^-3 */
} linear_output;

typedef struct linear_args {
    const uint16_t *x; /* [n_rows, ldx] halves; ldx % 8 == 0; n_in % 16 == 0 */
    int ldx, n_rows;
    linear_output output;
    float *y; /* [n_rows, ldy] */
    int ldy;
    const float *bias;  /* [n_out] or NULL */
    uint16_t *half_out; /* [n_rows, ld_half] or NULL */
    int ld_half;
    bool pdl;
} linear_args;

/* Any format, shape, number of rows and architecture; a row's bits do not depend on the others. */
status cuda_linear_mma(const cuda_matrix *m, const linear_args *a, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
