/* Dequantisers: what the bytes of every weight type mean, block by block. The executable
 * specification that every faster path is tested against. Portable C. Thread: any. */
#ifndef INFERD_KERNELS_CPU_DEQUANT_H
#define INFERD_KERNELS_CPU_DEQUANT_H

#include "kernels/dtype.h"

/* Code books: IQ4_NL and IQ4_XS (int8 values), MXFP4 (E2M1 doubled). */
extern const int8_t DEQUANT_IQ4[16];
extern const int8_t DEQUANT_MXFP4[16];

/* n values (a whole number of blocks of t) from src (any alignment) as float32: n floats to out. */
void dequant_row(dtype t, const void *src, int n, float *out);

/* The 6-bit scale and minimum j (0..7) of a Q4_K or Q5_K block's 12 scale bytes. */
void dequant_k4_scale(const uint8_t *b, int j, int *scale, int *min);
/* The scale j (0..15) of a Q3_K block's 12 scale bytes, -32..31. */
int dequant_q3_scale(const uint8_t *b, int j);
/* The scale j (0..7) of an IQ4_XS block (whole block given), -32..31. */
int dequant_iq4xs_scale(const uint8_t *block, int j);

/* IEEE half and bfloat16 at any alignment. bfloat16 rounds to nearest even. */
float f16_load(const void *p);
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float v);
uint16_t f32_to_bf16(float v);
float bf16_to_f32(uint16_t h);
/* 2^(e - 128): MXFP4's shared exponent with the half of its doubled code book. */
float e8m0_half(uint8_t e);
#endif
