#include "server/refuse.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

static const refuse_row ROWS[REFUSE_KINDS] = {
    [REFUSE_NONE] = {GRPC_STATUS_OK, NULL, "", PUSHBACK_NONE},
    [REFUSE_INVALID] = {GRPC_STATUS_INVALID_ARGUMENT, NULL, "the request is not valid",
                        PUSHBACK_NONE},
    [REFUSE_MODEL_NOT_FOUND] = {GRPC_STATUS_NOT_FOUND, "MODEL_NOT_FOUND",
                                "no such model is served here", PUSHBACK_NONE},
    [REFUSE_SERVICE_NOT_FOUND] = {GRPC_STATUS_NOT_FOUND, NULL, "unknown service", PUSHBACK_NONE},
    [REFUSE_ID_LIVE] = {GRPC_STATUS_ALREADY_EXISTS, "REQUEST_ID_LIVE",
                        "a request with this request_id is live", PUSHBACK_NONE},
    [REFUSE_UNAUTHENTICATED] = {GRPC_STATUS_UNAUTHENTICATED, "UNAUTHENTICATED",
                                "a valid credential is needed", PUSHBACK_NONE},
    [REFUSE_PERMISSION_DENIED] = {GRPC_STATUS_PERMISSION_DENIED, "PERMISSION_DENIED", "not allowed",
                                  PUSHBACK_NONE},
    [REFUSE_QUEUE_FULL] = {GRPC_STATUS_RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full", 1000},
    [REFUSE_QUOTA] = {GRPC_STATUS_RESOURCE_EXHAUSTED, "QUOTA", "the tenant's quota is used up",
                      1000},
    [REFUSE_TOO_LARGE] = {GRPC_STATUS_RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE",
                          "the request needs more KV cache than there is", PUSHBACK_NEVER},
    [REFUSE_LOADING] = {GRPC_STATUS_UNAVAILABLE, "LOADING", "the model is being loaded", 500},
    [REFUSE_DRAINING] = {GRPC_STATUS_UNAVAILABLE, "DRAINING", "the server is shutting down", 200},
    [REFUSE_DEVICE_FAULT] = {GRPC_STATUS_UNAVAILABLE, "DEVICE_FAULT", "the device has failed",
                             2000},
    [REFUSE_STALLED] = {GRPC_STATUS_UNAVAILABLE, "STALLED", "the engine makes no progress", 2000},
    [REFUSE_SLOW_CONSUMER] = {GRPC_STATUS_RESOURCE_EXHAUSTED, "SLOW_CONSUMER",
                              "SLOW_CONSUMER: the stream was not read in time", PUSHBACK_NONE},
    [REFUSE_DEADLINE] = {GRPC_STATUS_DEADLINE_EXCEEDED, "DEADLINE", "the deadline has passed",
                         PUSHBACK_NONE},
    [REFUSE_CANCELLED] = {GRPC_STATUS_CANCELLED, NULL, "cancelled", PUSHBACK_NONE},
    [REFUSE_INTERNAL] = {GRPC_STATUS_INTERNAL, "INTERNAL", "internal error in this request",
                         PUSHBACK_NONE},
    [REFUSE_UNIMPLEMENTED] = {GRPC_STATUS_UNIMPLEMENTED, "UNIMPLEMENTED", "not built",
                              PUSHBACK_NONE},
};

const refuse_row *refuse_get(refuse_kind k) {
    assert(k >= REFUSE_NONE && k < REFUSE_KINDS);
    return &ROWS[k];
}

void violate(violations *v, const char *description, const char *field_fmt, ...) {
    if (v->n == LIMIT_VIOLATIONS) {
        v->n_more++;
        return;
    }
    char field[96];
    va_list ap;
    va_start(ap, field_fmt);
    vsnprintf(field, sizeof field, field_fmt, ap);
    va_end(ap);
    const char *f = arena_strndup(v->arena, field, strlen(field));
    const char *d = arena_strndup(v->arena, description, strlen(description));
    /* Out of the request's memory: the fact is kept, with a text that needs none. */
    v->v[v->n++] = (violation){f ? f : "request", d ? d : "not valid"};
}

void refuse_say(refusal *r, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    utf8_vprint(r->message, sizeof r->message, fmt, args);
    va_end(args);
}

refusal refuse_invalid(const violations *bad) {
    assert(bad->n > 0);
    refusal r = {.kind = REFUSE_INVALID, .bad = bad};
    refuse_say(&r, "%s: %s%s", bad->v[0].field, bad->v[0].description,
               bad->n > 1 ? " (and more: see details)" : "");
    return r;
}

grpc_status_code refuse_code(const refusal *r) {
    return refuse_get(r->kind)->code;
}

const char *refuse_message(const refusal *r) {
    return r->message[0] ? r->message : refuse_get(r->kind)->message;
}

int refuse_pushback_ms(const refusal *r) {
    const int fixed = refuse_get(r->kind)->pushback_ms;
    return fixed < 0 || r->pushback_ms == 0 ? fixed : r->pushback_ms;
}

#define TYPE_PREFIX "type.googleapis.com/google.rpc."

static void put_bad_request(pb_writer *w, const violations *bad) {
    const size_t any = pb_begin(w, 3);
    pb_put_str(w, 1, TYPE_PREFIX "BadRequest");
    const size_t body = pb_begin(w, 2);
    for (int i = 0; i < bad->n; i++) {
        const size_t m = pb_begin(w, 1);
        pb_put_str(w, 1, bad->v[i].field);
        pb_put_str(w, 2, bad->v[i].description);
        pb_end(w, m);
    }
    if (bad->n_more > 0) {
        char text[64];
        snprintf(text, sizeof text, "%d more fields are not valid", bad->n_more);
        const size_t m = pb_begin(w, 1);
        pb_put_str(w, 1, "request");
        pb_put_str(w, 2, text);
        pb_end(w, m);
    }
    pb_end(w, body);
    pb_end(w, any);
}

static void put_error_info(pb_writer *w, const refusal *r, const char *reason) {
    const size_t any = pb_begin(w, 3);
    pb_put_str(w, 1, TYPE_PREFIX "ErrorInfo");
    const size_t body = pb_begin(w, 2);
    pb_put_str(w, 1, reason);
    pb_put_str(w, 2, "inferd");
    if (r->key && r->val) {
        const size_t m = pb_begin(w, 3);
        pb_put_str(w, 1, r->key);
        pb_put_str(w, 2, r->val);
        pb_end(w, m);
    }
    pb_end(w, body);
    pb_end(w, any);
}

static void put_retry_info(pb_writer *w, int delay_ms) {
    const size_t any = pb_begin(w, 3);
    pb_put_str(w, 1, TYPE_PREFIX "RetryInfo");
    const size_t body = pb_begin(w, 2);
    const size_t duration = pb_begin(w, 1);
    pb_put_uint(w, 1, (uint64_t)delay_ms / 1000);
    pb_put_uint(w, 2, (uint64_t)(delay_ms % 1000) * 1000000);
    pb_end(w, duration);
    pb_end(w, body);
    pb_end(w, any);
}

void refuse_details(const refusal *r, pb_writer *w) {
    const refuse_row *row = refuse_get(r->kind);
    pb_put_uint(w, 1, (uint64_t)row->code);
    pb_put_str(w, 2, refuse_message(r));
    if (r->bad && r->bad->n > 0) put_bad_request(w, r->bad);
    if (row->reason) put_error_info(w, r, row->reason);
    const int pushback_ms = refuse_pushback_ms(r);
    if (pushback_ms >= 0) put_retry_info(w, pushback_ms);
}
