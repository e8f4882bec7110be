/* The other kernels: norm, SwiGLU, quantising, RoPE, attention, scans. Each against a plain double
 * version, and every instruction set against the portable one, bit for bit. */
#include <stddef.h>

#include "kernel_test.h"
#include "kernels/cpu/rope.h"
#include "tests/check_main.h"

static void fill(rng *r, float *x, int n) {
    for (int i = 0; i < n; i++) x[i] = rng_normal(r);
}

START_TEST(rms_norm_follows_its_formula) {
    rng r = {.s = (uint64_t)_i};
    const int sizes[] = {1, 15, 16, 17, 64, 100, 576}, n = sizes[_i % 7],
              padded = (n + 31) / 32 * 32;
    float x[640] = {0}, w[640] = {0}, first[640], y[640];
    fill(&r, x, n);
    fill(&r, w, n);
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int k = 0; k < n_kernels; k++) {
        float *out = k == 0 ? first : y;
        kernels[k]->rms_norm(out, x, w, n, padded, 1e-5f);
        ck_assert(same_bits(out, first, (size_t)padded));
    }
    double ss = 0;
    for (int i = 0; i < n; i++) ss += (double)x[i] * (double)x[i];
    for (int i = 0; i < padded; i++) {
        const double want = (double)x[i] / sqrt(ss / n + 1e-5) * (double)w[i];
        ck_assert(fabs((double)first[i] - want) <= 1e-6 * fabs(want));
    }
}
END_TEST

START_TEST(silu_follows_its_formula) {
    float gate[32], up[32], first[32];
    const float special[] = {0.0f,   -0.0f,   20.0f, -20.0f, 80.0f,
                             -85.0f, -200.0f, 1e30f, -1e30f, NAN};
    rng r = {.s = 3};
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int k = 0; k < n_kernels; k++) {
        r.s = 3;
        fill(&r, gate, 32);
        fill(&r, up, 32);
        memcpy(gate, special, sizeof special);
        float in[32];
        memcpy(in, gate, sizeof in);
        kernels[k]->silu_mul(gate, up, 32);
        if (k == 0) memcpy(first, gate, sizeof first);
        ck_assert(same_bits(gate, first, 32));
        for (int i = 0; i < 32; i++) {
            const double g = (double)in[i], want = g / (1 + exp(-g)) * (double)up[i];
            if (isnan(in[i])) {
                ck_assert(isnan(gate[i]));
            } else {
                ck_assert_msg(fabs((double)gate[i] - want) <= 4e-7 * fabs(want) + 1e-30,
                              "%g: %g not %g", g, (double)gate[i], want);
            }
        }
    }
}
END_TEST

START_TEST(quantising_is_within_half_a_step) {
    rng r = {.s = (uint64_t)_i};
    const float size = _i % 4 == 0 ? 1e-20f : _i % 4 == 1 ? 1e20f : 1.0f;
    float x[32];
    for (int i = 0; i < 32; i++) x[i] = size * rng_normal(&r);
    enum { ROW = 5 };
    act_block first = {0}, q = {0};
    int16_t c[32];
    cpu_kernels_portable()->quantise(x, 1, &first, ROW);
    const act_row *o = &first.row[ROW];
    memcpy(c, o->c0, sizeof o->c0);
    memcpy(c + 16, o->c1, sizeof o->c1);
    const double d = (double)o->d;
    int32_t sum[2] = {0}, sum_c[2] = {0};
    float top = 0;
    for (int i = 0; i < 32; i++) {
        const int32_t code = 256 * c[i] + o->l[i];
        /* Half a step, and the float rounding of x / d. */
        ck_assert(fabs(d * code - (double)x[i]) <= d * (0.5 + 2e-7 * abs(code)));
        ck_assert_int_le(abs(code), ACT_LEVELS + 1);
        sum[i / 16] += code;
        sum_c[i / 16] += c[i];
        top = fmaxf(top, fabsf(x[i]));
    }
    for (int h = 0; h < 2; h++) {
        ck_assert_int_eq(o->sum_c16[h], sum_c[h]);
        ck_assert_int_eq(256 * sum_c[h] + o->sum_l16[h], sum[h]);
        ck_assert(fabs((double)o->s16[h] - d * sum[h]) <= 2e-7 * fabs(d * sum[h]));
    }
    ck_assert(fabs((double)o->s - d * (sum[0] + sum[1])) <= 2e-7 * fabs(d * (sum[0] + sum[1])));
    ck_assert(fabs(d * ACT_LEVELS / (double)top - 1) < 1e-6);
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int k = 1; k < n_kernels; k++) { /* all but the codes' own layout, and no other row */
        kernels[k]->quantise(x, 1, &q, ROW);
        memcpy(q.row[ROW].c0, o->c0, sizeof o->c0);
        memcpy(q.row[ROW].c1, o->c1, sizeof o->c1);
        ck_assert_mem_eq(&q, &first, sizeof q);
    }
}
END_TEST

START_TEST(rope_turns_pairs) {
    rng r = {.s = 1};
    const float freq[4] = {1.0f, 0.1f, 0.01f, 0.001f};
    const bool neox = _i % 2 == 1;
    const int position = _i / 2 * 1000 + 3;
    float x[24], y[24], cs[8];
    fill(&r, x, 24);
    memcpy(y, x, sizeof y);
    rope_angles(position, freq, 8, 1.19f, cs);
    rope_rotate(y, 2, 12, cs, 8, neox);
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 4; i++) {
            const int a = 12 * h + (neox ? i : 2 * i), b = neox ? a + 4 : a + 1;
            const double angle = position * (double)freq[i], c = cos(angle) * 1.19,
                         s = sin(angle) * 1.19;
            ck_assert(fabs((double)x[a] * c - (double)x[b] * s - (double)y[a]) < 1e-5);
            ck_assert(fabs((double)x[a] * s + (double)x[b] * c - (double)y[b]) < 1e-5);
        }
        for (int i = 8; i < 12; i++)
            ck_assert_mem_eq(&x[12 * h + i], &y[12 * h + i], sizeof(float));
    }
}
END_TEST

/* ---- attention ---- */

typedef struct shape {
    dtype type;
    int head_dim, n_kv, n_group, length, n_rows, window, block;
} shape;

static const shape SHAPES[] = {
    {DTYPE_F32, 64, 3, 3, 1, 1, 0, 32},       {DTYPE_F32, 64, 3, 3, 200, 200, 0, 32},
    {DTYPE_F32, 64, 1, 7, 77, 1, 0, 16},      {DTYPE_F32, 48, 2, 2, 65, 33, 0, 64},
    {DTYPE_F32, 20, 2, 5, 130, 17, 0, 16},    {DTYPE_F32, 96, 2, 1, 129, 5, 40, 32},
    {DTYPE_F32, 128, 1, 4, 300, 64, 100, 32}, {DTYPE_F32, 256, 1, 1, 90, 90, 1, 16},
    {DTYPE_F16, 64, 2, 3, 150, 10, 0, 32},    {DTYPE_BF16, 80, 2, 2, 150, 10, 0, 32},
    {DTYPE_I8, 64, 2, 3, 150, 10, 0, 32},     {DTYPE_I8, 36, 1, 4, 70, 70, 20, 16},
};
enum { N_SHAPES = sizeof SHAPES / sizeof SHAPES[0], LENGTH_MAX = 320 };

typedef struct cache {
    kv_layout kv;
    uint8_t *pool;
    int32_t blocks[LENGTH_MAX / 16];
} cache;

/* Blocks in a scattered order; stale memory is NaN, as a freed sequence may leave it. */
static cache fill_cache(const shape *s, int block, const float *k, const float *v) {
    cache c;
    ck_assert_int_eq(kv_layout_init(&c.kv, s->type, block, 1, s->n_kv, s->head_dim, NULL), OK);
    const int n_blocks = LENGTH_MAX / block;
    const size_t bytes = (size_t)n_blocks * c.kv.block_bytes;
    c.pool = malloc(bytes);
    memset(c.pool, 0xFF, bytes);
    for (int i = 0; i < n_blocks; i++) c.blocks[i] = (i * 7 + 3) % n_blocks;
    if (n_blocks % 7 == 0) ck_abort_msg("not a permutation");
    const int row = s->n_kv * s->head_dim;
    for (int p = 0; p < s->length; p++)
        kv_append(&c.kv, c.pool, c.blocks[p / block], p % block, 0, k + p * row, v + p * row);
    return c;
}

static void attend(const cpu_kernels *kernels, const shape *s, const cache *c, const float *q,
                   float *out, int row0, int n_rows) {
    const size_t ld = (size_t)(s->n_kv * s->n_group * s->head_dim);
    for (int h = 0; h < s->n_kv; h++) {
        const size_t at = (size_t)row0 * ld + (size_t)(h * s->n_group * s->head_dim);
        const attention_task t = {.q = q + at,
                                  .out = out + at,
                                  .q_ld = ld,
                                  .out_ld = ld,
                                  .kv = &c->kv,
                                  .pool = c->pool,
                                  .blocks = c->blocks,
                                  .kv_head = h,
                                  .n_group = s->n_group,
                                  .position = s->length - s->n_rows + row0,
                                  .n_rows = n_rows,
                                  .scale = 0.3f,
                                  .window = s->window};
        kernels->attention(&t);
    }
}

static void check_attention(const shape *s, const float *q, const float *k, const float *v,
                            const float *out) {
    const double tolerance = s->type == DTYPE_F32   ? 2e-6
                             : s->type == DTYPE_F16 ? 4e-3
                             : s->type == DTYPE_I8  ? 0.06
                                                    : 0.03;
    const int row_kv = s->n_kv * s->head_dim, row_q = row_kv * s->n_group;
    static double score[LENGTH_MAX];
    for (int r = 0; r < s->n_rows; r++) {
        const int end = s->length - s->n_rows + r + 1;
        const int first = s->window > 0 && end > s->window ? end - s->window : 0;
        for (int h = 0; h < s->n_kv * s->n_group; h++) {
            const float *qh = q + r * row_q + h * s->head_dim;
            double top = -1e30, sum = 0;
            for (int p = first; p < end; p++) {
                const float *kp = k + p * row_kv + h / s->n_group * s->head_dim;
                score[p] = 0;
                for (int d = 0; d < s->head_dim; d++) score[p] += (double)qh[d] * (double)kp[d];
                score[p] *= (double)0.3f;
                top = fmax(top, score[p]);
            }
            for (int p = first; p < end; p++) sum += score[p] = exp(score[p] - top);
            for (int d = 0; d < s->head_dim; d++) {
                double want = 0;
                for (int p = first; p < end; p++)
                    want +=
                        score[p] / sum * (double)v[p * row_kv + h / s->n_group * s->head_dim + d];
                const double got = (double)out[r * row_q + h * s->head_dim + d];
                ck_assert_msg(fabs(got - want) <= tolerance * 4, "row %d head %d dim %d: %g not %g",
                              r, h, d, got, want);
            }
        }
    }
}

START_TEST(attention_is_right_and_the_same_everywhere) {
    const shape *s = &SHAPES[_i];
    rng r = {.s = (uint64_t)_i};
    const int row_kv = s->n_kv * s->head_dim, row_q = row_kv * s->n_group;
    const size_t n_out = (size_t)(s->n_rows * row_q);
    float *k = malloc((size_t)(s->length * row_kv) * sizeof *k);
    float *v = malloc((size_t)(s->length * row_kv) * sizeof *v);
    float *q = malloc(n_out * sizeof *q), *first = malloc(n_out * sizeof *q);
    float *out = malloc(n_out * sizeof *q);
    fill(&r, k, s->length * row_kv);
    fill(&r, v, s->length * row_kv);
    fill(&r, q, (int)n_out);
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int i = 0; i < n_kernels; i++) {
        const int blocks[] = {s->block, 16, 32, 64};
        for (int b = 0; b < 4; b++) { /* any block size */
            cache c = fill_cache(s, blocks[b], k, v);
            float *o = i == 0 && b == 0 ? first : out;
            attend(kernels[i], s, &c, q, o, 0, s->n_rows);
            ck_assert_msg(same_bits(o, first, n_out), "%s, blocks of %d", kernels[i]->name,
                          blocks[b]);
            memset(out, 0, n_out * sizeof *out); /* any chunking */
            for (int row = 0, n = 1; row < s->n_rows; row += n, n = n % 6 + 1)
                attend(kernels[i], s, &c, q, out, row, row + n > s->n_rows ? s->n_rows - row : n);
            ck_assert_msg(same_bits(out, first, n_out), "%s, chunks", kernels[i]->name);
            free(c.pool);
        }
    }
    check_attention(s, q, k, v, first);
    free(k);
    free(v);
    free(q);
    free(first);
    free(out);
}
END_TEST

START_TEST(kv_layouts_are_checked) {
    kv_layout l;
    error e;
    ck_assert_int_eq(kv_layout_init(&l, DTYPE_Q4_0, 32, 1, 1, 64, &e), E_UNSUPPORTED);
    ck_assert_int_eq(kv_layout_init(&l, DTYPE_F32, 24, 1, 1, 64, &e), E_INVAL);
    ck_assert_int_eq(kv_layout_init(&l, DTYPE_F32, 0, 1, 1, 64, &e), E_INVAL);
    ck_assert_int_eq(kv_layout_init(&l, DTYPE_F32, 32, 30, 3, 64, &e), OK);
    ck_assert_uint_eq(l.block_bytes, 30u * 2 * 3 * 64 * 32 * 4); /* nothing wasted */
}
END_TEST

START_TEST(scans_agree_with_plain_loops) {
    rng r = {.s = (uint64_t)_i};
    static float x[3000], w[3000], first[3000];
    const int n = 1 + (int)(rng_u32(&r) % 2999);
    fill(&r, x, n);
    for (int i = 0; i < n; i++) x[i] = roundf(x[i] * 8) / 4; /* ties */
    float top = x[0];
    int at = 0, above = 0;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        if (x[i] > top) at = i;
        top = fmaxf(top, x[i]);
        above += x[i] > 0.5f;
    }
    for (int i = 0; i < n; i++) sum += exp(((double)x[i] - (double)top) * 0.7);
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int k = 0; k < n_kernels; k++) {
        float m = 0;
        ck_assert(kernels[k]->scan_max(x, n, &m) && m >= top && m <= top);
        ck_assert_int_eq(kernels[k]->scan_find(x, n, top), at);
        ck_assert_int_eq(kernels[k]->scan_find(x, n, 1e9f), n);
        ck_assert_int_eq(kernels[k]->scan_count_above(x, n, 0.5f), above);
        const double got = kernels[k]->scan_exp(x, n, top, 0.7f, k == 0 ? first : w);
        ck_assert(fabs(got / sum - 1) < 1e-6);
        ck_assert(fabs(kernels[k]->scan_exp(x, n, top, 0.7f, NULL) - got) <= 0);
        ck_assert(k == 0 || same_bits(w, first, (size_t)n));
        const int bad = (int)(rng_u32(&r) % (unsigned)n);
        const float keep = x[bad];
        x[bad] = -INFINITY;
        ck_assert(kernels[k]->scan_max(x, n, &m));
        x[bad] = INFINITY;
        ck_assert(!kernels[k]->scan_max(x, n, &m));
        x[bad] = NAN;
        ck_assert(!kernels[k]->scan_max(x, n, &m));
        x[bad] = keep;
    }
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("ops");
    tcase_add_loop_test(tc, rms_norm_follows_its_formula, 0, 7);
    tcase_add_test(tc, silu_follows_its_formula);
    tcase_add_loop_test(tc, quantising_is_within_half_a_step, 0, 40);
    tcase_add_loop_test(tc, rope_turns_pairs, 0, 8);
    tcase_add_loop_test(tc, attention_is_right_and_the_same_everywhere, 0, N_SHAPES);
    tcase_add_test(tc, kv_layouts_are_checked);
    tcase_add_loop_test(tc, scans_agree_with_plain_loops, 0, 20);
    return check_run("ops", tc);
}
