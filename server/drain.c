#include "server/drain.h"

#include <signal.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/rpc.h"

/* The port must go though streams still run: a balancer that counts connections (nginx least_conn)
 * would give every new call to the one that refuses at once. It stays for NOTICE_MS after readiness
 * fell: callers who watch the health service (swept every RPC_SWEEP_MS) have left by then, and the
 * distribution's core ends as CANCELLED, which no retry policy repeats, what arrives on a port that
 * is shut. The bundled one lets us answer for RPC_LEAVE_MS more. */
enum { TICK_MS = 20, HURRY_S = 2, LAST_WORDS_S = 2, NOTICE_MS = 250 };

/* Waits a tick; true: another SIGTERM or SIGINT came. */
static bool tick(void) {
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    const struct timespec t = {.tv_nsec = TICK_MS * NS_PER_MS};
    return sigtimedwait(&stop, NULL, &t) > 0;
}

static int64_t sooner(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t later(int64_t a, int64_t b) {
    return a < b ? b : a;
}

void drain_run(server *s, engine *e, int drain_delay_s, int drain_s) {
    const int64_t start = clock_now_ns();
    int64_t admit_until = start + drain_delay_s * NS_PER_S;
    int64_t run_until = start + drain_s * NS_PER_S;
    log_event(LOG_INFO, "drain", LOG_INT("delay_s", drain_delay_s), LOG_INT("limit_s", drain_s),
              LOG_INT("streams", server_n_generating(s)));
    server_begin_drain(s);
    const int64_t told = server_n_calls(s) > 0 ? start + NOTICE_MS * NS_PER_MS : start;
    for (;;) {
        const int64_t now = clock_now_ns();
        const int64_t shut = later(admit_until, told);
        if (now >= admit_until) server_stop_admission(s);
        if (now >= shut) server_stop_listening(s);
        const bool left = now >= shut + RPC_LEAVE_MS * NS_PER_MS;
        if (now >= run_until || (left && server_n_generating(s) == 0)) break;
        if (tick()) {
            log_event(LOG_INFO, "drain_hurry", LOG_INT("limit_s", HURRY_S));
            admit_until = now;
            run_until = sooner(run_until, now + HURRY_S * NS_PER_S);
        }
    }
    const int cut = server_n_generating(s);
    engine_stop_all(e);
    const int64_t words_until = clock_now_ns() + LAST_WORDS_S * NS_PER_S;
    while (server_n_generating(s) > 0 && clock_now_ns() < words_until) tick();
    log_event(LOG_INFO, "drained", LOG_INT("cut", cut),
              LOG_DBL("seconds", (double)(clock_now_ns() - start) * 1e-9));
}
