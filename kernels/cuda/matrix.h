/* A weight matrix on the device: GGUF blocks repacked at load into chunks that tensor-core lanes
 * read with 16-byte loads (layouts: weight_format.cuh). y = row_scale * (chunks x).
 *
 * Types that differ only in their codebook share a format without loss: Q3_K -> Q6K, IQ4_NL, MXFP4
 * -> Q80 (IQ4_XS too, its scale rounded once to half). BF16, F32 and Q2_K become halves with a
 * power-of-two scale a row. Read by C++ and nvcc. Thread: the backend's. */
#ifndef INFERD_KERNELS_CUDA_MATRIX_H
#define INFERD_KERNELS_CUDA_MATRIX_H

#include <cuda_runtime.h>

#include "base/status.h"
#include "kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weight_format {
    WF_Q4K,
    WF_Q5K,
    WF_Q6K,
    WF_Q80,
    WF_Q40,
    WF_Q41,
    WF_Q50,
    WF_Q51,
    WF_F16,
    WF_COUNT
} weight_format;

enum { TILE_ROWS = 16, UNIT_INPUTS = 64 };

typedef struct cuda_matrix {
    weight_format format;
    int n_out, n_in;  /* n_in: a multiple of 16 values may be read in each activation row */
    int n_tiles;      /* 16-row tiles; rows past n_out are zero */
    int n_units;      /* 64-input units, a whole number of chunks; inputs past n_in are zero */
    uint8_t *chunks;  /* [n_tiles][n_units / chunk_units] chunks */
    float *row_scale; /* [n_tiles * 16] */
    uint16_t *plain;  /* resident half copy [n_tiles * 16, n_in], or NULL */
} cuda_matrix;

/* Format a GGUF type is kept in; WF_COUNT: not a weight type. */
weight_format weight_format_of(dtype t);
int weight_chunk_bytes(weight_format f);
int weight_chunk_units(weight_format f);
const char *weight_format_name(weight_format f);
/* Bytes of one tile of n_in inputs. */
size_t weight_tile_bytes(weight_format f, int n_in);
int weight_units(weight_format f, int n_in);

typedef struct repack_args {
    dtype type;
    const void *blocks; /* device: the tensor's rows as in the file */
    int n_rows, n_in;
    const int32_t *row_from; /* device [n_rows]: source row of each row, or NULL for identity */
    int tile0, tile_stride;  /* tile i of the tensor becomes tile0 + i * tile_stride of out */
    int32_t *exponent;       /* device scratch [ceil16(n_rows)] */
    float scale;             /* multiplies every weight (through row_scale); a power of two */
} repack_args;

/* Writes the tensor's rows into m's chunks and row scales. E_INVAL on a bad shape. */
status cuda_repack(const cuda_matrix *m, const repack_args *a, cudaStream_t stream);

/* w16[n_tiles * 16, n_in] = the matrix as halves, row_scale applied (saturating), tile order. */
status cuda_expand(const cuda_matrix *m, uint16_t *w16, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
