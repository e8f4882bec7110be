#include "server/watchdog.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

/* The limits are promises to whoever watches from outside, so what comes after the judgement is
 * taken off before: NOTICE_MS until it is judged and the health service's next sweep has told it,
 * and the last words before the exit. */
enum { PERIOD_MS = 100, NOTICE_MS = 250, MEAN_STEPS = 20, LAST_WORDS_MS = 1000, END_STEPS = 4 };

struct watchdog {
    server *server;
    engine *engine;
    int64_t not_ready_ns, exit_ns;
    _Atomic bool stop;
    _Atomic int64_t end_by_ns; /* CLOCK_MONOTONIC; TIME_NEVER: it need not end */
    pthread_t thread;
    bool stalled;
};

static void sleep_ms(int ms) {
    const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * NS_PER_MS};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

/* The rpc threads see the reason at their next sweep and end every stream with it; after that time
 * the process goes, whatever state it is in. */
static void end_process(watchdog *w, refuse_kind why, int code) {
    engine_stats st;
    engine_read_stats(w->engine, &st);
    log_event(LOG_ERROR, why == REFUSE_STALLED ? "engine_stalled" : "device_fault",
              LOG_INT("exit_code", code), LOG_UINT("running", st.running),
              LOG_UINT("waiting", st.waiting), LOG_UINT("steps", st.steps),
              LOG_UINT("kv_blocks_free", st.kv_blocks_free),
              LOG_DBL("heartbeat_age_s", (double)(clock_now_ns() - st.heartbeat_ns) * 1e-9));
    server_fail(w->server, why);
    sleep_ms(LAST_WORDS_MS);
    _exit(code);
}

static void judge(watchdog *w) {
    engine_stats st;
    engine_read_stats(w->engine, &st);
    if (st.device_fault) end_process(w, REFUSE_DEVICE_FAULT, EXIT_DEVICE_FAULT);
    const int64_t age_ns = clock_now_ns() - st.heartbeat_ns;
    const int64_t mean_ns =
        atomic_load_explicit(&server_metrics(w->server)->step_ns_mean, memory_order_relaxed);
    int64_t limit_ns = MEAN_STEPS * mean_ns;
    if (limit_ns > w->exit_ns / 2) limit_ns = w->exit_ns / 2;
    if (limit_ns < w->not_ready_ns) limit_ns = w->not_ready_ns;
    if (age_ns > w->exit_ns || clock_now_ns() > atomic_load(&w->end_by_ns))
        end_process(w, REFUSE_STALLED, EXIT_WATCHDOG);
    const bool stalled = age_ns > limit_ns;
    if (stalled == w->stalled) return;
    w->stalled = stalled;
    server_set_stalled(w->server, stalled);
    log_event(stalled ? LOG_ERROR : LOG_WARN, stalled ? "engine_not_moving" : "engine_moves_again",
              LOG_DBL("heartbeat_age_s", (double)age_ns * 1e-9));
    if (stalled) metrics_error(server_metrics(w->server), "the engine made no step in time");
}

static void *watchdog_main(void *arg) {
    watchdog *w = arg;
    while (!atomic_load(&w->stop)) {
        judge(w);
        sleep_ms(PERIOD_MS);
    }
    return NULL;
}

/* The limit less what follows it, but of a short limit no more than an eighth. */
static int64_t ahead(int limit_s, int ms) {
    const int64_t limit_ns = limit_s * NS_PER_S, eighth_ns = limit_ns / 8;
    return limit_ns - (ms * NS_PER_MS < eighth_ns ? ms * NS_PER_MS : eighth_ns);
}

status watchdog_open(server *s, int not_ready_s, int exit_s, watchdog **out, error *err) {
    served_model m;
    watchdog *w = calloc(1, sizeof *w);
    if (!w || !server_model(s, &m)) {
        free(w);
        return error_set(err, E_STATE, "watchdog: no model, or out of memory");
    }
    w->server = s;
    w->engine = m.engine;
    atomic_init(&w->end_by_ns, TIME_NEVER);
    w->not_ready_ns = ahead(not_ready_s, NOTICE_MS);
    w->exit_ns = ahead(exit_s, LAST_WORDS_MS + NOTICE_MS);
    if (pthread_create(&w->thread, NULL, watchdog_main, w) != 0) {
        free(w);
        return error_set(err, E_NOMEM, "cannot start the watchdog's thread");
    }
    *out = w;
    return OK;
}

void watchdog_hurry(watchdog *w) {
    if (!w) return;
    const int64_t steps_ns =
        END_STEPS *
        atomic_load_explicit(&server_metrics(w->server)->step_ns_mean, memory_order_relaxed);
    atomic_store(&w->end_by_ns, clock_now_ns() + (steps_ns > NS_PER_S ? steps_ns : NS_PER_S));
}

void watchdog_close(watchdog *w) {
    if (!w) return;
    atomic_store(&w->stop, true);
    pthread_join(w->thread, NULL);
    free(w);
}
