#include "client/session.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/output.h"
#include "grpc/health/v1/health.pb-c.h"
#include "inferd/v1/inference.pb-c.h"

enum { POLL_MS = 50 }; /* how late Ctrl-C or a closed pipe may be noticed */

bool session_interrupted(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    const struct timespec now = {0};
    return sigtimedwait(&set, NULL, &now) == SIGINT;
}

typedef struct running {
    const session *s;
    const ProtobufCMessageDescriptor *type;
    message_handler *on_message;
    void *ctx;
    bool ended, garbled, quiet;
    int exit_code;
    grpc_status_code code;
} running;

static void take_message(void *ctx, const uint8_t *data, size_t bytes) {
    running *r = ctx;
    ProtobufCMessage *m = protobuf_c_message_unpack(r->type, NULL, bytes, data);
    if (!m) {
        r->garbled = true;
        return;
    }
    if (r->on_message) r->on_message(r->ctx, m);
    protobuf_c_message_free_unpacked(m, NULL);
}

static void take_end(void *ctx, const rpc_result *result) {
    running *r = ctx;
    r->ended = true;
    r->code = result->code;
    if (result->code == GRPC_STATUS_OK)
        r->exit_code = CLI_OK;
    else if (r->quiet)
        r->exit_code = result->reached ? CLI_FAILED : CLI_UNREACHABLE;
    else
        r->exit_code = fail_report(r->s->c, result);
}

static void run_call(running *r, const char *method, const ProtobufCMessage *request,
                     int64_t deadline_ns, bool wait_for_ready) {
    const size_t bytes = protobuf_c_message_get_packed_size(request);
    uint8_t *packed = malloc(bytes + 1);
    if (!packed) abort();
    (void)protobuf_c_message_pack(request, packed);
    rpc_call *call =
        rpc_start(r->s->channel, r->s->loop, method, packed, bytes, deadline_ns, wait_for_ready,
                  (rpc_handlers){.on_message = take_message, .on_end = take_end, .ctx = r});
    free(packed);
    bool given_up = false, interrupted = false;
    while (!r->ended) {
        (void)rpc_loop_turn(r->s->loop, clock_now_ns() + POLL_MS * NS_PER_MS);
        if (r->ended || given_up) continue;
        interrupted = session_interrupted();
        if (!interrupted && !output_lost()) continue;
        given_up = r->quiet = true;
        rpc_cancel(call);
    }
    if (given_up) r->exit_code = interrupted ? CLI_INTERRUPTED : CLI_FAILED;
    if (r->garbled && r->exit_code == CLI_OK) {
        cli_say("the server's answer is not what this client understands (another version?)");
        r->exit_code = CLI_FAILED;
    }
}

int session_call(session *s, const char *method, const ProtobufCMessage *request,
                 const ProtobufCMessageDescriptor *type, message_handler *on_message, void *ctx) {
    running r = {.s = s, .type = type, .on_message = on_message, .ctx = ctx};
    run_call(&r, method, request, cli_deadline_ns(s->c), false);
    return r.exit_code;
}

typedef struct one_answer {
    const ProtobufCMessageDescriptor *type;
    ProtobufCMessage *copy;
} one_answer;

static void keep_answer(void *ctx, const ProtobufCMessage *m) {
    one_answer *a = ctx;
    if (a->copy) return;
    const size_t bytes = protobuf_c_message_get_packed_size(m);
    uint8_t *packed = malloc(bytes + 1);
    if (!packed) abort();
    (void)protobuf_c_message_pack(m, packed);
    a->copy = protobuf_c_message_unpack(a->type, NULL, bytes, packed);
    free(packed);
}

int session_unary(session *s, const char *method, const ProtobufCMessage *request,
                  const ProtobufCMessageDescriptor *type, ProtobufCMessage **out) {
    one_answer a = {.type = type};
    const int code = session_call(s, method, request, type, keep_answer, &a);
    if (code == CLI_OK && a.copy) {
        *out = a.copy;
        return CLI_OK;
    }
    if (a.copy) protobuf_c_message_free_unpacked(a.copy, NULL);
    if (code == CLI_OK) cli_say("the server answered nothing");
    return code == CLI_OK ? CLI_FAILED : code;
}

/* ------------------------------------------------------------------ --wait */

static void keep_serving(void *ctx, const ProtobufCMessage *m) {
    const Grpc__Health__V1__HealthCheckResponse *h = (const void *)m;
    *(bool *)ctx = h->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
}

static void keep_progress(void *ctx, const ProtobufCMessage *m) {
    *(double *)ctx = ((const Inferd__V1__EngineStatusResponse *)(const void *)m)->load_progress;
}

static void draw_progress(double progress) {
    enum { WIDTH = 30 };
    const int full = (int)(progress * WIDTH);
    fprintf(stderr, "\rloading the model [%.*s%*s] %3.0f %%", full,
            "##############################", WIDTH - full, "", 100 * progress);
}

static int ask_quietly(session *s, const char *method, const ProtobufCMessage *request,
                       const ProtobufCMessageDescriptor *type, message_handler *on_message,
                       void *ctx, int64_t deadline_ns) {
    running r = {.s = s, .type = type, .on_message = on_message, .ctx = ctx, .quiet = true};
    run_call(&r, method, request, deadline_ns, true);
    return r.exit_code;
}

static int wait_until_serving(session *s) {
    const int64_t until = clock_now_ns() + (int64_t)(s->c->wait_s * 1e9);
    const bool draws = isatty(STDERR_FILENO);
    bool serving = false, drawn = false;
    while (!serving && clock_now_ns() < until) {
        Grpc__Health__V1__HealthCheckRequest check = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
        int code = ask_quietly(s, METHOD_HEALTH_CHECK, &check.base,
                               &grpc__health__v1__health_check_response__descriptor, keep_serving,
                               &serving, until);
        if (code == CLI_INTERRUPTED || output_lost()) return code;
        if (serving) break;
        double progress = 0;
        Inferd__V1__EngineStatusRequest ask = INFERD__V1__ENGINE_STATUS_REQUEST__INIT;
        code = ask_quietly(s, METHOD_STATUS, &ask.base,
                           &inferd__v1__engine_status_response__descriptor, keep_progress,
                           &progress, until);
        if (code == CLI_INTERRUPTED) return code;
        if (draws && progress >= 0 && progress <= 1) {
            draw_progress(progress);
            drawn = true;
        }
        const struct timespec pause = {.tv_nsec = 100 * NS_PER_MS};
        (void)nanosleep(&pause, NULL);
    }
    if (drawn) fputs("\r\033[K", stderr);
    if (serving) return -1;
    cli_say("the server at %s is not ready after %g s: see its log, or wait longer",
            s->c->rpc.server, s->c->wait_s);
    return CLI_UNREACHABLE;
}

int session_open(session *s, cli *c) {
    *s = (session){.c = c};
    error err;
    if (rpc_channel_open(&c->rpc, &s->channel, &err) != OK) {
        cli_say("%s", err.text);
        return CLI_USAGE;
    }
    s->loop = rpc_loop_open();
    return c->wait_s > 0 ? wait_until_serving(s) : -1;
}

void session_close(session *s) {
    rpc_loop_close(s->loop);
    rpc_channel_close(s->channel);
}
