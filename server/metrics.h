/* Counters, gauges and histograms of the process: a struct of relaxed atomics, written wherever
 * things happen and read in one place (metrics_write). Names: the API's "Metrics" paragraph.
 * Thread: any, everywhere; nothing blocks. */
#ifndef INFERD_SERVER_METRICS_H
#define INFERD_SERVER_METRICS_H

#include <stdatomic.h>
#include <stdio.h>

#include "engine/engine.h"
#include "server/refuse.h"

enum { HISTOGRAM_BUCKETS_MAX = 20 };

/* Cumulative buckets are made at export; each observation is two relaxed adds. */
typedef struct histogram {
    const double *bounds; /* [n] ascending, static */
    int n;
    _Atomic uint64_t count[HISTOGRAM_BUCKETS_MAX + 1]; /* the last: above all bounds */
    _Atomic uint64_t sum;                              /* in units of 1e-6 of the observed unit */
} histogram;
void histogram_observe(histogram *h, double v);
uint64_t histogram_count(const histogram *h);
double histogram_sum(const histogram *h);
/* q in 0..1, linear inside the bucket; 0 without observations. */
double histogram_quantile(const histogram *h, double q);

typedef enum outcome {
    OUTCOME_FINISHED,  /* ended with Finish */
    OUTCOME_CANCELLED, /* client gone, or deadline */
    OUTCOME_REJECTED,  /* refused before admission: overload, loading, drain */
    OUTCOME_FAILED,    /* INTERNAL, DEVICE_FAULT, STALLED, SLOW_CONSUMER */
    OUTCOME_INVALID,   /* the request was wrong */
    OUTCOMES
} outcome;
/* What an end counts as. is_admitted: the engine had taken the request; has_output: its peer was
 * sent some of it. */
outcome outcome_of(refuse_kind why, bool is_admitted, bool has_output);

enum { STEP_PREFILL, STEP_DECODE, STEP_MIXED, STEP_KINDS };
/* What /statusz draws: one value a second and series, for two minutes. */
enum { HISTORY_SAMPLES = 120 };
typedef enum history_series {
    HISTORY_TOKENS,   /* output tokens a second */
    HISTORY_REQUESTS, /* running and waiting */
    HISTORY_KV,       /* percent of the blocks in use */
    HISTORY_SERIES
} history_series;

enum { FINISH_REASONS = FINISH_ABORTED + 1, ERRORS_KEPT = 8, ERROR_KEPT_BYTES = 160 };

typedef struct metrics {
    _Atomic uint64_t outcomes[OUTCOMES];
    _Atomic uint64_t finish[FINISH_REASONS];
    _Atomic uint64_t tls_reload_failures, token_reload_failures, auth_denied;
    histogram ttft_s, inter_token_s, queue_s, request_s, prompt_tokens, output_tokens, batch_size;
    histogram step_s[STEP_KINDS];
    _Atomic int64_t step_ns_mean; /* smoothed */

    struct { /* last errors, for /statusz: event names and ids, never content */
        _Atomic unsigned n;
        _Atomic int lock;
        char text[ERRORS_KEPT][ERROR_KEPT_BYTES];
        int64_t at_ns[ERRORS_KEPT];
    } errors;
    struct { /* a ring: the newest is at (n - 1) % HISTORY_SAMPLES */
        _Atomic unsigned n;
        _Atomic float value[HISTORY_SERIES][HISTORY_SAMPLES];
        uint64_t seen_tokens; /* the sampling thread's alone, as is the next */
        int64_t seen_ns;
    } history;
} metrics;
void metrics_init(metrics *m);
/* Engine thread, after each step. */
void metrics_step(metrics *m, const step_report *r);
/* About every second, one thread: s as it is now. */
void metrics_sample(metrics *m, const engine_stats *s, int64_t now_ns);
/* Keeps the last ERRORS_KEPT lines. */
void metrics_error(metrics *m, const char *text);

/* Constant facts and the snapshot that an export needs beside the counters. */
typedef struct metrics_view {
    const char *model, *version, *architecture, *quantization, *backend, *device;
    bool loaded; /* stats and memory are valid */
    engine_stats stats;
    backend_memory memory;
    int kv_block_tokens;
    double last_step_age_s;
    int64_t tls_not_after_s; /* seconds since 1970; 0: no TLS */
    uint64_t log_dropped;    /* lines */
    bool vllm_aliases;
} metrics_view;
/* Prometheus text format 0.0.4. */
void metrics_write(const metrics *m, const metrics_view *v, FILE *out);
#endif
