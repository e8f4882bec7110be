/* A client on gRPC core for tests: blocking calls, one completion queue each, so that threads need
 * nothing of each other. */
#ifndef INFERD_TESTS_SERVER_LOOPBACK_H
#define INFERD_TESTS_SERVER_LOOPBACK_H

#include <assert.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#if defined(__has_include) && __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#include <string.h>

#include "inferd/v1/inference.pb-c.h"

static grpc_channel *loopback_channel(const char *addr) {
    /* A fixed, small window: what is not read stays with the server. */
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = (char *)"grpc.http2.bdp_probe", .value.integer = 0},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)"grpc.http2.lookahead_bytes",
         .value.integer = 16384},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)"grpc.use_local_subchannel_pool",
         .value.integer = 1}};
    const grpc_channel_args list = {sizeof args / sizeof *args, args};
    grpc_channel_credentials *creds = grpc_insecure_credentials_create();
    grpc_channel *ch = grpc_channel_create(addr, creds, &list);
    grpc_channel_credentials_release(creds);
    return ch;
}

typedef struct loopback_call {
    grpc_completion_queue *cq;
    grpc_call *call;
    grpc_metadata_array headers, trailers;
    grpc_status_code code;
    grpc_slice details;
    grpc_byte_buffer *request, *received;
    bool status_in, headers_in;
} loopback_call;

enum { TAG_SEND = 1, TAG_HEADERS, TAG_STATUS, TAG_READ };

static void loopback_batch(loopback_call *c, grpc_op *ops, size_t n, intptr_t tag) {
    const grpc_call_error e = grpc_call_start_batch(c->call, ops, n, (void *)tag, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
}

/* The batches of a call that sends one message: all of `send`, `headers`, `status`. */
typedef struct loopback_ops {
    grpc_op send[3], headers, status;
} loopback_ops;

static loopback_ops loopback_ops_of(grpc_byte_buffer *request, grpc_metadata_array *headers,
                                    grpc_metadata_array *trailers, grpc_status_code *code,
                                    grpc_slice *details) {
    return (loopback_ops){
        .send = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                 {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = request},
                 {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}},
        .headers = {.op = GRPC_OP_RECV_INITIAL_METADATA,
                    .data.recv_initial_metadata.recv_initial_metadata = headers},
        .status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                   .data.recv_status_on_client = {
                       .trailing_metadata = trailers, .status = code, .status_details = details}}};
}

/* key, value: one piece of metadata, or NULL. timeout_ms 0: none. */
static void loopback_start(loopback_call *c, grpc_channel *ch, const char *method, const void *data,
                           size_t len, const char *key, const char *value, int timeout_ms) {
    memset(c, 0, sizeof *c);
    c->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_metadata_array_init(&c->headers);
    grpc_metadata_array_init(&c->trailers);
    const gpr_timespec until = timeout_ms > 0
                                   ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                                  gpr_time_from_millis(timeout_ms, GPR_TIMESPAN))
                                   : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    c->call = grpc_channel_create_call(ch, NULL, 0, c->cq, grpc_slice_from_static_string(method),
                                       NULL, until, NULL);
    grpc_slice s = grpc_slice_from_copied_buffer(data, len);
    c->request = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    grpc_metadata m = {0};
    loopback_ops ops =
        loopback_ops_of(c->request, &c->headers, &c->trailers, &c->code, &c->details);
    if (key) {
        m.key = grpc_slice_from_static_string(key);
        m.value = grpc_slice_from_static_string(value);
        ops.send[0].data.send_initial_metadata.count = 1;
        ops.send[0].data.send_initial_metadata.metadata = &m;
    }
    loopback_batch(c, ops.send, 3, TAG_SEND);
    loopback_batch(c, &ops.headers, 1, TAG_HEADERS);
    loopback_batch(c, &ops.status, 1, TAG_STATUS);
}

/* Waits for a tag; others that come meanwhile are noted. */
static void loopback_wait(loopback_call *c, intptr_t want) {
    for (;;) {
        if (want == TAG_STATUS && c->status_in) return;
        const grpc_event ev =
            grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        assert(ev.type == GRPC_OP_COMPLETE);
        const intptr_t tag = (intptr_t)ev.tag;
        if (tag == TAG_STATUS) c->status_in = true;
        if (tag == TAG_HEADERS) c->headers_in = true;
        if (tag == want) return;
    }
}

/* The next message, unpacked; NULL at the end. Free with protobuf_c_message_free_unpacked. */
static inline void *loopback_read(loopback_call *c, const ProtobufCMessageDescriptor *d) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &c->received;
    loopback_batch(c, &op, 1, TAG_READ);
    loopback_wait(c, TAG_READ);
    if (!c->received) return NULL;
    grpc_byte_buffer_reader reader;
    const int good = grpc_byte_buffer_reader_init(&reader, c->received);
    assert(good);
    (void)good;
    grpc_slice s = grpc_byte_buffer_reader_readall(&reader);
    void *m = protobuf_c_message_unpack(d, NULL, GRPC_SLICE_LENGTH(s), GRPC_SLICE_START_PTR(s));
    assert(m);
    grpc_slice_unref(s);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
    return m;
}

/* Waits for the status; then the code, trailers and details are valid until loopback_end. */
static inline grpc_status_code loopback_status(loopback_call *c) {
    loopback_wait(c, TAG_STATUS);
    return c->code;
}

static inline bool loopback_trailer(const loopback_call *c, const char *key, char *out,
                                    size_t bytes) {
    for (size_t i = 0; i < c->trailers.count; i++) {
        const grpc_metadata *m = &c->trailers.metadata[i];
        if (grpc_slice_str_cmp(m->key, key) != 0) continue;
        size_t n = GRPC_SLICE_LENGTH(m->value);
        if (n >= bytes) n = bytes - 1;
        memcpy(out, GRPC_SLICE_START_PTR(m->value), n);
        out[n] = '\0';
        return true;
    }
    return false;
}

/* After loopback_status. */
static inline void loopback_end(loopback_call *c) {
    grpc_call_unref(c->call);
    grpc_completion_queue_shutdown(c->cq);
    /* The headers' tag may still be out, and core writes where it was told to until it is back. */
    while (grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        continue;
    grpc_completion_queue_destroy(c->cq);
    grpc_byte_buffer_destroy(c->request);
    grpc_slice_unref(c->details);
    grpc_metadata_array_destroy(&c->headers);
    grpc_metadata_array_destroy(&c->trailers);
}
#endif
