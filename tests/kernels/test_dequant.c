/* kernels/cpu/dequant.c, pack.c, unpack.c: block formulas against an independent implementation
 * (tests/data/make_dequant.py), half precision against its definition, packing against
 * dequantising. */
#include <stdio.h>

#include "kernel_test.h"
#include "tests/check_main.h"

static dtype type_named(const char *name) {
    for (int i = 0; i < N_WEIGHT_TYPES; i++) {
        if (strcmp(dtype_get((int)WEIGHT_TYPES[i])->name, name) == 0) return WEIGHT_TYPES[i];
    }
    ck_abort_msg("no type %s", name);
}

static int hex_digit(char c) {
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static size_t from_hex(const char *s, uint8_t *out) {
    size_t n = 0;
    for (; s[2 * n] != '\0' && s[2 * n] != '\n'; n++)
        out[n] = (uint8_t)(hex_digit(s[2 * n]) << 4 | hex_digit(s[2 * n + 1]));
    return n;
}

START_TEST(blocks_equal_the_reference) {
    FILE *f = fopen(TEST_DATA "/dequant.txt", "r");
    ck_assert_ptr_nonnull(f);
    static char name[16], block_hex[1024], value_hex[4096];
    int n_types = 0, n_lines = 0;
    char last[16] = "";
    while (fscanf(f, "%15s %1023s %4095s", name, block_hex, value_hex) == 3) {
        uint8_t block[512];
        float want[256], got[256];
        const dtype t = type_named(name);
        const dtype_info *info = dtype_get((int)t);
        ck_assert_uint_eq(from_hex(block_hex, block), (size_t)info->block_bytes);
        ck_assert_uint_eq(from_hex(value_hex, (uint8_t *)want), 4 * (size_t)info->block_elems);
        dequant_row(t, block, info->block_elems, got);
        for (int i = 0; i < info->block_elems; i++)
            ck_assert_msg(got[i] >= want[i] && got[i] <= want[i], "%s line %d value %d: %a not %a",
                          name, n_lines, i, (double)got[i], (double)want[i]);
        n_types += strcmp(name, last) != 0;
        memcpy(last, name, sizeof last);
        n_lines++;
    }
    fclose(f);
    ck_assert_int_eq(n_types, 13);
}
END_TEST

START_TEST(half_precision_is_exact_and_rounds_to_even) {
    for (uint32_t h = 0; h < 0x7C00; h++) {
        const float v = f16_to_f32((uint16_t)h), up = f16_to_f32((uint16_t)(h + 1));
        ck_assert_uint_eq(f32_to_f16(v), h);
        ck_assert_uint_eq(f32_to_f16(-v), h | 0x8000);
        if (h + 1 == 0x7C00) break; /* the next one is infinity */
        const float middle = v + (up - v) / 2;
        ck_assert_uint_eq(f32_to_f16(middle), h % 2 == 0 ? h : h + 1);
        ck_assert_uint_eq(f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        ck_assert_uint_eq(f32_to_f16(nextafterf(middle, 0.0f)), h);
    }
    ck_assert_uint_eq(f32_to_f16(65519.0f), 0x7BFF);
    ck_assert_uint_eq(f32_to_f16(65520.0f), 0x7C00);
    ck_assert_uint_eq(f32_to_f16(INFINITY), 0x7C00);
    ck_assert(isnan(f16_to_f32(f32_to_f16(NAN))));
    ck_assert(isnan(bf16_to_f32(f32_to_bf16(NAN))));
    ck_assert_uint_eq(f32_to_bf16(bf16_to_f32(0x3F81)), 0x3F81);
    ck_assert_uint_eq(f32_to_bf16(1.00390625f), 0x3F80); /* a tie: to even */
}
END_TEST

/* Packed rows give back what dequantising gives, up to one rounding of scale times code. */
START_TEST(packing_keeps_every_value) {
    const dtype t = WEIGHT_TYPES[_i];
    const dtype_info *info = dtype_get((int)t);
    const int shapes[][2] = {{256, 1}, {512, 16}, {768, 33}};
    for (int s = 0; s < 3; s++) {
        rng r = {.s = (uint64_t)(_i * 10 + s)};
        const int n_in = info->block_elems == 1 ? shapes[s][0] - 27 : shapes[s][0];
        const int n_out = shapes[s][1];
        uint8_t *data = random_weights(&r, t, n_in, n_out, 0.1f);
        /* An odd address: views into a mapped file have no alignment. */
        const size_t bytes = dtype_row_bytes(t, n_in) * (size_t)n_out;
        memmove(data + 1, data, bytes);
        const tensor_view v = {
            .name = "w", .data = data + 1, .type = t, .n_in = n_in, .n_out = n_out};
        const pack p = packed(&v);
        static float want[768], got[768];
        for (int row = 0; row < n_out; row++) {
            dequant_row(t, data + 1 + (size_t)row * dtype_row_bytes(t, n_in), n_in, want);
            pack_row(&p, row, got);
            for (int i = 0; i < n_in; i++)
                ck_assert_msg(fabsf(got[i] - want[i]) <= 1e-6f * fabsf(want[i]) + 1e-8f,
                              "%s row %d value %d: %g not %g", info->name, row, i, (double)got[i],
                              (double)want[i]);
        }
        free(p.data);
        free(data);
    }
}
END_TEST

START_TEST(impossible_shapes_are_refused) {
    pack p;
    error e;
    const tensor_view not_blocks = {.name = "w", .type = DTYPE_Q4_K, .n_in = 128, .n_out = 4};
    ck_assert_int_eq(pack_plan(&not_blocks, &p, &e), E_INVAL);
    ck_assert_ptr_nonnull(strstr(e.text, "w: shape [128, 4]"));
    const tensor_view no_weight = {.name = "w", .type = DTYPE_I8, .n_in = 128, .n_out = 4};
    ck_assert_int_eq(pack_plan(&no_weight, &p, &e), E_UNSUPPORTED);
    const tensor_view empty = {.name = "w", .type = DTYPE_F32, .n_in = 128, .n_out = 0};
    ck_assert_int_eq(pack_plan(&empty, &p, &e), E_INVAL);
}
END_TEST

START_TEST(sizes_stay_about_the_files) {
    for (int i = 0; i < N_WEIGHT_TYPES; i++) {
        const dtype t = WEIGHT_TYPES[i];
        const tensor_view v = {.name = "w", .type = t, .n_in = 2048, .n_out = 1024};
        pack p;
        error e;
        ck_assert_int_eq(pack_plan(&v, &p, &e), OK);
        const double file = (double)dtype_row_bytes(t, 2048) * 1024;
        /* MXFP4 keeps a 2-byte scale (+6 %), Q3_K and Q2_K whole-byte sub-scales */
        ck_assert_msg((double)pack_bytes(&p) <= file * 1.20, "%s", dtype_get((int)t)->name);
    }
    ck_assert_ptr_null(dtype_get(4));
    ck_assert_ptr_null(dtype_get(-1));
    ck_assert_uint_eq(dtype_row_bytes(DTYPE_Q4_K, 257), 0);
    ck_assert_uint_eq(dtype_row_bytes(DTYPE_F32, INT64_MAX), 0);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("dequant");
    tcase_add_test(tc, blocks_equal_the_reference);
    tcase_add_test(tc, half_precision_is_exact_and_rounds_to_even);
    tcase_add_loop_test(tc, packing_keeps_every_value, 0, N_WEIGHT_TYPES);
    tcase_add_test(tc, impossible_shapes_are_refused);
    tcase_add_test(tc, sizes_stay_about_the_files);
    return check_run("dequant", tc);
}
