/* The compute kernels, one table for each instruction set, chosen once at open. All tables give the
 * same bits (tests/kernels/test_simd.c): the portable one is the specification.
 *
 * Quantised activations. A row is cut into blocks of 32 values, each kept as 24-bit integers with
 * one float scale: x ~ d i, |i| <= 8355584, error below d / 2: what a float's own mantissa holds
 * for the largest value of a block. i = 256 c + l with 16-bit c and 8-bit l; the dot products of
 * both with integer weight codes are exact in int32, whatever the order, and only a few float
 * operations a block are left, done in block order. That gives float32 logits at the speed of
 * integer dot products, and results that do not depend on tiling. (c alone, two thirds of the work,
 * was measured first: SmolLM2's log-probabilities were then off by 1e-3 in the mean and 1.7e-2 at
 * worst, since one large value spoils its block; now 1e-4.) A block with a value that is not
 * finite gets d = NaN, so that it cannot vanish.
 *
 * In memory 16 rows go together, block by block (act_block), so that codes of rows are AMX tiles;
 * all that one row's block needs is two cache lines (act_row), since with few rows the fetching of
 * lines from the thread that wrote them is what costs.
 *
 * Thread: any; a call writes only what its arguments name. */
#ifndef INFERD_KERNELS_CPU_KERNELS_H
#define INFERD_KERNELS_CPU_KERNELS_H

#include "kernels/cpu/kv.h"
#include "kernels/cpu/pack.h"

enum { ACT_ROWS = 16, ACT_LEVELS = 8355584 /* 32639 * 256: room for a rounding */ };

/* One block of 32 values of one row. c: the high bytes and the low bytes of c = 256 high + low,
 * both signed (AVX-512, AMX), or the 16-bit c of inputs 0..15 and 16..31 (elsewhere); only the
 * table that wrote them reads them. l between them: high and low bytes of 8 rows are the 16 rows of
 * a tile. */
typedef struct act_row {
    uint8_t c0[32];
    int8_t l[32];
    uint8_t c1[32];
    float d;                        /* scale */
    float s, s16[2];                /* d * (sum of the integers): all, each half */
    int32_t sum_c16[2], sum_l16[2]; /* sums of the c and of the l of each half */
} act_row;

/* 16 rows of one block. The odd line keeps one row's blocks out of each other's way in a cache. */
typedef struct act_block {
    act_row row[ACT_ROWS];
    uint8_t unused[64];
} act_block;

/* The input rows of a matrix product: as floats, or quantised, or both. Borrowed views. */
typedef struct act {
    const float *f; /* row t at f + t * ld; padded with zeros to whole blocks */
    size_t ld;
    const act_block *q; /* [rows / 16][n_blocks] */
    int n_blocks;
} act;

static inline const act_block *act_at(const act *a, int t, int i_block) {
    return a->q + (size_t)(t / ACT_ROWS) * (size_t)a->n_blocks + i_block;
}
/* How many act_block hold n rows. */
static inline size_t act_blocks(int n_rows, int n_blocks) {
    return (size_t)((n_rows + ACT_ROWS - 1) / ACT_ROWS) * (size_t)n_blocks;
}

/* Where the outputs of a run of panels go. */
typedef struct linear_out {
    float *y; /* the first panel's 16 of the first row; a row is ld further, a panel 16 */
    size_t ld;
    const float *bias; /* 16 values a panel, or NULL */
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
    const char *name; /* "portable", "avx2", "avx512-vnni", "avx512-amx" */

    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * w[i], i < n; zeros from n to n_padded. w, x readable
     * and zero up to n_padded, a multiple of 16. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, int n, int n_padded, float eps);
    /* n_blocks blocks of 32 floats into row i_row of q[0 .. n_blocks). */
    void (*quantise)(const float *x, int n_blocks, act_block *q, int i_row);
    /* gate[i] = silu(gate[i]) * up[i]; n a multiple of 16. */
    void (*silu_mul)(float *gate, const float *up, int n);
    /* Panels [p0, p1) of W x_t for rows t0 .. t0 + n_t of a. */
    void (*linear)(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                   const linear_out *o);
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
const cpu_kernels *cpu_kernels_amx(void); /* also asks Linux for the tile registers */
/* The fastest of these. */
const cpu_kernels *cpu_kernels_best(void);
#endif
