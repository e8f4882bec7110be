/* Histograms and the exported text: every name of the API, well-formed, cumulative. */
#include <stdlib.h>
#include <string.h>

#include "server/metrics.h"
#include "server/process.h"
#include "tests/check_main.h"

/* All that /metrics can print. */
static char *export_text(const metrics *m, bool aliases) {
    const metrics_view v = {.tls_not_after_s = 1,
                            .model = "a\"b\\c\nd",
                            .version = "1",
                            .architecture = "llama",
                            .quantization = "Q4_1",
                            .backend = "cpu",
                            .device = "x",
                            .kv_block_tokens = 32,
                            .stats = {.kv_blocks_total = 10, .kv_blocks_free = 4},
                            .vllm_aliases = aliases};
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    metrics_write(m, &v, f);
    process_write_metrics(f);
    fclose(f);
    return text;
}

START_TEST(histogram_counts_and_quantiles) {
    metrics m;
    metrics_init(&m);
    for (int i = 1; i <= 100; i++) histogram_observe(&m.ttft_s, i * 0.001);
    ck_assert_uint_eq(histogram_count(&m.ttft_s), 100);
    ck_assert_double_eq_tol(histogram_sum(&m.ttft_s), 5.05, 1e-3);
    ck_assert_double_eq_tol(histogram_quantile(&m.ttft_s, 0.5), 0.05, 0.011);
    ck_assert_double_eq_tol(histogram_quantile(&m.ttft_s, 0.99), 0.1, 0.011);
    histogram_observe(&m.queue_s, 1e9); /* above all bounds */
    ck_assert_uint_eq(histogram_count(&m.queue_s), 1);
    ck_assert_double_gt(histogram_quantile(&m.queue_s, 0.5), 81);
    ck_assert_double_eq(histogram_quantile(&m.request_s, 0.5), 0);
}
END_TEST

START_TEST(ends_are_counted_by_cause) {
    static const struct {
        refuse_kind why;
        bool is_admitted, has_output;
        outcome want;
    } cases[] = {{REFUSE_NONE, true, true, OUTCOME_FINISHED},
                 {REFUSE_CANCELLED, true, true, OUTCOME_CANCELLED},
                 {REFUSE_DEADLINE, false, false, OUTCOME_CANCELLED},
                 {REFUSE_DEADLINE, true, true, OUTCOME_CANCELLED},
                 {REFUSE_DRAINING, false, false, OUTCOME_REJECTED},
                 {REFUSE_DRAINING, true, false, OUTCOME_REJECTED},
                 {REFUSE_DRAINING, true, true, OUTCOME_FAILED},
                 {REFUSE_QUEUE_FULL, false, false, OUTCOME_REJECTED},
                 {REFUSE_DEVICE_FAULT, false, false, OUTCOME_REJECTED},
                 {REFUSE_DEVICE_FAULT, true, false, OUTCOME_FAILED},
                 {REFUSE_TOO_LARGE, false, false, OUTCOME_REJECTED},
                 {REFUSE_TOO_LARGE, true, false, OUTCOME_FAILED},
                 {REFUSE_SLOW_CONSUMER, true, true, OUTCOME_FAILED},
                 {REFUSE_INTERNAL, false, false, OUTCOME_FAILED},
                 {REFUSE_INVALID, false, false, OUTCOME_INVALID},
                 {REFUSE_ID_LIVE, false, false, OUTCOME_INVALID}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_msg(outcome_of(cases[i].why, cases[i].is_admitted, cases[i].has_output) ==
                          cases[i].want,
                      "case %zu", i);
}
END_TEST

START_TEST(step_kinds) {
    metrics m;
    metrics_init(&m);
    metrics_step(&m, &(step_report){.n_seqs = 3, .n_decode_tokens = 3, .step_ns = 1000000});
    metrics_step(&m, &(step_report){.n_seqs = 1, .n_prefill_tokens = 30, .step_ns = 1000000});
    metrics_step(&m, &(step_report){
                         .n_seqs = 4, .n_decode_tokens = 3, .n_prefill_tokens = 30, .step_ns = 1});
    for (int i = 0; i < STEP_KINDS; i++) ck_assert_uint_eq(histogram_count(&m.step_s[i]), 1);
    ck_assert_uint_eq(histogram_count(&m.batch_size), 3);
}
END_TEST

START_TEST(all_names_are_there) {
    static const char *const NAMES[] = {"inferd_requests_running{",
                                        "inferd_requests_waiting{",
                                        "inferd_waiting_tokens{",
                                        "inferd_kv_cache_usage_ratio{",
                                        "state=\"total\"",
                                        "state=\"free\"",
                                        "state=\"cached\"",
                                        "kind=\"weights\"",
                                        "kind=\"kv\"",
                                        "kind=\"workspace\"",
                                        "inferd_build_info{",
                                        "inferd_model_info{",
                                        "inferd_last_step_age_seconds{",
                                        "outcome=\"finished\"",
                                        "outcome=\"cancelled\"",
                                        "outcome=\"rejected\"",
                                        "outcome=\"failed\"",
                                        "outcome=\"invalid\"",
                                        "inferd_finish_total{",
                                        "inferd_prompt_tokens_total{",
                                        "inferd_cached_prompt_tokens_total{",
                                        "inferd_generated_tokens_total{",
                                        "inferd_preemptions_total{",
                                        "inferd_steps_total{",
                                        "inferd_time_to_first_token_seconds_bucket{",
                                        "inferd_inter_token_seconds_sum{",
                                        "inferd_queue_seconds_count{",
                                        "inferd_request_seconds_bucket{",
                                        "inferd_prompt_tokens_bucket{",
                                        "inferd_output_tokens_bucket{",
                                        "inferd_batch_size_bucket{",
                                        "inferd_step_seconds_bucket{",
                                        "phase=\"prefill\"",
                                        "phase=\"decode\"",
                                        "phase=\"mixed\""};
    metrics m;
    metrics_init(&m);
    char *text = export_text(&m, false);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        ck_assert_msg(strstr(text, NAMES[i]) != NULL, "%s is missing", NAMES[i]);
    ck_assert_ptr_null(strstr(text, "vllm:"));
    ck_assert_ptr_nonnull(strstr(text, "model=\"a\\\"b\\\\c\\nd\"")); /* labels are escaped */
    ck_assert_ptr_nonnull(
        strstr(text, "inferd_kv_cache_usage_ratio{model=\"a\\\"b\\\\c\\nd\"} 0.6"));
    free(text);
    text = export_text(&m, true);
    ck_assert_ptr_nonnull(strstr(text, "vllm:num_requests_waiting{model_name="));
    ck_assert_ptr_nonnull(strstr(text, "block_size=\"32\",num_gpu_blocks=\"10\""));
    free(text);
}
END_TEST

/* Each series is announced by a TYPE line of its family before it, and by one only. */
START_TEST(families_are_whole) {
    metrics m;
    metrics_init(&m);
    char *text = export_text(&m, true), *save = NULL, family[128] = "";
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "# TYPE ", 7) == 0) {
            ck_assert_int_eq(sscanf(line + 7, "%127s", family), 1);
        } else if (line[0] != '#') {
            ck_assert_msg(strncmp(line, family, strlen(family)) == 0, "%s under %s", line, family);
            ck_assert(strstr(line, "} ") || strncmp(line, "process_", 8) == 0);
        }
    }
    free(text);
}
END_TEST

START_TEST(buckets_are_cumulative) {
    metrics m;
    metrics_init(&m);
    for (int i = 0; i < 50; i++) histogram_observe(&m.queue_s, i * 0.1);
    char *text = export_text(&m, false), *save = NULL;
    unsigned long long last = 0, n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "inferd_queue_seconds_bucket", 27) != 0) continue;
        const unsigned long long v = strtoull(strstr(line, "} ") + 2, NULL, 10);
        ck_assert_uint_ge(v, last);
        last = v;
        n++;
    }
    ck_assert_uint_eq(last, 50);
    ck_assert_uint_gt(n, 10);
    free(text);
}
END_TEST

START_TEST(errors_are_kept_in_a_ring) {
    metrics m;
    metrics_init(&m);
    char text[300];
    memset(text, 'e', sizeof text);
    text[299] = '\0';
    for (int i = 0; i < 3 * ERRORS_KEPT; i++) metrics_error(&m, text);
    ck_assert_uint_eq(m.errors.n, 3 * ERRORS_KEPT);
    ck_assert_uint_eq(strlen(m.errors.text[0]), ERROR_KEPT_BYTES - 1);
}
END_TEST

/* --- docs/metrics.md --- */

typedef struct family {
    char name[96], type[16], help[128], labels[128];
} family;
enum { FAMILIES_MAX = 128 };

/* Adds a label's name once; le is what every histogram has. */
static void add_label(family *f, const char *label, size_t n) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "`%.*s`", (int)n, label);
    if (strcmp(quoted, "`le`") == 0 || strstr(f->labels, quoted)) return;
    const size_t at = strlen(f->labels);
    snprintf(f->labels + at, sizeof f->labels - at, "%s%s", at > 0 ? ", " : "", quoted);
}

/* One sample's labels: names before =", values skipped with their escapes. */
static void add_labels(family *f, const char *line) {
    const char *p = strchr(line, '{');
    while (p && *p != '}') {
        const char *name = p + 1, *equals = strchr(name, '=');
        ck_assert_ptr_nonnull(equals);
        add_label(f, name, (size_t)(equals - name));
        for (p = equals + 2; *p != '"'; p++) p += *p == '\\';
        p++;
    }
}

static int read_export(char *text, family *f) {
    int n = 0;
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (strncmp(line, "# HELP ", 7) == 0) {
            ck_assert_int_lt(n, FAMILIES_MAX);
            f[n] = (family){.name = ""};
            ck_assert_int_eq(sscanf(line + 7, "%95s %127[^\n]", f[n].name, f[n].help), 2);
            n++;
        } else if (strncmp(line, "# TYPE ", 7) == 0) {
            ck_assert_int_eq(sscanf(line + 7, "%*s %15s", f[n - 1].type), 1);
        } else {
            add_labels(&f[n - 1], line);
        }
    }
    return n;
}

/* The page lists exactly what is printed: names, types, labels and meanings, in that order. */
START_TEST(the_page_lists_every_metric) {
    static family f[FAMILIES_MAX];
    char line[512], want[512];
    metrics m;
    metrics_init(&m);
    char *text = export_text(&m, true);
    const int n = read_export(text, f);
    free(text);
    FILE *page = fopen(TEST_ROOT "/docs/metrics.md", "r");
    ck_assert_ptr_nonnull(page);
    int i = 0;
    while (fgets(line, sizeof line, page)) {
        if (strncmp(line, "| `", 3) != 0) continue;
        ck_assert_msg(i < n, "not printed: %s", line);
        snprintf(want, sizeof want, "| `%s` | %s | %s | %s |\n", f[i].name, f[i].type,
                 f[i].labels[0] ? f[i].labels : "none", f[i].help);
        ck_assert_str_eq(line, want);
        i++;
    }
    fclose(page);
    ck_assert_msg(i == n, "docs/metrics.md lacks %s", f[i].name);
}
END_TEST

int main(void) {
    TCase *t = tcase_create("all");
    tcase_add_test(t, histogram_counts_and_quantiles);
    tcase_add_test(t, ends_are_counted_by_cause);
    tcase_add_test(t, step_kinds);
    tcase_add_test(t, all_names_are_there);
    tcase_add_test(t, families_are_whole);
    tcase_add_test(t, buckets_are_cumulative);
    tcase_add_test(t, errors_are_kept_in_a_ring);
    tcase_add_test(t, the_page_lists_every_metric);
    return check_run("metrics", t);
}
