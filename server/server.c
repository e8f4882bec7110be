#include "server/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "server/backlog.h"
#include "server/context.h"
#include "server/rpc.h"
#include "server/unix_socket.h"

/* --- state --- */

static int phase(const server *s) {
    return atomic_load(&s->phase);
}

bool server_ready(const server *s) {
    return phase(s) == SERVER_SERVING && !atomic_load(&s->stalled) &&
           atomic_load(&s->fatal) == REFUSE_NONE;
}

bool server_live(const server *s) {
    return !atomic_load(&s->stalled) && atomic_load(&s->fatal) == REFUSE_NONE;
}

int server_n_calls(const server *s) {
    return atomic_load(&s->n_calls);
}
int server_n_generating(const server *s) {
    return atomic_load(&s->n_generating);
}
metrics *server_metrics(server *s) {
    return &s->metrics;
}
const char *server_health_address(const server *s) {
    return s->health_address;
}
const char *server_address(const server *s) {
    return s->address;
}

server_phase server_state(const server *s) {
    return server_live(s) ? (server_phase)phase(s) : SERVER_FAILED;
}

const char *server_state_name(const server *s) {
    static const char *const NAMES[] = {"", "loading", "serving", "draining", "failed"};
    const bool stalled = atomic_load(&s->stalled) && atomic_load(&s->fatal) == REFUSE_NONE;
    return stalled ? "stalled" : NAMES[server_state(s)];
}

double server_uptime_s(const server *s) {
    return (double)(clock_now_ns() - s->start_ns) * 1e-9;
}

refuse_kind server_gate(const server *s, bool generate) {
    const int fatal = atomic_load(&s->fatal);
    if (fatal != REFUSE_NONE) return (refuse_kind)fatal;
    if (phase(s) == SERVER_LOADING) return REFUSE_LOADING;
    if (generate && !atomic_load(&s->admitting)) return REFUSE_DRAINING;
    if (generate && atomic_load(&s->stalled)) return REFUSE_STALLED;
    return REFUSE_NONE;
}

void server_set_progress(server *s, double fraction) {
    atomic_store(&s->load_progress, fraction);
}

void server_set_stalled(server *s, bool stalled) {
    atomic_store(&s->stalled, stalled);
}

void server_fail(server *s, refuse_kind why) {
    atomic_store(&s->fatal, (int)why);
    atomic_store(&s->phase, SERVER_FAILED);
}

void server_begin_drain(server *s) {
    int from = phase(s);
    while (from != SERVER_FAILED &&
           !atomic_compare_exchange_weak(&s->phase, &from, SERVER_DRAINING))
        continue;
}
void server_stop_admission(server *s) {
    atomic_store(&s->admitting, false);
}
void server_stop_listening(server *s) {
    rpc_stop_listening(s->rpc);
}

/* --- the model --- */

/* The model's strings in one allocation, so that they outlive what main.c took them from. */
static bool copy_strings(server *s) {
    served_model *m = &s->model;
    const char **const strings[] = {&m->name,           &m->architecture, &m->quantization,
                                    &m->sha256,         &m->backend,      &m->device,
                                    &m->tokenizer_name, &m->kv_type,      &m->chat_problem};
    enum { N = sizeof strings / sizeof *strings };
    size_t bytes = m->chat_source_len + 1;
    for (int i = 0; i < N; i++) bytes += (*strings[i] ? strlen(*strings[i]) : 0) + 1;
    char *p = malloc(bytes);
    if (!p) return false;
    s->strings = p;
    for (int i = 0; i < N; i++) {
        const size_t len = *strings[i] ? strlen(*strings[i]) : 0;
        if (len > 0) memcpy(p, *strings[i], len);
        p[len] = '\0';
        *strings[i] = p;
        p += len + 1;
    }
    if (m->chat_source_len > 0) memcpy(p, m->chat_source, m->chat_source_len);
    m->chat_source = p;
    return true;
}

status server_serve(server *s, const served_model *m) {
    s->model = *m;
    if (!copy_strings(s)) return E_NOMEM;
    engine_read_stats(m->engine, &s->baseline);
    auth_set_pool(s->auth, engine_memory(m->engine)->kv_blocks, s->options.tenant_kv_percent);
    if (s->options.queue_max_requests > 0)
        auth_set_share(s->auth,
                       (uint64_t)m->max_sequences + (uint64_t)s->options.queue_max_requests / 4);
    atomic_store(&s->load_progress, 1.0);
    atomic_store(&s->phase, SERVER_SERVING); /* from here on s->model is read by other threads */
    atomic_store(&s->was_ready, true);
    return OK;
}

bool server_model(const server *s, served_model *out) {
    if (!atomic_load(&s->was_ready)) return false;
    *out = s->model;
    return true;
}

void server_read_stats(const server *s, engine_stats *out) {
    const engine_stats *b = &s->baseline;
    engine_read_stats(s->model.engine, out);
    out->steps -= b->steps;
    out->prompt_tokens -= b->prompt_tokens;
    out->generated_tokens -= b->generated_tokens;
    out->cached_prompt_tokens -= b->cached_prompt_tokens;
    out->preemptions -= b->preemptions;
    out->stalled_steps -= b->stalled_steps;
}

double server_last_step_age_s(const server *s) {
    engine_stats st;
    engine_read_stats(s->model.engine, &st);
    return st.last_step_ns > 0 ? (double)(clock_now_ns() - st.last_step_ns) * 1e-9 : 0;
}

void server_view(const server *s, metrics_view *out) {
    *out = (metrics_view){.model = "",
                          .version = INFERD_VERSION,
                          .architecture = "",
                          .quantization = "",
                          .backend = "",
                          .device = "",
                          .tls_not_after_s = s->tls ? tls_not_after_s(s->tls) : 0,
                          .vllm_aliases = s->options.vllm_aliases};
    served_model m;
    if (!server_model(s, &m)) return;
    out->loaded = true;
    out->model = m.name;
    out->architecture = m.architecture;
    out->quantization = m.quantization;
    out->backend = m.backend;
    out->device = m.device;
    out->kv_block_tokens = m.kv_block_tokens;
    out->memory = *engine_memory(m.engine);
    out->last_step_age_s = server_last_step_age_s(s);
    server_read_stats(s, &out->stats);
}

static backlog backlog_of(const server *s) {
    const histogram *h = &s->metrics.output_tokens;
    const uint64_t n = histogram_count(h);
    engine_stats st;
    engine_read_stats(s->model.engine, &st);
    return (backlog){.waiting = st.waiting,
                     .n_measured = n,
                     .mean_tokens = n > 0 ? histogram_sum(h) / (double)n : 0,
                     .tokens_per_s = st.tokens_per_s};
}

int server_pushback_ms(const server *s) {
    const backlog b = backlog_of(s);
    uint32_t dice;
    random_bytes(&dice, sizeof dice);
    return backlog_pushback_ms(&b, (double)dice / 4294967296.0);
}

enum { EVIDENCE = 32 };

bool server_outlasts(const server *s, int64_t deadline_ns, int64_t now_ns, uint64_t max_tokens) {
    if (deadline_ns == TIME_NEVER) return false;
    const backlog b = backlog_of(s);
    if (b.n_measured < EVIDENCE || !backlog_known(&b)) return false;
    if (b.waiting == 0) return false; /* nobody else wants the place: let it try */
    const double tokens = (double)max_tokens < b.mean_tokens ? (double)max_tokens : b.mean_tokens;
    const double step_ms = 1e-6 * (double)atomic_load(&s->metrics.step_ns_mean);
    return backlog_ms(&b) + tokens * step_ms > 1e-6 * (double)(deadline_ns - now_ns);
}

void server_on_step(void *ctx, const step_report *r) {
    server *s = ctx;
    if (r->n_seqs > 0) metrics_step(&s->metrics, r); /* 0: events without a step */
    rpc_signal(s->rpc);
}

/* --- life --- */

static status check_free(const char *addr, error *err) {
    if (!addr || !unix_socket_in_use(addr)) return OK;
    return error_set(err, E_IO, "cannot listen on %s (in use)", addr);
}

status server_open(const server_options *o, server **out, error *err) {
    server *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, E_NOMEM, "server: out of memory");
    s->options = *o;
    s->start_ns = clock_now_ns();
    s->rates.seen_ns = s->start_ns;
    metrics_init(&s->metrics);
    atomic_store(&s->phase, SERVER_LOADING);
    atomic_store(&s->admitting, true);

    status e = check_free(o->listen, err);
    if (e == OK) e = check_free(o->health_listen, err);
    if (e == OK) e = ids_open(&s->ids);
    if (e != OK) goto fail_ids;
    e = auth_open(o->tokens_file, &s->auth, err);
    if (e != OK) goto fail_auth;
    if (o->tls_cert) {
        e = tls_open(o->tls_cert, o->tls_key, o->tls_client_ca, &s->tls, err);
        if (e != OK) goto fail_tls;
    }
    e = worker_open(&s->worker);
    if (e != OK) {
        error_set(err, e, "cannot start a worker thread");
        goto fail_worker;
    }
    e = rpc_open(s, &s->rpc, err);
    if (e != OK) goto fail_rpc;
    *out = s;
    return OK;

fail_rpc:
    worker_close(s->worker);
fail_worker:
    tls_close(s->tls);
fail_tls:
    auth_close(s->auth);
fail_auth:
    ids_close(s->ids);
fail_ids:
    free(s);
    return e;
}

static void reload_certificates(server *s) {
    error err = {.code = OK};
    bool changed = false;
    const status e = tls_reload(s->tls, &changed, &err);
    if (e != OK) {
        atomic_fetch_add(&s->metrics.tls_reload_failures, 1);
        metrics_error(&s->metrics, "certificate files are not usable; the old ones stay");
        log_event(LOG_ERROR, "tls_reload_failed", LOG_STR("error", err.text));
    } else if (changed) {
        log_event(LOG_INFO, "tls_reloaded", LOG_BOOL("ok", true));
    }
}

static void reload_tokens(server *s) {
    error err = {.code = OK};
    if (auth_reload(s->auth, &err) != OK) {
        atomic_fetch_add(&s->metrics.token_reload_failures, 1);
        metrics_error(&s->metrics, "the tokens file is not usable; the old tokens stay");
        log_event(LOG_ERROR, "tokens_reload_failed", LOG_STR("error", err.text));
    } else if (auth_required(s->auth)) {
        log_event(LOG_INFO, "tokens_reloaded", LOG_BOOL("ok", true));
    }
}

void server_reload(server *s) {
    reload_tokens(s);
    if (s->tls) reload_certificates(s);
}

static void smooth(_Atomic double *rate, double now, double dt_s) {
    const double k = dt_s < 5 ? dt_s / 5 : 1; /* five seconds of memory */
    atomic_store(rate, atomic_load(rate) + k * (now - atomic_load(rate)));
}

static void measure_rates(server *s) {
    struct rusage u;
    const int64_t now = clock_now_ns();
    const double dt_s = (double)(now - s->rates.seen_ns) * 1e-9;
    if (dt_s < 0.1) return;
    getrusage(RUSAGE_SELF, &u);
    const double cpu_s = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                         (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
    uint64_t requests = 0;
    for (int i = 0; i < OUTCOMES; i++) requests += atomic_load(&s->metrics.outcomes[i]);
    const uint64_t errors = atomic_load(&s->metrics.outcomes[OUTCOME_FAILED]) +
                            atomic_load(&s->metrics.outcomes[OUTCOME_REJECTED]);
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    smooth(&s->rates.requests, (double)(requests - s->rates.seen_requests) / dt_s, dt_s);
    smooth(&s->rates.errors, (double)(errors - s->rates.seen_errors) / dt_s, dt_s);
    smooth(&s->rates.cpu, (cpu_s - s->rates.seen_cpu_s) / dt_s / (double)(cores > 0 ? cores : 1),
           dt_s);
    s->rates.seen_requests = requests;
    s->rates.seen_errors = errors;
    s->rates.seen_cpu_s = cpu_s;
    s->rates.seen_ns = now;
}

void server_tick(server *s) {
    measure_rates(s);
    if (atomic_load(&s->was_ready)) {
        engine_stats stats;
        server_read_stats(s, &stats);
        metrics_sample(&s->metrics, &stats, clock_now_ns());
    }
    if (s->tls && tls_files_changed(s->tls)) reload_certificates(s);
    if (auth_file_changed(s->auth)) reload_tokens(s);
}

void server_close(server *s) {
    if (!s) return;
    atomic_store(&s->admitting, false);
    atomic_store(&s->closing, true);
    rpc_close(s->rpc);
    worker_close(s->worker); /* has nothing left: its jobs are calls */
    tls_close(s->tls);
    auth_close(s->auth);
    ids_close(s->ids);
    free(s->strings);
    free(s);
}
