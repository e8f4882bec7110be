/* Weight types of GGUF that inferd computes with, and their block shapes. The values are GGUF's own
 * type ids. Source: ggml docs/gguf.md; block layouts are described beside each dequantiser in
 * kernels/cpu/dequant.c. Read by C and nvcc. Thread: any. */
#ifndef INFERD_KERNELS_DTYPE_H
#define INFERD_KERNELS_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dtype {
    DTYPE_F32 = 0,
    DTYPE_F16 = 1,
    DTYPE_Q4_0 = 2,
    DTYPE_Q4_1 = 3,
    DTYPE_Q5_0 = 6,
    DTYPE_Q5_1 = 7,
    DTYPE_Q8_0 = 8,
    DTYPE_Q2_K = 10,
    DTYPE_Q3_K = 11,
    DTYPE_Q4_K = 12,
    DTYPE_Q5_K = 13,
    DTYPE_Q6_K = 14,
    DTYPE_IQ4_NL = 20,
    DTYPE_IQ4_XS = 23,
    DTYPE_BF16 = 30,
    DTYPE_MXFP4 = 39,
    DTYPE_I8 = 24 /* KV cache only: int8 with one float scale per token and head */
} dtype;

typedef struct dtype_info {
    const char *name; /* "Q4_K" */
    int block_elems;  /* values in one block; 1 for plain types */
    int block_bytes;
    bool weight; /* may appear as a weight tensor */
} dtype_info;

/* NULL for an id that inferd does not know (any int is legal). */
const dtype_info *dtype_get(int id);

/* Bytes of one row of n values; 0 when n is not a whole number of blocks, or on overflow. */
size_t dtype_row_bytes(dtype t, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
