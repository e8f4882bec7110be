/* A call is two batches: {headers, request, half-close, status} and {response headers, first
 * message}, the latter followed by one message after another. It is over when the status has come
 * and no message is being read. */
#include "client/rpc.h"

#include <assert.h>
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__has_include)
#if __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h> /* newer cores */
#endif
#endif

#include "base/clock.h"

enum { PEM_BYTES_MAX = 1 << 20, RECEIVE_BYTES_MAX = 64 << 20, METADATA_BYTES_MAX = 64 << 10 };

struct rpc_channel {
    grpc_channel *channel;
    char *authorization; /* "Bearer ...", or NULL */
};

struct rpc_loop {
    grpc_completion_queue *queue;
};

typedef struct call_tag {
    rpc_call *call;
    bool is_status;
} call_tag;

struct rpc_call {
    grpc_call *rpc;
    grpc_channel *channel; /* borrowed */
    rpc_handlers handlers;
    call_tag on_status, on_read;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received;
    grpc_status_code code;
    grpc_slice message;
    bool ended, reading, answered;
};

/* ------------------------------------------------------------------ channels */

void rpc_init(void) {
    /* gRPC's own log on stderr would bury our one clear line. */
    (void)setenv("GRPC_VERBOSITY", "NONE", 0);
    grpc_init();
}

void rpc_deinit(void) {
    grpc_shutdown_blocking();
}

static status read_pem(const char *path, char **out, error *err) {
    *out = NULL;
    if (!path) return OK;
    FILE *f = fopen(path, "rb");
    if (!f) return error_set(err, E_IO, "%s: %s", path, strerror(errno));
    char *text = malloc(PEM_BYTES_MAX + 1);
    const size_t n = text ? fread(text, 1, PEM_BYTES_MAX + 1, f) : 0;
    const bool bad = ferror(f) != 0;
    (void)fclose(f);
    if (!text) return error_set(err, E_NOMEM, "%s", path);
    if (bad || n == 0 || n > PEM_BYTES_MAX || memchr(text, '\0', n)) {
        free(text);
        return error_set(err, E_IO, "%s: not a PEM file", path);
    }
    text[n] = '\0';
    *out = text;
    return OK;
}

static status open_credentials(const rpc_options *o, grpc_channel_credentials **out, error *err) {
    if (!o->tls && !o->ca && !o->cert && !o->key) {
        *out = grpc_insecure_credentials_create();
        return OK;
    }
    if (!o->cert != !o->key)
        return error_set(err, E_INVAL, "--cert and --key belong together: give both");
    char *ca = NULL, *cert = NULL, *key = NULL;
    status s = read_pem(o->ca, &ca, err);
    if (s == OK) s = read_pem(o->cert, &cert, err);
    if (s == OK) s = read_pem(o->key, &key, err);
    if (s == OK) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
        *out = grpc_ssl_credentials_create(ca, cert ? &pair : NULL, NULL, NULL);
        if (!*out) s = error_set(err, E_INVAL, "the TLS files do not make a usable credential");
    }
    free(ca);
    free(cert);
    free(key);
    return s;
}

static grpc_arg int_arg(const char *name, int value) {
    grpc_arg a = {.type = GRPC_ARG_INTEGER, .key = (char *)name, .value.integer = value};
    return a;
}

/* A stock retry policy: what a refusal asks for by grpc-retry-pushback-ms is honoured. */
static void retry_config(int retries, char out[512]) {
    (void)snprintf(out, 512,
                   "{\"methodConfig\":[{\"name\":[{}],\"retryPolicy\":{\"maxAttempts\":%d,"
                   "\"initialBackoff\":\"0.2s\",\"maxBackoff\":\"5s\",\"backoffMultiplier\":2,"
                   "\"retryableStatusCodes\":[\"UNAVAILABLE\",\"RESOURCE_EXHAUSTED\"]}}]}",
                   retries + 1);
}

/* Core would take 443 for a port that is not given. A scheme or an IPv6 address has colons, too:
 * those are core's to judge. */
static status check_target(const char *server, error *err) {
    if (strchr(server, ':')) return OK;
    return error_set(err, E_INVAL, "--server %s: no port; %s:50051 is meant, perhaps", server,
                     server);
}

status rpc_channel_open(const rpc_options *o, rpc_channel **out, error *err) {
    grpc_channel_credentials *credentials = NULL;
    status s = check_target(o->server, err);
    if (s == OK) s = open_credentials(o, &credentials, err);
    if (s != OK) return s;
    rpc_channel *c = calloc(1, sizeof *c);
    if (!c) goto fail_memory;
    if (o->token) {
        const size_t bytes = strlen(o->token) + sizeof "Bearer ";
        c->authorization = malloc(bytes);
        if (!c->authorization) goto fail_token;
        (void)snprintf(c->authorization, bytes, "Bearer %s", o->token);
    }
    char policy[512];
    retry_config(o->retries, policy);
    grpc_arg args[9] = {
        int_arg("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        int_arg("grpc.max_metadata_size", METADATA_BYTES_MAX),
        int_arg("grpc.use_local_subchannel_pool", 1), /* each channel its own connection */
        int_arg("grpc.initial_reconnect_backoff_ms", 100),
        int_arg("grpc.min_reconnect_backoff_ms", 5000), /* an attempt may take this long */
        int_arg("grpc.max_reconnect_backoff_ms", 1000),
        int_arg("grpc.enable_retries", o->retries > 0),
        int_arg("grpc.service_config_disable_resolution", 1),
    };
    size_t n = 8;
    if (o->retries > 0)
        args[n++] = (grpc_arg){
            .type = GRPC_ARG_STRING, .key = (char *)"grpc.service_config", .value.string = policy};
    const grpc_channel_args channel_args = {.num_args = n, .args = args};
    c->channel = grpc_channel_create(o->server, credentials, &channel_args);
    grpc_channel_credentials_release(credentials);
    *out = c;
    return OK;

fail_token:
    free(c);
fail_memory:
    grpc_channel_credentials_release(credentials);
    return error_set(err, E_NOMEM, "channel");
}

void rpc_channel_close(rpc_channel *c) {
    if (!c) return;
    grpc_channel_destroy(c->channel);
    free(c->authorization);
    free(c);
}

/* ------------------------------------------------------------------ loops */

static gpr_timespec monotonic(int64_t ns) {
    if (ns == TIME_NEVER) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    const gpr_timespec t = {.tv_sec = ns / NS_PER_S,
                            .tv_nsec = (int32_t)(ns % NS_PER_S),
                            .clock_type = GPR_CLOCK_MONOTONIC};
    return t;
}

rpc_loop *rpc_loop_open(void) {
    rpc_loop *l = malloc(sizeof *l);
    if (!l) abort();
    l->queue = grpc_completion_queue_create_for_next(NULL);
    return l;
}

void rpc_loop_close(rpc_loop *l) {
    if (!l) return;
    grpc_completion_queue_shutdown(l->queue);
    while (grpc_completion_queue_next(l->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(l->queue);
    free(l);
}

/* ------------------------------------------------------------------ calls */

static void start_batch(rpc_call *c, const grpc_op *ops, size_t n, call_tag *tag) {
    const grpc_call_error e = grpc_call_start_batch(c->rpc, ops, n, tag, NULL);
    assert(e == GRPC_CALL_OK); /* anything else is a bug here; the network reports through events */
    (void)e;
}

static void read_next(rpc_call *c, bool first) {
    grpc_op ops[2] = {{.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA,
                       .data.recv_initial_metadata.recv_initial_metadata = &c->initial}};
    c->reading = true;
    start_batch(c, ops, first ? 2 : 1, &c->on_read);
}

rpc_call *rpc_start(rpc_channel *ch, rpc_loop *l, const char *method, const void *request,
                    size_t request_bytes, int64_t deadline_ns, bool wait_for_ready,
                    rpc_handlers handlers) {
    rpc_call *c = calloc(1, sizeof *c);
    if (!c) abort();
    c->handlers = handlers;
    c->channel = ch->channel;
    c->on_status = (call_tag){c, true};
    c->on_read = (call_tag){c, false};
    grpc_metadata_array_init(&c->initial);
    grpc_metadata_array_init(&c->trailing);
    c->message = grpc_empty_slice();
    const grpc_slice name = grpc_slice_from_copied_string(method);
    c->rpc = grpc_channel_create_call(ch->channel, NULL, GRPC_PROPAGATE_DEFAULTS, l->queue, name,
                                      NULL, monotonic(deadline_ns), NULL);
    grpc_slice_unref(name);

    grpc_slice body = grpc_slice_from_copied_buffer(request, request_bytes);
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&body, 1);
    grpc_metadata authorization = {.key = grpc_slice_from_static_string("authorization")};
    if (ch->authorization) authorization.value = grpc_slice_from_static_string(ch->authorization);
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA,
                       .flags = wait_for_ready
                                    ? (uint32_t)GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                                          GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET
                                    : 0,
                       .data.send_initial_metadata = {.count = ch->authorization ? 1 : 0,
                                                      .metadata = &authorization}},
                      {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message},
                      {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                       .data.recv_status_on_client = {.trailing_metadata = &c->trailing,
                                                      .status = &c->code,
                                                      .status_details = &c->message}}};
    start_batch(c, ops, 4, &c->on_status);
    grpc_byte_buffer_destroy(message);
    grpc_slice_unref(body);
    read_next(c, true);
    return c;
}

void rpc_cancel(rpc_call *c) {
    (void)grpc_call_cancel(c->rpc, NULL);
}

static bool key_is(const grpc_metadata *m, const char *key) {
    return grpc_slice_str_cmp(m->key, key) == 0;
}

static int64_t parse_pushback(grpc_slice value) {
    char text[32];
    const size_t n = GRPC_SLICE_LENGTH(value);
    if (n == 0 || n >= sizeof text) return INT64_MIN;
    memcpy(text, GRPC_SLICE_START_PTR(value), n);
    text[n] = '\0';
    return strtoll(text, NULL, 10);
}

static void finish(rpc_call *c) {
    rpc_result r = {.code = c->code, .pushback_ms = INT64_MIN};
    for (size_t i = 0; i < c->trailing.count; i++) {
        const grpc_metadata *m = &c->trailing.metadata[i];
        if (key_is(m, "grpc-status-details-bin")) {
            r.details = GRPC_SLICE_START_PTR(m->value);
            r.details_bytes = GRPC_SLICE_LENGTH(m->value);
        } else if (key_is(m, "grpc-retry-pushback-ms")) {
            r.pushback_ms = parse_pushback(m->value);
        }
    }
    r.reached = c->answered || c->trailing.count > 0 || c->code == GRPC_STATUS_OK ||
                grpc_channel_check_connectivity_state(c->channel, 0) == GRPC_CHANNEL_READY;
    char *message = grpc_slice_to_c_string(c->message);
    r.message = message;
    c->handlers.on_end(c->handlers.ctx, &r);
    gpr_free(message);
    grpc_metadata_array_destroy(&c->initial);
    grpc_metadata_array_destroy(&c->trailing);
    grpc_slice_unref(c->message);
    grpc_call_unref(c->rpc);
    free(c);
}

static void deliver(rpc_call *c) {
    grpc_byte_buffer_reader reader;
    c->answered = true;
    if (c->handlers.on_message && grpc_byte_buffer_reader_init(&reader, c->received)) {
        grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
        c->handlers.on_message(c->handlers.ctx, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
}

bool rpc_loop_turn(rpc_loop *l, int64_t until_ns) {
    const grpc_event ev = grpc_completion_queue_next(l->queue, monotonic(until_ns), NULL);
    if (ev.type != GRPC_OP_COMPLETE) return false;
    const call_tag *tag = ev.tag;
    rpc_call *c = tag->call;
    if (tag->is_status) {
        c->ended = true;
    } else {
        c->reading = false;
        if (ev.success && c->received) {
            deliver(c);
            read_next(c, false);
        }
    }
    if (c->ended && !c->reading) finish(c);
    return true;
}

const char *rpc_code_name(grpc_status_code code) {
    static const char *const names[] = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};
    const size_t i = (size_t)code;
    return i < sizeof names / sizeof *names ? names[i] : "UNKNOWN";
}
