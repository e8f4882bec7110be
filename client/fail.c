/* A failed call in words: gRPC status, the google.rpc details, and what to do next. */
#include <inttypes.h>
#include <string.h>

#include "client/json.h"
#include "client/output.h"
#include "client/session.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"

typedef struct details {
    Google__Rpc__Status *status; /* owns the payloads */
    Google__Rpc__BadRequest *bad;
    Google__Rpc__ErrorInfo *info;
    Google__Rpc__RetryInfo *retry;
} details;

static bool type_is(const Google__Protobuf__Any *any, const char *name) {
    const char *slash = any->type_url ? strrchr(any->type_url, '/') : NULL;
    return slash && strcmp(slash + 1, name) == 0;
}

static details unpack_details(const rpc_result *r) {
    details d = {0};
    if (!r->details) return d;
    d.status = google__rpc__status__unpack(NULL, r->details_bytes, r->details);
    for (size_t i = 0; d.status && i < d.status->n_details; i++) {
        const Google__Protobuf__Any *any = d.status->details[i];
        const size_t n = any->value.len;
        const uint8_t *data = any->value.data;
        if (!d.bad && type_is(any, "google.rpc.BadRequest"))
            d.bad = google__rpc__bad_request__unpack(NULL, n, data);
        else if (!d.info && type_is(any, "google.rpc.ErrorInfo"))
            d.info = google__rpc__error_info__unpack(NULL, n, data);
        else if (!d.retry && type_is(any, "google.rpc.RetryInfo"))
            d.retry = google__rpc__retry_info__unpack(NULL, n, data);
    }
    return d;
}

static void free_details(details *d) {
    if (d->bad) google__rpc__bad_request__free_unpacked(d->bad, NULL);
    if (d->info) google__rpc__error_info__free_unpacked(d->info, NULL);
    if (d->retry) google__rpc__retry_info__free_unpacked(d->retry, NULL);
    if (d->status) google__rpc__status__free_unpacked(d->status, NULL);
}

static bool reason_is(const details *d, const char *reason) {
    return d->info && d->info->reason.len == strlen(reason) &&
           memcmp(d->info->reason.data, reason, d->info->reason.len) == 0;
}

/* Seconds after which to come again; negative: none is given. */
static double retry_after_s(const rpc_result *r, const details *d) {
    if (d->retry && d->retry->retry_delay)
        return (double)d->retry->retry_delay->seconds + d->retry->retry_delay->nanos / 1e9;
    return r->pushback_ms >= 0 ? (double)r->pushback_ms / 1000 : -1;
}

static void print_advice(const rpc_result *r, const details *d) {
    const double after_s = retry_after_s(r, d);
    switch (r->code) {
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        if (reason_is(d, "REQUEST_TOO_LARGE"))
            cli_say("ask for fewer tokens (--max-tokens), or serve with a larger KV cache "
                    "(engine.kv_memory_bytes)");
        else if (after_s >= 0)
            cli_say("try again in %.1f s, or let --retries 3 do it", after_s);
        break;
    case GRPC_STATUS_UNAVAILABLE:
        if (reason_is(d, "LOADING"))
            cli_say("it is still loading its model: --wait 60 waits for it");
        else if (after_s >= 0)
            cli_say("try again in %.1f s, or let --retries 3 do it", after_s);
        break;
    case GRPC_STATUS_UNAUTHENTICATED:
        cli_say("give a token: --token-file FILE, or INFERCTL_TOKEN");
        break;
    case GRPC_STATUS_NOT_FOUND:
        if (reason_is(d, "MODEL_NOT_FOUND")) cli_say("inferctl info shows what is served");
        break;
    case GRPC_STATUS_ALREADY_EXISTS:
        cli_say("a request of this id is running: leave --request-id out, or abort the other");
        break;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        cli_say("--timeout gives it longer");
        break;
    default:
        break;
    }
}

static void print_json(const rpc_result *r, const details *d) {
    json_t *e = json_object();
    (void)json_object_set_new(e, "code", json_string(rpc_code_name(r->code)));
    (void)json_object_set_new(e, "message", json_of_text(r->message, strlen(r->message)));
    if (d->info) {
        (void)json_object_set_new(e, "reason",
                                  json_of_text(d->info->reason.data, d->info->reason.len));
        json_t *meta = json_object();
        for (size_t i = 0; i < d->info->n_metadata; i++)
            (void)json_object_set_new(meta, d->info->metadata[i]->key,
                                      json_string(d->info->metadata[i]->value));
        (void)json_object_set_new(e, "metadata", meta);
    }
    if (d->bad) {
        json_t *all = json_of_message(&d->bad->base, false);
        json_t *list = json_object_get(all, "field_violations");
        if (list) (void)json_object_set(e, "field_violations", list);
        json_decref(all);
    }
    if (retry_after_s(r, d) >= 0)
        (void)json_object_set_new(e, "retry_after_s", json_real(retry_after_s(r, d)));
    (void)json_object_set_new(e, "reached", json_boolean(r->reached));
    json_t *out = json_object();
    (void)json_object_set_new(out, "error", e);
    json_print_line(out);
}

int fail_report(const cli *c, const rpc_result *r) {
    (void)fflush(stdout);
    details d = unpack_details(r);
    if (c->json) print_json(r, &d);
    /* UNKNOWN: an address that gRPC makes no channel of. */
    if (!r->reached && (r->code == GRPC_STATUS_UNAVAILABLE || r->code == GRPC_STATUS_UNKNOWN)) {
        cli_say("no server at %s: start one with inferd --model FILE, or name another by --server",
                c->rpc.server);
        cli_say("(%s)", r->message);
        free_details(&d);
        return CLI_UNREACHABLE;
    }
    cli_say("%s: %s", rpc_code_name(r->code), *r->message ? r->message : "(no message)");
    for (size_t i = 0; d.bad && i < d.bad->n_field_violations; i++) {
        const Google__Rpc__BadRequest__FieldViolation *v = d.bad->field_violations[i];
        fputs("  ", stderr);
        output_write_line(stderr, v->field.data, v->field.len);
        fputs(": ", stderr);
        output_write_line(stderr, v->description.data, v->description.len);
        fputc('\n', stderr);
    }
    print_advice(r, &d);
    free_details(&d);
    return !r->reached && r->code == GRPC_STATUS_DEADLINE_EXCEEDED ? CLI_UNREACHABLE : CLI_FAILED;
}
