#include "server/health.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum health_status { SERVING = 1, NOT_SERVING = 2, SERVICE_UNKNOWN = 3 };

static const char *const SERVICES[] = {"", "inferd.v1.Inference", "readiness", "startup",
                                       "liveness"};
enum { N_SERVICES = sizeof SERVICES / sizeof *SERVICES, SERVICE_STARTUP = 3, SERVICE_LIVENESS = 4 };

static int status_of(const server *s, int i_service) {
    if (i_service < 0) return SERVICE_UNKNOWN;
    bool good = server_ready(s);
    if (i_service == SERVICE_STARTUP) good = atomic_load(&s->was_ready);
    if (i_service == SERVICE_LIVENESS) good = server_live(s);
    return good ? SERVING : NOT_SERVING;
}

/* The index of the service asked for; -1: unknown, -2: the request is malformed. */
static int read_service(call *c) {
    const void *data;
    size_t len, name_len = 0;
    const uint8_t *name = NULL;
    pb_reader r;
    pb_field f;
    if (!call_read_request(c, &data, &len)) return -2;
    pb_reader_init(&r, data, len);
    while (pb_next(&r, &f))
        if (f.number == 1 && f.wire == 2) {
            name = f.data;
            name_len = f.len;
        }
    if (r.bad) return -2;
    for (int i = 0; i < N_SERVICES; i++)
        if (strlen(SERVICES[i]) == name_len &&
            (name_len == 0 || memcmp(SERVICES[i], name, name_len) == 0))
            return i;
    return -1;
}

static grpc_byte_buffer *encode(int serving) {
    const uint8_t bytes[] = {1 << 3, (uint8_t)serving}; /* HealthCheckResponse.status */
    return call_bytes(bytes, sizeof bytes);
}

void health_check(call *c) {
    const int i = read_service(c);
    if (i == -2)
        call_refuse_kind(c, REFUSE_INVALID);
    else if (i == -1)
        call_refuse_kind(c, REFUSE_SERVICE_NOT_FOUND);
    else
        call_reply(c, encode(status_of(c->srv, i)));
}

void health_list(call *c) {
    pb_writer w;
    pb_writer_init(&w);
    for (int i = 0; i < N_SERVICES; i++) {
        const size_t entry = pb_begin(&w, 1);
        pb_put_str(&w, 1, SERVICES[i]);
        const size_t value = pb_begin(&w, 2);
        pb_put_uint(&w, 1, (uint64_t)status_of(c->srv, i));
        pb_end(&w, value);
        pb_end(&w, entry);
    }
    if (w.failed)
        call_refuse_kind(c, REFUSE_INTERNAL);
    else
        call_reply(c, call_bytes(w.data, w.len));
    pb_writer_deinit(&w);
}

/* --- Watch: the state now, and each change, until the peer goes or the server closes --- */

typedef struct watch {
    call *c;
    rpc_item item;
    rpc_tag wrote, closed;
    grpc_byte_buffer *message;
    int i_service, sent_status; /* 0: none sent yet */
    int refs;                   /* tags in flight */
    bool writing, gone, status_sent;
} watch;

static void watch_unref(watch *w) {
    if (--w->refs > 0) return;
    rpc_item_remove(&w->item);
    call *c = w->c;
    free(w);
    call_release(c);
}

static void watch_batch(watch *w, grpc_op *ops, size_t n, rpc_tag *tag) {
    w->refs++;
    const grpc_call_error e = grpc_call_start_batch(w->c->rpc, ops, n, tag, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
}

static void watch_pump(watch *w) {
    const server *s = w->c->srv;
    if (w->writing || w->gone || w->status_sent) return;
    grpc_op ops[2];
    size_t n = 0;
    const int serving = status_of(s, w->i_service);
    if (w->sent_status == 0) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    if (serving != w->sent_status) {
        w->message = encode(serving);
        ops[n++] =
            (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = w->message};
        w->sent_status = serving;
    } else if (atomic_load(&s->closing)) { /* streams that never end would block the shutdown */
        call_status_op(w->c, &(refusal){.kind = REFUSE_DRAINING}, &ops[n++]);
        w->status_sent = true;
    }
    if (n == 0) return;
    w->writing = true;
    watch_batch(w, ops, n, &w->wrote);
}

static void on_watch_wrote(void *owner, bool ok) {
    watch *w = owner;
    if (w->message) grpc_byte_buffer_destroy(w->message);
    w->message = NULL;
    w->writing = false;
    if (ok) watch_pump(w);
    watch_unref(w);
}

static void on_watch_closed(void *owner, bool ok) {
    (void)ok;
    watch *w = owner;
    w->gone = true;
    watch_unref(w);
}

static void on_watch_sweep(void *owner, int64_t now_ns) {
    (void)now_ns;
    watch_pump(owner);
}

void health_watch(call *c) {
    const int i = read_service(c);
    watch *w = i == -2 ? NULL : calloc(1, sizeof *w);
    if (!w) {
        call_refuse_kind(c, i == -2 ? REFUSE_INVALID : REFUSE_INTERNAL);
        return;
    }
    w->c = c;
    w->i_service = i;
    w->wrote = (rpc_tag){on_watch_wrote, w};
    w->closed = (rpc_tag){on_watch_closed, w};
    w->item = (rpc_item){.sweep = on_watch_sweep, .owner = w};
    rpc_item_add(c->thread, &w->item);
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                  .data.recv_close_on_server.cancelled = &c->cancelled};
    watch_batch(w, &op, 1, &w->closed);
    watch_pump(w);
}
