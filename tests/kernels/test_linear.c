/* kernels/cpu/linear_*.c: every weight type over odd shapes. The portable kernel against a double
 * sum over dequantised weights; the SIMD kernels against the portable one, bit for bit; a row alone
 * against the same row among others, bit for bit. */

#include "kernel_test.h"
#include "tests/check_main.h"

enum { N_ROWS = 37 };

typedef struct input {
    int n_in, n_blocks;
    size_t ld;
    float *x;
    act_block *q;
} input;

static input make_input(rng *r, int n_in) {
    input in = {.n_in = n_in, .n_blocks = (n_in + 31) / 32};
    in.ld = (size_t)in.n_blocks * 32;
    in.x = calloc(N_ROWS * in.ld, sizeof(float));
    for (int t = 0; t < N_ROWS; t++) {
        for (int i = 0; i < n_in; i++) in.x[(size_t)t * in.ld + (size_t)i] = rng_normal(r);
    }
    in.x[in.ld] = 1e4f; /* an outlier, and a block of zeros */
    memset(in.x + 2 * in.ld, 0, 32 * sizeof(float));
    in.q = calloc(act_blocks(N_ROWS, in.n_blocks), sizeof *in.q);
    return in;
}

static void free_input(input *in) {
    free(in->x);
    free(in->q);
}

static void quantise_rows(const cpu_kernels *k, input *in) {
    for (int t = 0; t < N_ROWS; t++)
        k->quantise(in->x + (size_t)t * in->ld, in->n_blocks,
                    in->q + (size_t)(t / ACT_ROWS) * (size_t)in->n_blocks, t % ACT_ROWS);
}

/* Rows t0 .. t0 + n of W x, to y [n][ld]. */
static void multiply(const cpu_kernels *k, const pack *w, const input *in, int t0, int n, float *y,
                     const float *bias, bool add) {
    const act a = {.f = in->x, .ld = in->ld, .q = in->q, .n_blocks = in->n_blocks};
    const linear_out o = {.y = y, .ld = (size_t)w->n_panels * PACK_ROWS, .bias = bias, .add = add};
    k->linear(w, &a, 0, w->n_panels, t0, n, &o);
}

static void check_against_double(const tensor_view *t, const input *in, const float *y, size_t ld) {
    float *w = malloc((size_t)t->n_in * sizeof *w);
    const bool exact = pack_format_of(t->type)->codes <= CODES_BF16;
    for (int row = 0; row < t->n_out; row++) {
        dequant_row(t->type,
                    (const uint8_t *)t->data + (size_t)row * dtype_row_bytes(t->type, t->n_in),
                    t->n_in, w);
        for (int k = 0; k < N_ROWS; k++) {
            const float *x = in->x + (size_t)k * in->ld;
            double sum = 0, tolerance = 1e-6;
            for (int i = 0; i < t->n_in; i++) {
                sum += (double)w[i] * (double)x[i];
                tolerance += 2e-6 * fabs((double)w[i] * (double)x[i]);
            }
            /* A quantised value is off by at most half a step of its block. */
            for (int b = 0; b < in->n_blocks && !exact; b++) {
                double weights = 0, top = 0;
                for (int i = 32 * b; i < 32 * b + 32; i++) {
                    weights += fabs((double)w[i]);
                    top = fmax(top, fabs((double)x[i]));
                }
                tolerance += 0.51 * top / ACT_LEVELS * weights;
            }
            const double got = (double)y[(size_t)k * ld + (size_t)row];
            ck_assert_msg(fabs(got - sum) <= tolerance, "%s row %d token %d: %g not %g (+- %g)",
                          dtype_get((int)t->type)->name, row, k, got, sum, tolerance);
        }
    }
    free(w);
}

START_TEST(products_are_right_and_the_same_everywhere) {
    const dtype type = WEIGHT_TYPES[_i];
    const int block = dtype_get((int)type)->block_elems;
    const int n_outs[] = {1, 35, 150}; /* 1, 3, 10 panels */
    for (int s = 0; s < 3; s++) {
        rng r = {.s = (uint64_t)(1000 + _i * 10 + s)};
        const int n_in = (3 - s) * (block == 256 ? 256 : block == 32 ? 96 : 71);
        uint8_t *data = random_weights(&r, type, n_in, n_outs[s], 0.2f);
        const tensor_view t = {
            .name = "w", .data = data, .type = type, .n_in = n_in, .n_out = n_outs[s]};
        const pack w = packed(&t);
        input in = make_input(&r, n_in);
        const size_t ld = (size_t)w.n_panels * PACK_ROWS, size = N_ROWS * ld;
        float *first = malloc(size * sizeof(float)), *y = malloc(size * sizeof(float));
        const cpu_kernels *kernels[KERNELS_MAX];
        const int n_kernels = all_kernels(kernels);
        for (int k = 0; k < n_kernels; k++) {
            quantise_rows(kernels[k], &in);
            multiply(kernels[k], &w, &in, 0, N_ROWS, k == 0 ? first : y, NULL, false);
            if (k == 0) check_against_double(&t, &in, first, ld);
            if (k > 0)
                ck_assert_msg(same_bits(y, first, size), "%s: %s differs from portable",
                              dtype_get((int)type)->name, kernels[k]->name);
            for (int n = 1; n < N_ROWS; n += n < 17 ? 1 : 7) { /* every tile shape, alone */
                memset(y, 0xFF, size * sizeof(float));
                multiply(kernels[k], &w, &in, N_ROWS - n, n, y, NULL, false);
                ck_assert_msg(same_bits(y, first + (size_t)(N_ROWS - n) * ld, (size_t)n * ld),
                              "%s: %d rows alone differ on %s", dtype_get((int)type)->name, n,
                              kernels[k]->name);
            }
        }
        free(first);
        free(y);
        free_input(&in);
        free(w.data);
        free(data);
    }
}
END_TEST

START_TEST(bias_and_residual_are_added) {
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    rng r = {.s = 5};
    const dtype type = _i == 0 ? DTYPE_F16 : DTYPE_Q4_1;
    uint8_t *data = random_weights(&r, type, 64, 32, 0.2f);
    const tensor_view t = {.name = "w", .data = data, .type = type, .n_in = 64, .n_out = 32};
    const pack w = packed(&t);
    input in = make_input(&r, 64);
    float bias[32], plain[N_ROWS * 32], y[N_ROWS * 32];
    for (int i = 0; i < 32; i++) bias[i] = rng_normal(&r);
    for (int k = 0; k < n_kernels; k++) {
        quantise_rows(kernels[k], &in);
        multiply(kernels[k], &w, &in, 0, N_ROWS, plain, NULL, false);
        for (int i = 0; i < N_ROWS * 32; i++) y[i] = (float)i;
        multiply(kernels[k], &w, &in, 0, N_ROWS, y, bias, true);
        for (int i = 0; i < N_ROWS * 32; i++) {
            const float want = (float)i + (plain[i] + bias[i % 32]);
            ck_assert(y[i] >= want && y[i] <= want);
        }
    }
    free_input(&in);
    free(w.data);
    free(data);
}
END_TEST

/* NaN or infinity in a row must reach its outputs, and no other row's. */
START_TEST(values_that_are_not_finite_come_through) {
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    rng r = {.s = 6};
    const dtype type = WEIGHT_TYPES[_i];
    uint8_t *data = random_weights(&r, type, 256, 16, 0.2f);
    const tensor_view t = {.name = "w", .data = data, .type = type, .n_in = 256, .n_out = 16};
    const pack w = packed(&t);
    float y[N_ROWS * 16];
    for (int k = 0; k < n_kernels; k++) {
        input in = make_input(&r, 256);
        in.x[3 * in.ld + 40] = NAN;
        in.x[5 * in.ld + 255] = INFINITY;
        quantise_rows(kernels[k], &in);
        multiply(kernels[k], &w, &in, 0, N_ROWS, y, NULL, false);
        for (int i = 0; i < N_ROWS * 16; i++) {
            if (i / 16 == 3 || (i / 16 == 5 && w.format->codes > CODES_BF16)) {
                ck_assert_msg(isnan(y[i]), "%s", kernels[k]->name);
            } else {
                ck_assert(i / 16 == 5 ? !isfinite(y[i]) : isfinite(y[i]) != 0);
            }
        }
        free_input(&in);
    }
    free(w.data);
    free(data);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("linear");
    tcase_add_loop_test(tc, products_are_right_and_the_same_everywhere, 0, N_WEIGHT_TYPES);
    tcase_add_loop_test(tc, bias_and_residual_are_added, 0, 2);
    tcase_add_loop_test(tc, values_that_are_not_finite_come_through, 0, N_WEIGHT_TYPES);
    return check_run("linear", tc);
}
