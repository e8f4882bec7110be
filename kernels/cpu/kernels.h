/* The compute kernels, one table for each instruction set, chosen once at open. All tables give the
 * same bits (tests/kernels/test_simd.c): the portable one is the specification.
 *
 * Quantised activations. A row is cut into blocks of 32 values, each kept as 16-bit integers with
 * one float scale: x ~ d i, |i| <= 32639, error below d / 2 (relative to the block's largest value:
 * 1.5e-5). Dot products with integer weight codes are then exact in int32, whatever the order, and
 * only one or two float operations a block are left, done in block order. That gives float32-like
 * logits at the speed of integer dot products, and results that do not depend on tiling.
 * In memory a block is 64 bytes: two signed byte planes, i = 256 high + low (AVX-512), or 16-bit
 * words (elsewhere); only the table that wrote it reads it. A block with a value that is not finite
 * gets d = NaN, so that it cannot vanish.
 *
 * Thread: any; a call writes only what its arguments name. */
#ifndef INFERD_KERNELS_CPU_KERNELS_H
#define INFERD_KERNELS_CPU_KERNELS_H

#include "kernels/cpu/kv.h"
#include "kernels/cpu/pack.h"

enum { ACT_BLOCK_BYTES = 64, ACT_LEVELS = 32639 };

typedef struct act_meta {
    float d;      /* scale */
    float s;      /* d * (sum of all 32 integers) */
    float s16[2]; /* d * (sum of a half) */
    int32_t sum;  /* of all 32 */
    int32_t sum16[2];
    int32_t unused; /* a block's record is 32 bytes */
} act_meta;

/* The input rows of a matrix product: as floats, or quantised, or both. Borrowed views. */
typedef struct act {
    const float *f; /* row t at f + t * ld; padded with zeros to whole blocks */
    size_t ld;
    const uint8_t *q;     /* [rows][n_blocks][64] */
    const act_meta *meta; /* [rows][n_blocks] */
    int n_blocks;
} act;

/* Where a panel's 16 outputs of each row go. */
typedef struct linear_out {
    float *y; /* of the first row; the next one is ld further */
    size_t ld;
    const float *bias; /* 16 values, or NULL */
    bool add;          /* y += result, else y = result */
} linear_out;

/* One query tile of attention: n_rows consecutive tokens of one sequence, the n_group query heads
 * that share one KV head. */
typedef struct attention_task {
    const float *q; /* first token's first head of the group; token stride q_ld */
    float *out;     /* likewise, stride out_ld */
    size_t q_ld, out_ld;
    const kv_layout *kv;
    const uint8_t *pool;   /* kv_block_at's base */
    const int32_t *blocks; /* of the sequence */
    int layer, kv_head, n_group;
    int position, n_rows; /* of the first token */
    float scale;
    int window; /* 0: none */
} attention_task;

typedef struct cpu_kernels {
    const char *name; /* "portable", "avx2", "avx512-vnni" */

    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i], i < n; zeros from n to n_padded. w, x readable
     * and zero up to n_padded, a multiple of 16. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, int n, int n_padded, float eps);
    /* n_blocks blocks of 32 floats. */
    void (*quantise)(const float *x, int n_blocks, uint8_t *q, act_meta *meta);
    /* gate[i] = silu(gate[i]) * up[i]; n a multiple of 16. */
    void (*silu_mul)(float *gate, const float *up, int n);
    /* out = W_panel x_t for rows t0 .. t0 + n_t of a. */
    void (*linear)(const pack *w, const act *a, int i_panel, int t0, int n_t,
                   const linear_out *out);
    void (*attention)(const attention_task *t);

    /* Largest of n logits; false when one is NaN or +infinite. */
    bool (*scan_max)(const float *logits, int n, float *max);
    /* First index whose logit equals x; n when none. */
    int (*scan_find)(const float *logits, int n, float x);
    int (*scan_count_above)(const float *logits, int n, float x);
    /* w[i] = exp((logits[i] - max) * inv_temperature), and their sum. w may be NULL. */
    double (*scan_exp)(const float *logits, int n, float max, float inv_temperature, float *w);
} cpu_kernels;

const cpu_kernels *cpu_kernels_portable(void);
/* NULL when the processor (or its operating system) lacks the instructions, or on another
 * architecture. */
const cpu_kernels *cpu_kernels_avx2(void);
const cpu_kernels *cpu_kernels_avx512(void);
/* The fastest of these. */
const cpu_kernels *cpu_kernels_best(void);
#endif
