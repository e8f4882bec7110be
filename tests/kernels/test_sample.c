/* kernels/cpu/sample.c: golden distributions, draws, log-probabilities, edges. Golden data:
 * INFERD_GOLDENS or <repo>/../shared/goldens; without it that test says so and counts nothing. */
#include <jansson.h>
#include <stdio.h>

#include "kernel_test.h"
#include "kernels/cpu/sample.h"
#include "tests/check_main.h"
#include "tests/goldens.h"

enum { VOCAB_MAX = 4096 };

static float logit_memory[VOCAB_MAX], weight_memory[VOCAB_MAX];
static int32_t id_memory[VOCAB_MAX];
static sample_scratch scratch = {.logit = logit_memory, .weight = weight_memory, .id = id_memory};

static const json_t *get(const json_t *a, const json_t *b, const char *key) {
    const json_t *v = json_object_get(a, key);
    return v != NULL ? v : json_object_get(b, key);
}

static float number(const json_t *a, const json_t *b, const char *key) {
    return (float)json_number_value(get(a, b, key));
}

static int read_bias(const json_t *bias, token_bias *out) {
    int n = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)bias, key, value) out[n++] = (token_bias){
        .token = (int32_t)strtol(key, NULL, 10), .bias = (float)json_number_value(value)};
    return n;
}

/* Prompt and output ids as the engine passes them on. */
static int read_seen(const json_t *test, token_seen *out) {
    int n = 0;
    const char *lists[] = {"prompt_ids", "output_ids"};
    for (int l = 0; l < 2; l++) {
        size_t i;
        json_t *v;
        json_array_foreach(json_object_get(test, lists[l]), i, v) {
            const int32_t id = (int32_t)json_integer_value(v);
            int at = 0;
            while (at < n && out[at].token != id) at++;
            if (at == n) out[n++] = (token_seen){.token = id};
            out[at].n_output += l;
        }
    }
    return n;
}

static sample_row read_row(const json_t *test, const json_t *defaults, int n_seen) {
    const json_t *p = json_object_get(test, "params");
    return (sample_row){.target = -1,
                        .temperature = number(p, defaults, "temperature"),
                        .top_p = number(p, defaults, "top_p"),
                        .min_p = number(p, defaults, "min_p"),
                        .top_k = (int32_t)json_integer_value(get(p, defaults, "top_k")),
                        .repetition_penalty = number(p, defaults, "repetition_penalty"),
                        .frequency_penalty = number(p, defaults, "frequency_penalty"),
                        .presence_penalty = number(p, defaults, "presence_penalty"),
                        .n_seen = n_seen};
}

static void check_case(const cpu_kernels *k, const json_t *test, const json_t *defaults,
                       const float *logits, int n_vocab, size_t i_case) {
    const json_t *p = json_object_get(test, "params");
    token_bias bias[64];
    token_seen seen[256];
    sample_row row = read_row(test, defaults, read_seen(test, seen));
    row.n_bias = read_bias(get(p, defaults, "logit_bias"), bias);
    const json_t *want_ids = json_object_get(test, "kept_ids");
    const json_t *want_p = json_object_get(test, "probs");
    const sample_vocab v = {.n_vocab = n_vocab};
    if (row.temperature <= 0.0f) {
        sampled out;
        sample_answer(k, &v, logits, &row, bias, seen, &scratch, &out);
        ck_assert_int_eq(out.token, json_integer_value(json_array_get(want_ids, 0)));
        return;
    }
    double total = 0;
    const int n = sample_distribution(k, &v, logits, &row, bias, seen, &scratch, &total);
    /* The reference leaves out what underflows to 0 in double; we keep it with weight 0. */
    int n_drawable = n;
    for (int i = 0; i < n; i++) n_drawable -= (double)scratch.weight[scratch.id[i]] <= 0.0;
    ck_assert_msg((size_t)n >= json_array_size(want_ids) &&
                      (size_t)n_drawable <= json_array_size(want_ids),
                  "case %zu: %d kept, %d drawable, not %zu", i_case, n, n_drawable,
                  json_array_size(want_ids));
    bool kept[VOCAB_MAX] = {false};
    for (int i = 0; i < n; i++) kept[scratch.id[i]] = true;
    for (size_t i = 0; i < json_array_size(want_ids); i++) {
        const int id = (int)json_integer_value(json_array_get(want_ids, i));
        const double prob = json_number_value(json_array_get(want_p, i));
        ck_assert_msg(kept[id], "case %zu: %d is not kept", i_case, id);
        ck_assert_msg(fabs((double)scratch.weight[id] / total - prob) <= 1e-5 * prob + 1e-12,
                      "case %zu: p(%d) = %g not %g", i_case, id, (double)scratch.weight[id] / total,
                      prob);
    }
}

START_TEST(golden_distributions_are_reproduced) {
    char path[GOLDEN_PATH_BYTES];
    golden_path(path, "sampling/sampling.json");
    json_t *root = json_load_file(path, 0, NULL);
    if (root == NULL) {
        printf("SKIP golden_distributions_are_reproduced: no %s\n", path);
        return;
    }
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    size_t i;
    json_t *test;
    json_array_foreach(json_object_get(root, "cases"), i, test) {
        const json_t *list = json_object_get(json_object_get(root, "logits"),
                                             json_string_value(json_object_get(test, "logits")));
        static float logits[VOCAB_MAX];
        const int n = (int)json_array_size(list);
        ck_assert_int_le(n, VOCAB_MAX);
        for (int t = 0; t < n; t++)
            logits[t] = (float)json_number_value(json_array_get(list, (size_t)t));
        for (int k = 0; k < n_kernels; k++)
            check_case(kernels[k], test, json_object_get(root, "default_params"), logits, n, i);
    }
    ck_assert_uint_ge(i, 70);
    json_decref(root);
}
END_TEST

/* 100,000 draws against the distribution they come from. */
START_TEST(draws_follow_the_distribution) {
    const cpu_kernels *k = cpu_kernels_best();
    float logits[32];
    rng r = {.s = (uint64_t)_i};
    for (int i = 0; i < 32; i++) logits[i] = rng_normal(&r);
    sample_row row = {.target = -1,
                      .temperature = 0.8f,
                      .top_p = _i % 2 == 1 ? 0.9f : 0.0f,
                      .seed = 0x123456789ABCDEFu + (unsigned)_i};
    const sample_vocab v = {.n_vocab = 32};
    enum { N = 100000 };
    int count[32] = {0};
    for (int i = 0; i < N; i++) {
        sampled out;
        row.position = (uint64_t)i;
        sample_answer(k, &v, logits, &row, NULL, NULL, &scratch, &out);
        ck_assert(out.finite);
        count[out.token]++;
    }
    double total = 0, chi2 = 0;
    const int n = sample_distribution(k, &v, logits, &row, NULL, NULL, &scratch, &total);
    int seen = 0;
    for (int i = 0; i < n; i++) {
        const double expected = N * (double)scratch.weight[scratch.id[i]] / total;
        const double d = count[scratch.id[i]] - expected;
        chi2 += d * d / expected;
        seen += count[scratch.id[i]];
    }
    ck_assert_int_eq(seen, N); /* nothing outside the kept set */
    ck_assert_msg(chi2 < 70, "chi-square %g with %d degrees", chi2, n - 1); /* p < 1e-4 at 31 */
}
END_TEST

START_TEST(draws_depend_on_seed_and_position_only) {
    float logits[64] = {0};
    const sample_vocab v = {.n_vocab = 64};
    int32_t first[50];
    int changed = 0;
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int k = 0; k < n_kernels; k++) {
        for (int i = 0; i < 50; i++) {
            const sample_row row = {
                .target = -1, .temperature = 1.0f, .seed = 7, .position = (uint64_t)i};
            sampled out;
            sample_answer(kernels[k], &v, logits, &row, NULL, NULL, &scratch, &out);
            if (k == 0) first[i] = out.token;
            ck_assert_int_eq(out.token, first[i]);
            /* a flat distribution: the token is the uniform number itself */
            ck_assert_int_eq(out.token, (int)(sample_uniform(7, (uint64_t)i) * 64.0f));
            changed += i > 0 && first[i] != first[i - 1];
        }
    }
    ck_assert_int_gt(changed, 40);
}
END_TEST

START_TEST(log_probabilities_are_of_the_raw_logits) {
    enum { N = 3000 };
    static float logits[N];
    rng r = {.s = 9};
    for (int i = 0; i < N; i++) logits[i] = 3.0f * rng_normal(&r);
    logits[100] = logits[200] = logits[300] = 20.0f; /* a tie at the top */
    double sum = 0;
    for (int i = 0; i < N; i++) sum += exp((double)logits[i]);
    const token_bias bias = {.token = 300, .bias = 5.0f};
    const sample_row row = {.target = -1, .n_bias = 1, .n_top = 20, .logprob = true};
    const sample_vocab v = {.n_vocab = N};
    const cpu_kernels *kernels[KERNELS_MAX];
    const int n_kernels = all_kernels(kernels);
    for (int k = 0; k < n_kernels; k++) {
        sampled out;
        sample_answer(kernels[k], &v, logits, &row, &bias, NULL, &scratch, &out);
        ck_assert_int_eq(out.token, 300); /* by its bias */
        ck_assert_int_eq(out.rank, 1);    /* none is strictly greater */
        ck_assert(fabs((double)out.logprob - (20 - log(sum))) < 1e-5);
        ck_assert_int_eq(out.n_top, 20);
        ck_assert_int_eq(out.top_token[0], 100);
        ck_assert_int_eq(out.top_token[1], 200);
        ck_assert_int_eq(out.top_token[2], 300);
        for (int i = 0; i < 20; i++) {
            const float l = logits[out.top_token[i]];
            int above = 0;
            for (int t = 0; t < N; t++)
                above += logits[t] > l || (t < out.top_token[i] && logits[t] >= l);
            ck_assert_int_eq(above, i);
            ck_assert(fabs((double)out.top_logprob[i] - ((double)l - log(sum))) < 1e-5);
        }
        const sample_row score = {.target = 17, .n_top = 1};
        sample_answer(kernels[k], &v, logits, &score, NULL, NULL, &scratch, &out);
        ck_assert_int_eq(out.token, 17);
        int above = 0;
        for (int t = 0; t < N; t++) above += logits[t] > logits[17];
        ck_assert_int_eq(out.rank, above + 1);
        ck_assert(fabs((double)out.logprob - ((double)logits[17] - log(sum))) < 1e-5);
    }
}
END_TEST

START_TEST(padding_is_never_drawn_but_counted) {
    float logits[20] = {0};
    const int32_t never[] = {3, 18, 19};
    const sample_vocab v = {.n_vocab = 20, .never = never, .n_never = 3};
    logits[19] = 9.0f;
    logits[4] = 8.0f;
    for (int i = 0; i < 200; i++) {
        const sample_row row = {.target = -1,
                                .temperature = i == 0 ? 0.0f : 2.0f,
                                .seed = 1,
                                .position = (uint64_t)i,
                                .logprob = true};
        sampled out;
        sample_answer(cpu_kernels_best(), &v, logits, &row, NULL, NULL, &scratch, &out);
        ck_assert(out.token != 3 && out.token < 18);
        if (i > 0) continue;
        ck_assert_int_eq(out.token, 4);
        ck_assert_int_eq(out.rank, 2); /* 19 is more likely, and says so */
    }
}
END_TEST

START_TEST(rows_that_are_not_finite_are_reported) {
    const float bad[] = {NAN, INFINITY, -NAN};
    for (int i = 0; i < 3; i++) {
        float logits[40] = {0};
        logits[13 * i + 5] = bad[i];
        const sample_row row = {.target = _i == 0 ? -1 : 2, .temperature = 1.0f, .logprob = true};
        const sample_vocab v = {.n_vocab = 40};
        sampled out;
        sample_answer(cpu_kernels_best(), &v, logits, &row, NULL, NULL, &scratch, &out);
        ck_assert(!out.finite && out.token == -1);
    }
    float logits[3] = {1.0f, 2.0f, 3.0f}; /* everything forbidden */
    const token_bias bias[] = {{0, -INFINITY}, {1, -INFINITY}, {2, -INFINITY}};
    const sample_row row = {.target = -1, .temperature = (float)_i, .n_bias = 3};
    const sample_vocab v = {.n_vocab = 3};
    sampled out;
    sample_answer(cpu_kernels_best(), &v, logits, &row, bias, NULL, &scratch, &out);
    ck_assert(!out.finite && out.token == -1);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("sample");
    tcase_add_test(tc, golden_distributions_are_reproduced);
    tcase_add_loop_test(tc, draws_follow_the_distribution, 0, 4);
    tcase_add_test(tc, draws_depend_on_seed_and_position_only);
    tcase_add_test(tc, log_probabilities_are_of_the_raw_logits);
    tcase_add_test(tc, padding_is_never_drawn_but_counted);
    tcase_add_loop_test(tc, rows_that_are_not_finite_are_reported, 0, 2);
    return check_run("sample", tc);
}
