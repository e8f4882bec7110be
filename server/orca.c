#include "server/orca.h"

#include <assert.h>
#include <stdlib.h>

#include "base/clock.h"

enum { INTERVAL_DEFAULT_S = 30, INTERVAL_MIN_S = 1, INTERVAL_MAX_S = 86400 };

static void put_named(pb_writer *w, const char *name, double v) {
    const size_t entry = pb_begin(w, 8);
    pb_put_str(w, 1, name);
    pb_put_double(w, 2, v);
    pb_end(w, entry);
}

void orca_report(const server *s, pb_writer *w) {
    served_model m;
    pb_put_double(w, 1, atomic_load(&s->rates.cpu));
    if (!server_model(s, &m)) return;
    engine_stats st;
    engine_read_stats(m.engine, &st);
    const double kv =
        st.kv_blocks_total > 0 ? 1.0 - (double)st.kv_blocks_free / (double)st.kv_blocks_total : 0;
    const double places =
        m.max_sequences > 0 ? (double)(st.running + st.waiting) / (double)m.max_sequences : 0;
    pb_put_double(w, 2, kv);
    pb_put_double(w, 6, atomic_load(&s->rates.requests));
    pb_put_double(w, 7, atomic_load(&s->rates.errors));
    put_named(w, "inferd.running", st.running);
    put_named(w, "inferd.waiting", st.waiting);
    put_named(w, "inferd.waiting_tokens", (double)st.waiting_tokens);
    put_named(w, "inferd.tokens_per_s", st.tokens_per_s);
    pb_put_double(w, 9, places > kv ? places : kv);
}

/* --- out of band --- */

typedef struct reporter {
    call *c;
    rpc_item item;
    rpc_tag wrote, closed;
    grpc_byte_buffer *message;
    int64_t interval_ns, next_ns;
    int refs; /* tags in flight */
    bool writing, gone, headers_sent, status_sent;
} reporter;

static void reporter_unref(reporter *r) {
    if (--r->refs > 0) return;
    rpc_item_remove(&r->item);
    call *c = r->c;
    free(r);
    call_release(c);
}

static void start(reporter *r, grpc_op *ops, size_t n, rpc_tag *tag) {
    r->refs++;
    const grpc_call_error e = grpc_call_start_batch(r->c->rpc, ops, n, tag, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
}

static void pump(reporter *r, int64_t now_ns) {
    const server *s = r->c->srv;
    const bool closing = atomic_load(&s->closing);
    if (r->writing || r->gone || r->status_sent || (now_ns < r->next_ns && !closing)) return;
    grpc_op ops[2];
    size_t n = 0;
    if (!r->headers_sent) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    r->headers_sent = true;
    if (closing) {
        call_status_op(r->c, &(refusal){.kind = REFUSE_DRAINING}, &ops[n++]);
        r->status_sent = true;
    } else {
        pb_writer w;
        pb_writer_init(&w);
        orca_report(s, &w);
        r->message = call_bytes(w.data, w.len);
        pb_writer_deinit(&w);
        ops[n++] =
            (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = r->message};
        r->next_ns = now_ns + r->interval_ns;
    }
    r->writing = true;
    start(r, ops, n, &r->wrote);
}

static void on_wrote(void *owner, bool ok) {
    (void)ok; /* the peer is gone: on_closed has heard of it */
    reporter *r = owner;
    if (r->message) grpc_byte_buffer_destroy(r->message);
    r->message = NULL;
    r->writing = false;
    reporter_unref(r);
}

static void on_closed(void *owner, bool ok) {
    (void)ok;
    reporter *r = owner;
    r->gone = true;
    reporter_unref(r);
}

static void on_sweep(void *owner, int64_t now_ns) {
    pump(owner, now_ns);
}

/* Seconds of OrcaLoadReportRequest.report_interval; -1: malformed. */
static int64_t read_interval_s(call *c) {
    const void *data;
    size_t len;
    pb_reader r, d;
    pb_field f, g;
    int64_t seconds = INTERVAL_DEFAULT_S;
    if (!call_read_request(c, &data, &len)) return -1;
    pb_reader_init(&r, data, len);
    while (pb_next(&r, &f)) {
        if (f.number != 1 || f.wire != 2) continue;
        seconds = 0;
        pb_reader_init(&d, f.data, f.len);
        while (pb_next(&d, &g))
            if (g.number == 1 && g.wire == 0)
                seconds = g.value > INTERVAL_MAX_S ? INTERVAL_MAX_S : (int64_t)g.value;
        if (d.bad) return -1;
    }
    return r.bad ? -1 : seconds < INTERVAL_MIN_S ? INTERVAL_MIN_S : seconds;
}

void orca_stream(call *c) {
    const int64_t interval_s = read_interval_s(c);
    reporter *r = interval_s < 0 ? NULL : calloc(1, sizeof *r);
    if (!r) {
        call_refuse_kind(c, interval_s < 0 ? REFUSE_INVALID : REFUSE_INTERNAL);
        return;
    }
    r->c = c;
    r->interval_ns = interval_s * NS_PER_S;
    r->wrote = (rpc_tag){on_wrote, r};
    r->closed = (rpc_tag){on_closed, r};
    r->item = (rpc_item){.sweep = on_sweep, .owner = r};
    rpc_item_add(c->thread, &r->item);
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                  .data.recv_close_on_server.cancelled = &c->cancelled};
    start(r, &op, 1, &r->closed);
    pump(r, clock_now_ns());
}
