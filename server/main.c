/* inferd: the composition root. Only this file sees the configuration. */
#include <grpc/grpc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/streams.h"
#include "config/config.h"
#include "server/admin.h"
#include "server/drain.h"
#include "server/grpc_log.h"
#include "server/load.h"
#include "server/server.h"
#include "server/watchdog.h"

enum { EXIT_BAD_USAGE = 2, EXIT_BAD_PORT = 5 };

extern char **environ;

static int refuse(int code, const char *why) {
    fprintf(stderr, "inferd: %s\n", why);
    return code;
}

static const char *given(const char *s) {
    return s[0] ? s : NULL;
}
static const char *not_off(const char *s) {
    return s[0] && strcmp(s, "off") != 0 ? s : NULL;
}

static server_options server_options_of(const config *c) {
    return (server_options){.listen = c->server.listen,
                            .health_listen = not_off(c->server.health_listen),
                            .rpc_threads = c->server.rpc_threads,
                            .max_streams = c->server.max_streams,
                            .max_message_bytes = c->server.max_message_bytes,
                            .max_connection_age_s = c->server.max_connection_age_s,
                            .keepalive_s = c->server.keepalive_s,
                            .tls_cert = given(c->server.tls.cert),
                            .tls_key = given(c->server.tls.key),
                            .tls_client_ca = given(c->server.tls.client_ca),
                            .tokens_file = given(c->auth.tokens_file),
                            .slow_reader_s = c->limits.slow_reader_s,
                            .max_output_tokens = c->limits.max_output_tokens,
                            .max_choices = c->limits.max_choices,
                            .tenant_kv_percent = c->limits.tenant_kv_percent,
                            .vllm_aliases = c->metrics.vllm_aliases,
                            .queue_max_requests = c->queue.max_requests};
}

static load_options load_options_of(const config *c) {
    static const char *const BACKENDS[] = {"auto", "cpu", "cuda"};
    static const int KV_TYPES[] = {-1, DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8};
    return (load_options){
        .path = c->model.path,
        .name = c->model.name,
        .pin = c->model.sha256,
        .backend = BACKENDS[c->engine.backend],
        .backend_options = {c->engine.device, c->engine.threads, c->engine.deterministic},
        .engine = {.max_sequences = c->engine.max_sequences,
                   .max_step_tokens = c->engine.max_step_tokens,
                   .kv_blocks = c->engine.kv_blocks,
                   .kv_memory_bytes = (size_t)c->engine.kv_memory_bytes,
                   .kv_block_tokens = c->engine.kv_block_tokens,
                   .kv_type = KV_TYPES[c->engine.kv_type],
                   .prefix_cache = c->engine.prefix_cache,
                   .queue_max_requests = c->queue.max_requests,
                   .queue_max_tokens = c->queue.max_tokens},
        .context_length = c->engine.context_length,
        .progress_bar = isatty(STDOUT_FILENO) && c->log.format == CONFIG_LOG_TEXT};
}

/* --- the process --- */

enum { SIGNAL_LOADED = SIGUSR1 };

/* All threads are started with these blocked, so that only main meets them. */
static void prepare_process(sigset_t *signals) {
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGHUP);
    sigaddset(signals, SIGNAL_LOADED);
    pthread_sigmask(SIG_BLOCK, signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files; /* core 1.51 never accepts again after it once ran out of descriptors */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* The next signal, or 0 after a second. */
static int next_signal(const sigset_t *signals) {
    const int n = sigtimedwait(signals, NULL, &(struct timespec){.tv_sec = 1});
    return n > 0 ? n : 0;
}

static bool is_stop(int signal_number) {
    return signal_number == SIGTERM || signal_number == SIGINT;
}

/* True: loaded, and serving. False: *code is the exit code. */
static bool wait_loaded(loader *l, const sigset_t *signals, int *code) {
    status result;
    error err;
    while (!load_done(l, &result, &err, code))
        if (is_stop(next_signal(signals))) _exit(EXIT_SUCCESS); /* nothing to drain yet */
    if (result != OK) refuse(*code, err.text);
    return result == OK;
}

static void serve_until_stopped(server *s, const sigset_t *signals) {
    for (;;) {
        const int n = next_signal(signals);
        if (is_stop(n)) return;
        if (n == SIGHUP) server_reload(s);
        if (n == 0) server_tick(s);
    }
}

static int run(const config *c, const sigset_t *signals) {
    const server_options server_opts = server_options_of(c);
    const load_options load_opts = load_options_of(c);
    server *s = NULL;
    admin *a = NULL;
    loader *l = NULL;
    watchdog *w = NULL;
    error err;
    int code = EXIT_BAD_PORT;

    const status opened = server_open(&server_opts, &s, &err); /* listens: LOADING from here on */
    if (opened != OK)
        return refuse(opened == E_FORMAT || opened == E_NOTFOUND ? EXIT_BAD_USAGE : EXIT_BAD_PORT,
                      err.text);
    if (not_off(c->admin.listen) && admin_open(s, c->admin.listen, &a, &err) != OK) goto fail;
    code = EXIT_FAILURE;
    if (load_open(&load_opts, s, SIGNAL_LOADED, &l, &err) != OK) goto fail;
    if (!wait_loaded(l, signals, &code)) goto done; /* refused: it has said why */
    if (watchdog_open(s, c->watchdog.not_ready_s, c->watchdog.exit_s, &w, &err) != OK) goto fail;
    log_event(LOG_ALWAYS, "ready", LOG_STR("addr", server_address(s)),
              LOG_STR("admin", a ? admin_address(a) : "off"),
              LOG_STR("health", server_health_address(s)), LOG_DBL("up_s", server_uptime_s(s)));

    serve_until_stopped(s, signals);
    drain_run(s, load_engine(l), c->server.drain_delay_s, c->server.drain_s);
    code = EXIT_SUCCESS;
    goto done;
fail:
    refuse(code, err.text);
done:
    watchdog_hurry(w);
    load_stop_engine(l); /* no callback after this; should it hang, the watchdog ends it all */
    watchdog_close(w);
    admin_close(a);
    server_close(s); /* before the engine: ending calls need it */
    load_close(l);
    if (code == EXIT_SUCCESS) log_event(LOG_INFO, "stopped", LOG_INT("exit_code", code));
    return code;
}

int main(int argc, char *argv[]) {
    static config c; /* 20 KB of paths: not on the stack */
    config_action action;
    error err;
    sigset_t signals;

    streams_keep_standard();
    if (config_load(argc, argv, environ, &c, &action, &err) != OK)
        return refuse(EXIT_BAD_USAGE, err.text);
    switch (action) {
    case CONFIG_VERSION:
        printf("inferd %s (gRPC core %s)\n", INFERD_VERSION, grpc_version_string());
        return EXIT_SUCCESS;
    case CONFIG_HELP:
        config_help(stdout);
        return EXIT_SUCCESS;
    case CONFIG_PRINT:
        config_print(&c, stdout);
        return EXIT_SUCCESS;
    case CONFIG_CHECK:
        puts("the configuration is good");
        return EXIT_SUCCESS;
    case CONFIG_SERVE:
        break;
    }
    log_init((log_level)c.log.level, c.log.format == CONFIG_LOG_JSON);
    prepare_process(&signals);
    grpc_log_to_ours();
    log_event(LOG_INFO, "start", LOG_STR("version", INFERD_VERSION),
              LOG_STR("grpc", grpc_version_string()));
#ifndef INFERD_GRPC_BUNDLED
    log_event(LOG_WARN, "grpc_core",
              LOG_STR("text",
                      "the distribution's gRPC core has open denial-of-service holes: keep "
                      "this port to trusted networks (release builds carry their own core)"));
#endif
    return run(&c, &signals);
}
