#include "server/call.h"

#include <assert.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc_security.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/handoff.h"
#include "base/hash.h"
#include "server/codec_request.h"
#include "server/orca.h"
#include "server/reflection.h"
#include "server/tls.h"

/* A URI in a certificate; a longer one is no name. */
enum { CERTIFICATE_NAME_BYTES = 2048 };

static void on_accepted(void *owner, bool ok);

void call_arm(rpc_thread *t, rpc_port *p, int i_method) {
    call *c = calloc(1, sizeof *c);
    if (!c) return; /* one slot fewer; the others of this method go on */
    c->srv = t->rpc->server;
    c->thread = t;
    c->port = p;
    c->i_method = i_method;
    c->tag = (rpc_tag){on_accepted, c};
    c->request = grpc_empty_slice();
    c->status_text = grpc_empty_slice();
    grpc_metadata_array_init(&c->metadata);
    grpc_call_details_init(&c->details);
    atomic_fetch_add(&t->rpc->n_slots, 1);
    HANDOFF_GIVE(&c->tag);
    const grpc_call_error e = i_method == RPC_GENERIC
                                  ? grpc_server_request_call(p->grpc, &c->rpc, &c->details,
                                                             &c->metadata, t->cq, t->cq, &c->tag)
                                  : grpc_server_request_registered_call(
                                        p->grpc, p->registered[i_method], &c->rpc, &c->deadline,
                                        &c->metadata, &c->payload, t->cq, t->cq, &c->tag);
    assert(e == GRPC_CALL_OK);
    (void)e;
}

static void free_slot(call *c) {
    rpc *r = c->thread->rpc;
    grpc_metadata_array_destroy(&c->metadata);
    grpc_call_details_destroy(&c->details);
    free(c);
    atomic_fetch_sub(&r->n_slots, 1);
}

void call_drop_request(call *c) {
    if (c->payload) grpc_byte_buffer_destroy(c->payload);
    c->payload = NULL;
    grpc_slice_unref(c->request);
    c->request = grpc_empty_slice();
}

void call_release(call *c) {
    call_drop_request(c);
    rpc_item_remove(&c->item);
    if (c->reply) grpc_byte_buffer_destroy(c->reply);
    atomic_fetch_sub(&c->srv->reply_bytes, c->reply_bytes);
    for (size_t i = 0; i < c->n_trailers; i++) grpc_slice_unref(c->trailers[i].value);
    grpc_slice_unref(c->status_text);
    grpc_call_unref(c->rpc);
    atomic_fetch_sub(&c->srv->n_calls, 1);
    free_slot(c);
}

/* --- accepting --- */

bool call_metadata(const call *c, const char *key, const char **value, size_t *len) {
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, key) != 0) continue;
        *value = (const char *)GRPC_SLICE_START_PTR(m->value);
        *len = GRPC_SLICE_LENGTH(m->value);
        return true;
    }
    return false;
}

static bool is_hex(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f'))) return false;
    return true;
}

/* W3C trace context: version-traceid-parentid-flags. Ours keeps the trace and has its own span. */
static void read_traceparent(call *c) {
    const char *s;
    size_t len;
    if (!call_metadata(c, "traceparent", &s, &len) || len != TRACEPARENT_BYTES) return;
    if (s[2] != '-' || s[35] != '-' || s[52] != '-' || memcmp(s, "00", 2) != 0) return;
    if (!is_hex(s + 3, 32) || !is_hex(s + 36, 16) || !is_hex(s + 53, 2)) return;
    uint64_t span = 0;
    while (span == 0) random_bytes(&span, sizeof span);
    snprintf(c->traceparent, sizeof c->traceparent, "00-%.32s-%016llx-%.2s", s + 3,
             (unsigned long long)span, s + 53);
}

static void read_request_id(call *c) {
    const char *s;
    size_t len;
    if (!call_metadata(c, "x-request-id", &s, &len)) return;
    if (!codec_id_valid(s, len)) {
        c->bad_request_id = true;
        return;
    }
    memcpy(c->request_id, s, len);
    c->request_id[len] = '\0';
}

enum { NEVER_S = 50 * 365 * 86400 };
static void read_deadline(call *c) {
    c->arrival_ns = clock_now_ns();
    c->deadline_ns = TIME_NEVER;
    const gpr_timespec d = c->i_method == RPC_GENERIC ? c->details.deadline : c->deadline;
    if (gpr_time_cmp(d, gpr_inf_future(d.clock_type)) == 0) return;
    const gpr_timespec left = gpr_time_sub(d, gpr_now(d.clock_type));
    if (left.tv_sec > NEVER_S) return; /* the largest timeout on the wire overflows nanoseconds */
    c->deadline_ns = c->arrival_ns + left.tv_sec * NS_PER_S + left.tv_nsec;
}

static bool identify_by(call *c, grpc_auth_context *context, const char *property,
                        const char *prefix) {
    grpc_auth_property_iterator at = grpc_auth_context_find_properties_by_name(context, property);
    const grpc_auth_property *p = grpc_auth_property_iterator_next(&at);
    if (!p || p->value_length == 0) return false;
    char name[CERTIFICATE_NAME_BYTES];
    const size_t n = strlen(prefix);
    if (p->value_length > sizeof name - n) return false; /* cut, it could be another's */
    memcpy(name, prefix, n);
    memcpy(name + n, p->value, p->value_length); /* with NULs, if it has any */
    return auth_certificate(c->srv->auth, name, n + p->value_length, &c->who);
}

static bool identify_by_digest(call *c, grpc_auth_context *context) {
    static const char PREFIX[] = "sha256:";
    char name[sizeof PREFIX + 64];
    grpc_auth_property_iterator at =
        grpc_auth_context_find_properties_by_name(context, GRPC_X509_PEM_CERT_PROPERTY_NAME);
    const grpc_auth_property *pem = grpc_auth_property_iterator_next(&at);
    memcpy(name, PREFIX, sizeof PREFIX);
    if (!pem || !tls_certificate_digest(pem->value, pem->value_length, name + sizeof PREFIX - 1))
        return false;
    return auth_certificate(c->srv->auth, name, strlen(name), &c->who);
}

/* mTLS without tokens: the certificate's common name is the tenant; without one its SPIFFE id or
 * other URI, its DNS name, its digest. False: it names nobody. */
static bool identify_by_certificate(call *c) {
    grpc_auth_context *context = grpc_call_auth_context(c->rpc);
    const bool known = identify_by(c, context, GRPC_X509_CN_PROPERTY_NAME, "") ||
                       identify_by(c, context, GRPC_PEER_SPIFFE_ID_PROPERTY_NAME, "") ||
                       identify_by(c, context, GRPC_PEER_URI_PROPERTY_NAME, "uri:") ||
                       identify_by(c, context, GRPC_PEER_DNS_PROPERTY_NAME, "dns:") ||
                       identify_by_digest(c, context);
    grpc_auth_context_release(context);
    return known;
}

/* Default deny: with credentials configured, every method of the main port needs one. */
static bool allowed(call *c) {
    if (c->port->health_only) return true;
    const char *header = NULL;
    size_t len = 0;
    call_metadata(c, "authorization", &header, &len);
    if (auth_check(c->srv->auth, header, len, &c->who)) {
        const bool by_certificate = c->who.id == 0 && c->srv->options.tls_client_ca;
        if (!by_certificate || identify_by_certificate(c)) return true;
    }
    atomic_fetch_add_explicit(&c->srv->metrics.auth_denied, 1, memory_order_relaxed);
    return false;
}

static void on_accepted(void *owner, bool ok) {
    call *c = owner;
    if (!ok) { /* the server is shutting down: the slot comes back unused */
        if (c->payload) grpc_byte_buffer_destroy(c->payload);
        free_slot(c);
        return;
    }
    call_arm(c->thread, c->port, c->i_method); /* re-arm before working */
    atomic_fetch_add(&c->srv->n_calls, 1);
    read_deadline(c);
    read_request_id(c);
    read_traceparent(c);
    if (!allowed(c))
        call_refuse_kind(c, REFUSE_UNAUTHENTICATED);
    else if (c->i_method != RPC_GENERIC)
        RPC_METHODS[c->i_method].handle(c);
    else if (!c->port->health_only && reflection_serves(c->details.method))
        reflection_handle(c);
    else
        call_refuse(c, &(refusal){.kind = REFUSE_UNIMPLEMENTED, .message = "unknown method"});
}

bool call_read_request(call *c, const void **data, size_t *len) {
    if (!c->payload) return false;
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, c->payload)) return false;
    grpc_slice_unref(c->request);
    c->request = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    *data = GRPC_SLICE_START_PTR(c->request);
    *len = GRPC_SLICE_LENGTH(c->request);
    return true;
}

/* --- answering --- */

static void add_trailer(call *c, const char *key, const void *value, size_t len) {
    assert(c->n_trailers < CALL_TRAILERS_MAX);
    c->trailers[c->n_trailers++] =
        (grpc_metadata){.key = grpc_slice_from_static_string(key),
                        .value = grpc_slice_from_copied_buffer(value, len)};
}

static void add_refusal(call *c, const refusal *r) {
    pb_writer w;
    pb_writer_init(&w);
    refuse_details(r, &w);
    if (!w.failed) add_trailer(c, "grpc-status-details-bin", w.data, w.len);
    pb_writer_deinit(&w);
    const int pushback_ms = refuse_pushback_ms(r);
    if (pushback_ms != PUSHBACK_NONE) {
        char text[16];
        const int n = snprintf(text, sizeof text, "%d", pushback_ms);
        add_trailer(c, "grpc-retry-pushback-ms", text, (size_t)n);
    }
}

static void add_load(call *c) {
    pb_writer w;
    pb_writer_init(&w);
    orca_report(c->srv, &w);
    if (!w.failed) add_trailer(c, "endpoint-load-metrics-bin", w.data, w.len);
    pb_writer_deinit(&w);
}

void call_status_op(call *c, const refusal *r, grpc_op *op) {
    static const refusal ok = {.kind = REFUSE_NONE};
    if (!r) r = &ok;
    if (c->request_id[0]) add_trailer(c, "x-request-id", c->request_id, strlen(c->request_id));
    if (c->traceparent[0]) add_trailer(c, "traceparent", c->traceparent, TRACEPARENT_BYTES);
    if (r->kind != REFUSE_NONE) add_refusal(c, r);
    if (c->reports_load) add_load(c);
    c->status_text = grpc_slice_from_copied_string(refuse_message(r));
    *op = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
    op->data.send_status_from_server.status = refuse_code(r);
    op->data.send_status_from_server.status_details = &c->status_text;
    op->data.send_status_from_server.trailing_metadata = c->trailers;
    op->data.send_status_from_server.trailing_metadata_count = c->n_trailers;
}

static void on_sweep(void *owner, int64_t now_ns) {
    call *c = owner;
    const int64_t from_ns = atomic_load(&c->reply_started_ns);
    if (from_ns == 0 || c->cut) return;
    if (now_ns - from_ns <= c->srv->options.slow_reader_s * NS_PER_S) return;
    c->cut = true;
    const refuse_row *row = refuse_get(REFUSE_SLOW_CONSUMER);
    grpc_call_cancel_with_status(c->rpc, row->code, row->message, NULL);
}

void call_watch(call *c) {
    c->item = (rpc_item){.sweep = on_sweep, .owner = c};
    rpc_item_add(c->thread, &c->item);
}

static void on_answered(void *owner, bool ok) {
    (void)ok; /* the peer may be gone: nothing is left to do for it */
    call_release(owner);
}

/* The whole answer in one batch; without a message it goes out as trailers only. */
static void answer(call *c, grpc_byte_buffer *message, const refusal *r) {
    grpc_op ops[4];
    size_t n = 0;
    ops[n++] = (grpc_op){.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                         .data.recv_close_on_server.cancelled = &c->cancelled};
    ops[n++] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    if (message)
        ops[n++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = message};
    call_status_op(c, r, &ops[n++]);
    c->tag = (rpc_tag){on_answered, c};
    c->reply = message;
    atomic_store(&c->reply_started_ns, clock_now_ns());
    /* A worker may be here: the tag can come back, and c go, before start_batch has returned. */
    grpc_call *held = c->rpc;
    grpc_call_ref(held);
    HANDOFF_GIVE(&c->tag);
    const grpc_call_error e = grpc_call_start_batch(held, ops, n, &c->tag, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
    grpc_call_unref(held);
}

void call_reply(call *c, grpc_byte_buffer *message) {
    const size_t n = grpc_byte_buffer_length(message);
    const uint64_t before = atomic_fetch_add(&c->srv->reply_bytes, n);
    c->reply_bytes = n;
    if (n <= LIMIT_OUTBOX_BYTES || before + n <= LIMIT_REPLIES_BYTES) {
        answer(c, message, NULL);
        return;
    }
    grpc_byte_buffer_destroy(message);
    answer(c, NULL,
           &(refusal){.kind = REFUSE_QUEUE_FULL,
                      .message = "too many bytes of replies wait for their clients"});
}
void call_refuse(call *c, const refusal *r) {
    answer(c, NULL, r);
}
void call_refuse_kind(call *c, refuse_kind k) {
    answer(c, NULL, &(refusal){.kind = k});
}

grpc_byte_buffer *call_bytes(const void *data, size_t len) {
    grpc_slice s = grpc_slice_from_copied_buffer(data, len);
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    return b;
}
