#include "server/grpc_log.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum { LINES_A_SECOND = 5 };

/* Peers can make core log as often as they like: a few lines a second are kept. */
static bool allowed(void) {
    static _Atomic int64_t second;
    static _Atomic int lines;
    const int64_t now_s = clock_now_ns() / NS_PER_S;
    if (atomic_exchange(&second, now_s) != now_s) atomic_store(&lines, 0);
    return atomic_fetch_add(&lines, 1) < LINES_A_SECOND;
}

/* Core quotes what a peer sent ("invalid value key=... value=...") where it reads calls, and that
 * may be a token or a prompt. File and line tell which message it is, so of those only the head is
 * kept. Whole are the ones of connections, which carry reasons that operators need and no call's
 * data. */
static bool is_about_connections(const char *file) {
    static const char *const HEADS[] = {"ssl_", "tcp_", "socket_", "chttp2_server", "handshaker"};
    for (size_t i = 0; i < sizeof HEADS / sizeof *HEADS; i++)
        if (strncmp(file, HEADS[i], strlen(HEADS[i])) == 0) return true;
    return false;
}

static void forward(log_level level, const char *text, size_t len, const char *file, int line) {
    if (!allowed()) return;
    char copy[512];
    snprintf(copy, sizeof copy, "%.*s", (int)(len < sizeof copy ? len : sizeof copy - 1), text);
    const char *base = file;
    for (const char *p = file; *p; p++)
        if (*p == '/') base = p + 1;
    if (!is_about_connections(base)) copy[strcspn(copy, ":=\"'{[(")] = '\0';
    log_event(level, "grpc", LOG_STR("text", copy), LOG_STR("file", base), LOG_INT("line", line));
}

#ifdef INFERD_GRPC_BUNDLED

typedef void grpc_core_log_fn(int severity, const char *file, int line, const char *text,
                              size_t text_len);
void grpc_core_log_set(grpc_core_log_fn *fn, int min_severity); /* cmake/grpc/log_sink.cc */

static void on_log(int severity, const char *file, int line, const char *text, size_t len) {
    forward(severity >= 2 ? LOG_WARN : LOG_INFO, text, len, file, line);
}

void grpc_log_to_ours(void) {
    grpc_core_log_set(on_log, 2);
}

#else

#include <grpc/support/log.h>

/* What core calls an error is often one connection's trouble: a warning here. */
static void on_log(gpr_log_func_args *a) {
    forward(a->severity == GPR_LOG_SEVERITY_ERROR ? LOG_WARN : LOG_DEBUG, a->message,
            strlen(a->message), a->file, a->line);
}

void grpc_log_to_ours(void) {
    gpr_set_log_function(on_log);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
}

#endif
