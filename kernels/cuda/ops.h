/* The small operations between the linear layers: embedding, norm, SwiGLU, and the step's upload.
 * Launchers check, launch on the stream and return; capturable. Thread: the backend's. */
#ifndef INFERD_KERNELS_CUDA_OPS_H
#define INFERD_KERNELS_CUDA_OPS_H

#include <cuda_runtime.h>

#include "base/status.h"
#include "kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct embed_args {
    const int32_t *token;    /* [n_rows]; < 0: ~token is an index into previous */
    const int32_t *previous; /* ids that the step before drew */
    const void *table;       /* GGUF blocks, n_vocab rows */
    dtype type;
    int n_rows, n_embd, n_vocab;
    float *x;         /* out [n_rows, n_embd] */
    uint16_t *x_half; /* out [n_rows, ld_half], times 2^-3 */
    int ld_half;
    bool pdl;
} embed_args;
status cuda_embed(const embed_args *a, cudaStream_t stream);

typedef struct norm_args {
    const float *x;      /* [*, dim] */
    const int32_t *rows; /* [n_rows] rows of x, or NULL: 0..n_rows-1 */
    const float *w;      /* [dim] */
    int n_rows, dim;
    float eps;
    uint16_t *y; /* out [n_rows, ldy] halves, or the order of activation_order.cuh */
    int ldy;
    int columns; /* of that order; 0: rows */
    float *init; /* out [n_rows, n_init] = 0; may be NULL; n_init % 4 == 0 */
    int n_init;
    bool pdl;
} norm_args;
status cuda_rms_norm(const norm_args *a, cudaStream_t stream);

/* y = x [n_rows, dim] in the order of activation_order.cuh; dim % 64 == 0. */
typedef struct reorder_args {
    const uint16_t *x;
    uint16_t *y;
    int n_rows, dim, columns;
    bool pdl;
} reorder_args;
status cuda_reorder(const reorder_args *a, cudaStream_t stream);

typedef struct swiglu_args {
    const void *gu; /* [n_rows, 2 * n_ff] */
    bool half_in;   /* halves times 2^-3; else float32 */
    bool interleaved;
    int n_rows, n_ff;
    uint16_t *h; /* out [n_rows, ld_half] */
    int ld_half;
    bool pdl;
} swiglu_args;
status cuda_swiglu(const swiglu_args *a, cudaStream_t stream);

/* The step's upload: the device pulls each piece out of pinned host memory itself, in one launch.
 */
typedef struct fetch_piece {
    const void *from; /* pinned host memory, 16-byte aligned */
    void *to;         /* device, 16-byte aligned */
    uint32_t bytes;   /* rounded up to 16 by the copy */
} fetch_piece;
enum { FETCH_PIECES_MAX = 16 };
typedef struct fetch_args {
    fetch_piece piece[FETCH_PIECES_MAX];
    int n_pieces;
} fetch_args;
status cuda_step_fetch(const fetch_args *a, cudaStream_t stream);

/* The way back: n ids from the device into pinned host memory. */
status cuda_step_publish(const int32_t *ids, int32_t *host, int n, bool pdl, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
