/* kernels/backend_fault.c, in builds with INFERD_FAULTS. */
#include <stdio.h>

#include "tests/check_main.h"
#include "tiny_model.h"

#ifdef INFERD_FAULTS

static const char *const OPS[] = {"begin_step",  "embed",    "qkv",      "attention",
                                  "attn_output", "gate_up",  "down",     "head",
                                  "sample",      "end_step", "wait_step"};

/* One step of one token; the first status that is not OK. */
static status one_step(backend *b, sampled *out) {
    int32_t token[1] = {1}, block[1] = {0}, seq_start[2] = {0, 1}, kv_len[1] = {1};
    int32_t block_start[2] = {0, 1};
    sample_row sample[1] = {{.row = 0, .target = -1}};
    const step s = {.n_tokens = 1,
                    .n_seqs = 1,
                    .n_samples = 1,
                    .n_blocks = 1,
                    .token = token,
                    .seq_start = seq_start,
                    .kv_len = kv_len,
                    .block_start = block_start,
                    .block = block,
                    .sample = sample};
    const status f = model_forward(b, TINY_LAYERS, &s);
    return f != OK ? f : b->ops->wait_step(b, out);
}

START_TEST(the_named_call_fails_for_good) {
    tiny_model t;
    tiny_model_make(&t, 0, DTYPE_Q4_0);
    char spec[64];
    /* Two layers: the third call of a layer's op is in the second step, as is the second of others.
     */
    const bool layered = _i >= 2 && _i <= 6;
    snprintf(spec, sizeof spec, "%s:%d:fail", OPS[_i], layered ? 3 : 2);
    backend *b = NULL;
    ck_assert_int_eq(backend_fault_wrap(tiny_backend(&t, 1, 16, -1, 8), spec, &b, NULL), OK);
    ck_assert_str_eq(b->ops->name, "cpu");
    sampled out;
    ck_assert_int_eq(one_step(b, &out), OK);
    ck_assert(out.finite);
    ck_assert_int_eq(one_step(b, &out), E_DEVICE);
    ck_assert_int_eq(one_step(b, &out), E_DEVICE);
    b->ops->close(b);
    tiny_model_free(&t);
}
END_TEST

START_TEST(a_result_comes_back_not_finite_once) {
    tiny_model t;
    tiny_model_make(&t, 0, DTYPE_Q4_0);
    backend *b = NULL;
    ck_assert_int_eq(
        backend_fault_wrap(tiny_backend(&t, 1, 16, -1, 8), "wait_step:2:nan", &b, NULL), OK);
    sampled out;
    for (int i = 1; i <= 3; i++) {
        ck_assert_int_eq(one_step(b, &out), OK);
        ck_assert_int_eq(out.finite, i != 2);
    }
    b->ops->close(b);
    tiny_model_free(&t);
}
END_TEST

START_TEST(specs_are_checked) {
    const char *wrong[] = {"",           "qkv",       "qkv:1",          "qkv:0:fail",
                           "qkv:x:fail", "qkv:1:nan", "nothing:1:fail", "qkv:1:fails"};
    backend *b = NULL;
    error e;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        backend *inner = NULL;
        ck_assert_int_eq(cpu_backend_open(&(backend_options){.threads = 1}, &inner, &e), OK);
        ck_assert_int_eq(backend_fault_wrap(inner, wrong[i], &b, &e), E_INVAL);
    }
    ck_assert_ptr_null(b);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("fault");
    tcase_add_loop_test(tc, the_named_call_fails_for_good, 0, sizeof OPS / sizeof OPS[0]);
    tcase_add_test(tc, a_result_comes_back_not_finite_once);
    tcase_add_test(tc, specs_are_checked);
    return check_run("fault", tc);
}

#else

int main(void) {
    printf("SKIP: this build has no fault injection (INFERD_FAULTS)\n");
    return 0;
}

#endif
