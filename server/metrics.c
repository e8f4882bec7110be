#include "server/metrics.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

static const double TTFT_S[] = {.001, .005, .01, .02, .04, .06, .08, .1,
                                .25,  .5,   .75, 1,   2.5, 5,   7.5, 10};
static const double INTER_TOKEN_S[] = {.001, .0025, .005, .01, .025, .05, .075, .1,
                                       .15,  .2,    .3,   .4,  .5,   .75, 1,    2.5};
static const double REQUEST_S[] = {.01,  .02,  .04,  .08,   .16,   .32,   .64,
                                   1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92};
static const double TOKENS[] = {1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
static const double BATCH[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
static const double STEP_S[] = {.0005, .001, .002, .004, .008, .016, .032,
                                .064,  .128, .256, .512, 1,    2.5};

#define BUCKETS(h, b) ((h)->bounds = (b), (h)->n = (int)(sizeof(b) / sizeof *(b)))

void metrics_init(metrics *m) {
    memset(m, 0, sizeof *m);
    BUCKETS(&m->ttft_s, TTFT_S);
    BUCKETS(&m->inter_token_s, INTER_TOKEN_S);
    BUCKETS(&m->queue_s, REQUEST_S);
    BUCKETS(&m->request_s, REQUEST_S);
    BUCKETS(&m->prompt_tokens, TOKENS);
    BUCKETS(&m->output_tokens, TOKENS);
    BUCKETS(&m->batch_size, BATCH);
    for (int i = 0; i < STEP_KINDS; i++) BUCKETS(&m->step_s[i], STEP_S);
}

static uint64_t load(const _Atomic uint64_t *v) {
    return atomic_load_explicit(v, memory_order_relaxed);
}

void histogram_observe(histogram *h, double v) {
    int i = 0;
    while (i < h->n && v > h->bounds[i]) i++;
    atomic_fetch_add_explicit(&h->count[i], 1, memory_order_relaxed);
    if (v > 0) atomic_fetch_add_explicit(&h->sum, (uint64_t)(v * 1e6), memory_order_relaxed);
}

uint64_t histogram_count(const histogram *h) {
    uint64_t n = 0;
    for (int i = 0; i <= h->n; i++) n += load(&h->count[i]);
    return n;
}

double histogram_sum(const histogram *h) {
    return (double)load(&h->sum) * 1e-6;
}

double histogram_quantile(const histogram *h, double q) {
    const double want = q * (double)histogram_count(h);
    double below = 0;
    if (want <= 0) return 0;
    for (int i = 0; i < h->n; i++) {
        const double in = (double)load(&h->count[i]);
        if (in > 0 && below + in >= want) {
            const double low = i > 0 ? h->bounds[i - 1] : 0;
            return low + (h->bounds[i] - low) * (want - below) / in;
        }
        below += in;
    }
    return h->bounds[h->n - 1];
}

outcome outcome_of(refuse_kind why, bool is_admitted, bool has_output) {
    switch (why) {
    case REFUSE_NONE:
        return OUTCOME_FINISHED;
    case REFUSE_CANCELLED:
    case REFUSE_DEADLINE:
        return OUTCOME_CANCELLED;
    case REFUSE_DRAINING: /* without output another server may repeat it */
        return has_output ? OUTCOME_FAILED : OUTCOME_REJECTED;
    case REFUSE_QUEUE_FULL:
    case REFUSE_QUOTA:
    case REFUSE_TOO_LARGE:
    case REFUSE_LOADING:
    case REFUSE_STALLED:
    case REFUSE_DEVICE_FAULT:
        return is_admitted ? OUTCOME_FAILED : OUTCOME_REJECTED;
    case REFUSE_INTERNAL:
        return OUTCOME_FAILED;
    default:
        return is_admitted ? OUTCOME_FAILED : OUTCOME_INVALID;
    }
}

void metrics_step(metrics *m, const step_report *r) {
    const int kind = r->n_prefill_tokens == 0  ? STEP_DECODE
                     : r->n_decode_tokens == 0 ? STEP_PREFILL
                                               : STEP_MIXED;
    histogram_observe(&m->step_s[kind], (double)r->step_ns * 1e-9);
    histogram_observe(&m->batch_size, r->n_seqs);
    const int64_t mean = atomic_load_explicit(&m->step_ns_mean, memory_order_relaxed);
    atomic_store_explicit(&m->step_ns_mean, mean + (r->step_ns - mean) / 16, memory_order_relaxed);
}

void metrics_error(metrics *m, const char *text) {
    int expected = 0; /* a page reads these: a line that meets another writer is given up */
    if (!atomic_compare_exchange_strong(&m->errors.lock, &expected, 1)) return;
    const unsigned i = atomic_fetch_add(&m->errors.n, 1) % ERRORS_KEPT;
    snprintf(m->errors.text[i], ERROR_KEPT_BYTES, "%s", text);
    m->errors.at_ns[i] = clock_now_ns();
    atomic_store(&m->errors.lock, 0);
}

static double usage_ratio(const engine_stats *s) {
    return s->kv_blocks_total > 0 ? 1.0 - (double)s->kv_blocks_free / (double)s->kv_blocks_total
                                  : 0.0;
}

void metrics_sample(metrics *m, const engine_stats *s, int64_t now_ns) {
    const double dt_s = (double)(now_ns - m->history.seen_ns) * 1e-9;
    const uint64_t tokens = s->generated_tokens - m->history.seen_tokens;
    const bool first = m->history.seen_ns == 0;
    if (!first && dt_s < 0.5) return;
    m->history.seen_ns = now_ns;
    m->history.seen_tokens = s->generated_tokens;
    const double value[HISTORY_SERIES] = {first ? 0 : (double)tokens / dt_s,
                                          (double)s->running + (double)s->waiting,
                                          100 * usage_ratio(s)};
    const unsigned n = atomic_load(&m->history.n);
    for (int i = 0; i < HISTORY_SERIES; i++)
        atomic_store_explicit(&m->history.value[i][n % HISTORY_SAMPLES], (float)value[i],
                              memory_order_relaxed);
    atomic_store(&m->history.n, n + 1);
}

/* --- export --- */

/* A label value: backslash, quote and newline are escaped. */
static void put_label(FILE *out, const char *key, const char *value) {
    fprintf(out, "%s=\"", key);
    for (const char *p = value; *p; p++) {
        if (*p == '\n') {
            fputs("\\n", out);
            continue;
        }
        if (*p == '"' || *p == '\\') fputc('\\', out);
        fputc(*p, out);
    }
    fputc('"', out);
}

static void put_type(FILE *out, const char *name, const char *type, const char *help) {
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

typedef struct writer {
    FILE *out;
    const char *label, *model; /* the label that every sample carries */
} writer;

static void put_sample(const writer *w, const char *name, const char *key, const char *value,
                       double v) {
    fprintf(w->out, "%s{", name);
    put_label(w->out, w->label, w->model);
    if (key) {
        fputc(',', w->out);
        put_label(w->out, key, value);
    }
    fprintf(w->out, "} %.15g\n", v);
}

static void put_one(const writer *w, const char *name, const char *type, const char *help,
                    double v) {
    put_type(w->out, name, type, help);
    put_sample(w, name, NULL, NULL, v);
}

static void put_histogram_samples(const writer *w, const char *name, const char *key,
                                  const char *value, const histogram *h) {
    char series[96], bound[32];
    snprintf(series, sizeof series, "%s_bucket", name);
    uint64_t below = 0;
    for (int i = 0; i <= h->n; i++) {
        below += load(&h->count[i]);
        if (i < h->n) snprintf(bound, sizeof bound, "%g", h->bounds[i]);
        fprintf(w->out, "%s{", series);
        put_label(w->out, w->label, w->model);
        if (key) {
            fputc(',', w->out);
            put_label(w->out, key, value);
        }
        fprintf(w->out, ",le=\"%s\"} %llu\n", i < h->n ? bound : "+Inf", (unsigned long long)below);
    }
    snprintf(series, sizeof series, "%s_sum", name);
    put_sample(w, series, key, value, histogram_sum(h));
    snprintf(series, sizeof series, "%s_count", name);
    put_sample(w, series, key, value, (double)below);
}

static void put_histogram(const writer *w, const char *name, const char *help, const histogram *h) {
    put_type(w->out, name, "histogram", help);
    put_histogram_samples(w, name, NULL, NULL, h);
}

static const char *const REASON[FINISH_REASONS] = {
    "none", "stop_token", "stop_string", "max_tokens", "context_full", "time_limit", "aborted"};
static const char *const OUTCOME[OUTCOMES] = {"finished", "cancelled", "rejected", "failed",
                                              "invalid"};
static const char *const STEP_PHASE[STEP_KINDS] = {"prefill", "decode", "mixed"};

static void write_gauges(const writer *w, const metrics_view *v) {
    const engine_stats *s = &v->stats;
    put_one(w, "inferd_requests_running", "gauge", "Requests being computed.", s->running);
    put_one(w, "inferd_requests_waiting", "gauge", "Requests waiting for admission.", s->waiting);
    put_one(w, "inferd_waiting_tokens", "gauge", "Prompt tokens of the waiting requests.",
            (double)s->waiting_tokens);
    put_one(w, "inferd_kv_cache_usage_ratio", "gauge", "Share of KV blocks in use, 0 to 1.",
            usage_ratio(s));
    put_type(w->out, "inferd_kv_blocks", "gauge", "KV blocks by state; cached ones count as free.");
    put_sample(w, "inferd_kv_blocks", "state", "total", s->kv_blocks_total);
    put_sample(w, "inferd_kv_blocks", "state", "free", s->kv_blocks_free);
    put_sample(w, "inferd_kv_blocks", "state", "cached", s->kv_blocks_cached);
    put_type(w->out, "inferd_memory_bytes", "gauge", "Memory of the backend by use.");
    put_sample(w, "inferd_memory_bytes", "kind", "weights", (double)v->memory.weights_bytes);
    put_sample(w, "inferd_memory_bytes", "kind", "kv", (double)v->memory.kv_bytes);
    put_sample(w, "inferd_memory_bytes", "kind", "workspace", (double)v->memory.workspace_bytes);
    put_one(w, "inferd_last_step_age_seconds", "gauge", "Time since the engine finished a step.",
            v->last_step_age_s);
    if (v->tls_not_after_s > 0)
        put_one(w, "inferd_tls_certificate_not_after_seconds", "gauge",
                "End of the certificate in use, in seconds since 1970.",
                (double)v->tls_not_after_s);

    put_type(w->out, "inferd_build_info", "gauge", "1; the labels say what runs.");
    put_sample(w, "inferd_build_info", "version", v->version, 1);
    put_type(w->out, "inferd_model_info", "gauge", "1; the labels say what is served.");
    fputs("inferd_model_info{", w->out);
    put_label(w->out, w->label, w->model);
    const char *const pairs[][2] = {{"architecture", v->architecture},
                                    {"quantization", v->quantization},
                                    {"backend", v->backend},
                                    {"device", v->device}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        fputc(',', w->out);
        put_label(w->out, pairs[i][0], pairs[i][1]);
    }
    fputs("} 1\n", w->out);
}

static void write_counters(const writer *w, const metrics *m, const metrics_view *v) {
    const engine_stats *s = &v->stats;
    put_type(w->out, "inferd_requests_total", "counter", "Generate calls by how they ended.");
    for (int i = 0; i < OUTCOMES; i++)
        put_sample(w, "inferd_requests_total", "outcome", OUTCOME[i],
                   (double)load(&m->outcomes[i]));
    put_type(w->out, "inferd_finish_total", "counter", "Choices by finish reason.");
    for (int i = 1; i < FINISH_REASONS; i++)
        put_sample(w, "inferd_finish_total", "reason", REASON[i], (double)load(&m->finish[i]));
    put_one(w, "inferd_prompt_tokens_total", "counter", "Prompt tokens, cached ones included.",
            (double)s->prompt_tokens);
    put_one(w, "inferd_cached_prompt_tokens_total", "counter",
            "Prompt tokens taken from the prefix cache.", (double)s->cached_prompt_tokens);
    put_one(w, "inferd_generated_tokens_total", "counter", "Tokens drawn.",
            (double)s->generated_tokens);
    put_one(w, "inferd_preemptions_total", "counter", "Sequences put back for lack of KV blocks.",
            (double)s->preemptions);
    put_one(w, "inferd_steps_total", "counter", "Steps of the engine.", (double)s->steps);
    put_one(w, "inferd_stalled_steps_total", "counter",
            "Times the engine could plan no step for work that waits for no reader: 0 is healthy.",
            (double)s->stalled_steps);
    put_one(w, "inferd_auth_denied_total", "counter", "Calls without a valid credential.",
            (double)load(&m->auth_denied));
    put_one(w, "inferd_log_lines_dropped_total", "counter",
            "Log lines that standard output could not take in time.", (double)v->log_dropped);
    put_one(w, "inferd_tls_reload_failures_total", "counter",
            "Certificate files that were not usable; the old ones stayed.",
            (double)load(&m->tls_reload_failures));
    put_one(w, "inferd_token_reload_failures_total", "counter",
            "Token files that were not usable; the old tokens stayed.",
            (double)load(&m->token_reload_failures));
}

/* The names that the Gateway API inference extension and llm-d read. */
static void write_vllm(const metrics *m, const metrics_view *v, FILE *out) {
    const writer w = {out, "model_name", v->model};
    const engine_stats *s = &v->stats;
    put_one(&w, "vllm:num_requests_running", "gauge", "Alias.", s->running);
    put_one(&w, "vllm:num_requests_waiting", "gauge", "Alias.", s->waiting);
    put_one(&w, "vllm:kv_cache_usage_perc", "gauge", "Alias, 0 to 1.", usage_ratio(s));
    put_type(out, "vllm:cache_config_info", "gauge", "Alias.");
    fputs("vllm:cache_config_info{", out);
    put_label(out, "model_name", v->model);
    fprintf(out, ",block_size=\"%d\",num_gpu_blocks=\"%u\"} 1\n", v->kv_block_tokens,
            s->kv_blocks_total);
    put_one(&w, "vllm:prompt_tokens_total", "counter", "Alias.", (double)s->prompt_tokens);
    put_one(&w, "vllm:generation_tokens_total", "counter", "Alias.", (double)s->generated_tokens);
    put_one(&w, "vllm:num_preemptions_total", "counter", "Alias.", (double)s->preemptions);
    put_one(&w, "vllm:prefix_cache_queries_total", "counter", "Alias.", (double)s->prompt_tokens);
    put_one(&w, "vllm:prefix_cache_hits_total", "counter", "Alias.",
            (double)s->cached_prompt_tokens);
    static const struct {
        finish_reason reason;
        const char *name;
    } success[] = {
        {FINISH_STOP_TOKEN, "stop"}, {FINISH_MAX_TOKENS, "length"}, {FINISH_ABORTED, "abort"}};
    put_type(out, "vllm:request_success_total", "counter", "Alias.");
    for (size_t i = 0; i < sizeof success / sizeof *success; i++) {
        double n = (double)load(&m->finish[success[i].reason]);
        if (success[i].reason == FINISH_STOP_TOKEN)
            n += (double)load(&m->finish[FINISH_STOP_STRING]);
        if (success[i].reason == FINISH_MAX_TOKENS)
            n += (double)load(&m->finish[FINISH_CONTEXT_FULL]);
        put_sample(&w, "vllm:request_success_total", "finished_reason", success[i].name, n);
    }
    put_histogram(&w, "vllm:time_to_first_token_seconds", "Alias.", &m->ttft_s);
    put_histogram(&w, "vllm:inter_token_latency_seconds", "Alias.", &m->inter_token_s);
    put_histogram(&w, "vllm:request_queue_time_seconds", "Alias.", &m->queue_s);
    put_histogram(&w, "vllm:e2e_request_latency_seconds", "Alias.", &m->request_s);
    put_histogram(&w, "vllm:request_prompt_tokens", "Alias.", &m->prompt_tokens);
    put_histogram(&w, "vllm:request_generation_tokens", "Alias.", &m->output_tokens);
}

void metrics_write(const metrics *m, const metrics_view *v, FILE *out) {
    const writer w = {out, "model", v->model};
    write_gauges(&w, v);
    write_counters(&w, m, v);
    put_histogram(&w, "inferd_time_to_first_token_seconds", "Arrival to first token.", &m->ttft_s);
    put_histogram(&w, "inferd_inter_token_seconds", "Gap between tokens of a choice.",
                  &m->inter_token_s);
    put_histogram(&w, "inferd_queue_seconds", "Arrival to admission.", &m->queue_s);
    put_histogram(&w, "inferd_request_seconds", "Arrival to the terminal event.", &m->request_s);
    put_histogram(&w, "inferd_prompt_tokens", "Prompt tokens a request.", &m->prompt_tokens);
    put_histogram(&w, "inferd_output_tokens", "Tokens drawn a request.", &m->output_tokens);
    put_histogram(&w, "inferd_batch_size", "Sequences a step.", &m->batch_size);
    put_type(out, "inferd_step_seconds", "histogram", "Duration of a step by what it computed.");
    for (int i = 0; i < STEP_KINDS; i++)
        put_histogram_samples(&w, "inferd_step_seconds", "phase", STEP_PHASE[i], &m->step_s[i]);
    if (v->vllm_aliases) write_vllm(m, v, out);
}
