/* Linear layers of 1..8 rows, with the small operations around them folded in (gemv.cuh): RMSNorm
 * of the input, and bias, RoPE and KV append, residual or SwiGLU on the output. Hopper only.
 * Launchers check, launch on the stream and return. Thread: the backend's. */
#ifndef INFERD_KERNELS_CUDA_GEMV_H
#define INFERD_KERNELS_CUDA_GEMV_H

#include <cuda_runtime.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gemv_output {
    GEMV_STORE,   /* norm in;  y = v + bias */
    GEMV_ROPE,    /* norm in;  q, k, v = v + bias; RoPE; q stored, k and v appended */
    GEMV_GLU,     /* norm in;  half_out = silu(gate) * up * 2^-3 (gate and up tiles in turn) */
    GEMV_RESIDUAL /* plain in; y += v + bias; half_out = y * 2^-3 */
} gemv_output;

typedef struct gemv_rope {
    kv_layout kv; /* F16 or BF16 */
    uint8_t *kv_layer;
    uint16_t *q; /* [n_rows, n_heads * head_dim] in kv's type */
    const int32_t *block, *block_start, *row_seq, *row_pos;
    const float2 *rope;          /* [n_rows][n_rot / 2] */
    int n_heads, n_rot, column0; /* column0: of this matrix's first row in q | k | v */
} gemv_rope;

typedef struct gemv_args {
    cuda_matrix m;
    const uint16_t *x;    /* [n_rows, n_in] halves; norm in: the residual times 2^-3 */
    const uint16_t *norm; /* [n_in] norm weights as halves */
    float eps;
    int n_rows;
    float *y; /* [n_rows, ldy] */
    int ldy;
    const float *bias;  /* [n_out] or NULL */
    uint16_t *half_out; /* [n_rows, ld_half] */
    int ld_half;
    gemv_rope rope;
    bool pdl;
    int n_warps, n_slots, n_passes,
        group; /* filled by the launcher; group: tiles reduced together */
} gemv_args;

/* Whether the kernels take this matrix at n_rows rows on n_sms multiprocessors. */
bool gemv_fits(const cuda_matrix *m, gemv_output output, int n_rows, int n_sms);
status cuda_gemv(const gemv_args *a, gemv_output output, int n_sms, cudaStream_t stream);
/* Two matrices over the same inputs in one launch: q and k, v of another format. output: STORE,
 * ROPE. */
bool gemv_pair_fits(const cuda_matrix *first, const cuda_matrix *second, gemv_output output,
                    int n_rows, int n_sms);
status cuda_gemv_pair(const gemv_args *first, const gemv_args *second, gemv_output output,
                      int n_sms, cudaStream_t stream);
/* Raises the kernels' shared-memory limits, once at start. */
status gemv_init(void);

#ifdef __cplusplus
}
#endif
#endif
