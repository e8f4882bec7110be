#include "server/rpc.h"

#include <assert.h>
#include <grpc/grpc_security.h>
#include <limits.h>
#if defined(__has_include) && __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/handoff.h"
#include "server/call.h"
#include "server/stream.h"

#ifdef INFERD_GRPC_BUNDLED
void grpc_core_server_retire(grpc_server *server); /* cmake/grpc/retire.cc */
#endif

void rpc_item_add(rpc_thread *t, rpc_item *i) {
    i->next = t->items;
    i->at = &t->items;
    if (i->next) i->next->at = &i->next;
    t->items = i;
}

void rpc_item_remove(rpc_item *i) {
    if (!i->at) return;
    *i->at = i->next;
    if (i->next) i->next->at = i->at;
    i->at = NULL;
}

static void sweep(rpc_thread *t) {
    for (rpc_item *i = t->items, *next; i; i = next) {
        next = i->next; /* a sweep may remove its own item, and only that */
        i->sweep(i->owner, t->now_ns);
    }
}

/* The clock is read when a wait has timed out, and now and then under load: not for every event. */
enum { EVENTS_A_LOOK = 16 };

static void *rpc_main(void *arg) {
    rpc_thread *t = arg;
    int64_t sweep_ns = 0; /* when the next one is due */
    gpr_timespec until = {
        .clock_type = GPR_CLOCK_MONOTONIC}; /* the same for core, whose clocks need not be ours */
    for (unsigned n = 1;; n++) {
        const grpc_event ev = grpc_completion_queue_next(t->cq, until, NULL);
        if (ev.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        if (ev.type == GRPC_OP_COMPLETE) {
            const rpc_tag *tag = ev.tag;
            HANDOFF_TAKE(ev.tag);
            tag->fn(tag->owner, ev.success != 0);
            if (n % EVENTS_A_LOOK != 0) continue;
        }
        t->now_ns = clock_now_ns();
        if (t->now_ns < sweep_ns && ev.type == GRPC_OP_COMPLETE) continue;
        sweep(t);
        sweep_ns = t->now_ns + RPC_SWEEP_MS * NS_PER_MS;
        until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                             gpr_time_from_millis(RPC_SWEEP_MS, GPR_TIMESPAN));
    }
}

static void on_wake(void *owner, bool ok) {
    (void)ok;
    rpc_thread *t = owner;
    t->now_ns = clock_now_ns();
    for (outbox *o = mailbox_take(&t->box), *next; o; o = next) {
        next = o->next_taken; /* the stream may be gone after this */
        stream_on_news(o->owner);
    }
}

void rpc_signal(rpc *r) {
    for (int i = 0; i < r->n_threads; i++) mailbox_signal(&r->threads[i].box);
}

/* --- start --- */

static int clamp_ms(int seconds) {
    return seconds > INT32_MAX / 1000 ? INT32_MAX : seconds * 1000;
}

enum { ARGS_MAX = 24 };
typedef struct arg_list {
    grpc_arg arg[ARGS_MAX];
    size_t n;
} arg_list;

static void arg_int(arg_list *l, const char *key, int value) {
    assert(l->n < ARGS_MAX);
    /* gRPC takes keys as char * for its C++ callers and does not write to them. */
    l->arg[l->n++] =
        (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

enum { DESCRIPTORS_KEPT = 256, CONNECTIONS_MAX = 65536, KEEPALIVE_TIMEOUT_MS = 10000 };

/* Excess connections are closed at once by a current core; 1.51 knows no such limit, and never
 * accepts again after it ran out of descriptors once. */
static int connections_max(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur < 2 * DESCRIPTORS_KEPT) return 1024;
    const rlim_t n = files.rlim_cur - DESCRIPTORS_KEPT;
    return n > CONNECTIONS_MAX ? CONNECTIONS_MAX : (int)n;
}

/* Each value has its measurement or incident behind it; unknown keys are ignored by older cores. */
static void fill_args(const server_options *o, arg_list *l) {
    const int bytes = o->max_message_bytes > INT32_MAX ? INT32_MAX : (int)o->max_message_bytes;
    l->n = 0;
    arg_int(l, "grpc.so_reuseport", 0); /* else a second server takes the same port silently */
    arg_int(l, "grpc.max_concurrent_streams", o->max_streams);
    arg_int(l, "grpc.http2.max_deallocating_streams", o->max_streams);
    arg_int(l, "grpc.max_receive_message_length", bytes);
    arg_int(l, "grpc.max_send_message_length", -1);
    arg_int(l, "grpc.max_metadata_size", (int)LIMIT_METADATA_BYTES);
    arg_int(l, "grpc.absolute_max_metadata_size", (int)LIMIT_METADATA_BYTES);
    arg_int(l, "grpc.compression_enabled_algorithms_bitset", 1); /* identity: no gzip bombs */
    arg_int(l, "grpc.server_handshake_timeout_ms", 10000);
    arg_int(l, "grpc.max_allowed_incoming_connections", connections_max());
    arg_int(l, "grpc.http2.min_ping_interval_without_data_ms", 10000);
    arg_int(l, "grpc.http2.max_pings_without_data", 0);
    if (o->keepalive_s > 0) {
        arg_int(l, "grpc.keepalive_time_ms", clamp_ms(o->keepalive_s));
        arg_int(l, "grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS);
        arg_int(l, "grpc.keepalive_permit_without_calls", 1);
    }
    if (o->max_connection_age_s > 0) {
        arg_int(l, "grpc.max_connection_age_ms", clamp_ms(o->max_connection_age_s));
        arg_int(l, "grpc.max_connection_age_grace_ms", INT_MAX); /* its calls finish */
    }
}

/* host:0 becomes host:bound; other addresses stay as they are. */
static void bound_address(const char *addr, int port, char *out, size_t bytes) {
    const char *colon = strrchr(addr, ':');
    if (strncmp(addr, "unix:", 5) == 0 || !colon)
        snprintf(out, bytes, "%s", addr);
    else
        snprintf(out, bytes, "%.*s:%d", (int)(colon - addr), addr, port);
}

static void on_shut(void *owner, bool ok) {
    (void)ok;
    rpc_port *p = owner;
    atomic_store(&p->is_shut, true);
}

static status open_port(rpc *r, const char *addr, bool health_only, tls *t, char *bound,
                        size_t bound_bytes, error *err) {
    arg_list list;
    fill_args(&r->server->options, &list);
    const grpc_channel_args args = {list.n, list.arg};
    rpc_port *p = &r->ports[r->n_ports];
    *p = (rpc_port){.rpc = r, .health_only = health_only};
    p->shut = (rpc_tag){on_shut, p};
    p->grpc = grpc_server_create(&args, NULL);
    for (int i = 0; i < r->n_threads; i++)
        grpc_server_register_completion_queue(p->grpc, r->threads[i].cq, NULL);
    for (int i = 0; i < RPC_N_METHODS; i++)
        if (!health_only || RPC_METHODS[i].on_health_port)
            p->registered[i] = grpc_server_register_method(
                p->grpc, RPC_METHODS[i].path, NULL, GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    grpc_server_credentials *creds =
        t ? tls_credentials(t) : grpc_insecure_server_credentials_create();
    const int port = grpc_server_add_http2_port(p->grpc, addr, creds);
    grpc_server_credentials_release(creds);
    if (port == 0) {
        r->n_ports++; /* rpc_close takes it down */
        return error_set(err, E_IO, "cannot listen on %s (in use, or not an address of this host)",
                         addr);
    }
    bound_address(addr, port, bound, bound_bytes);
    r->n_ports++;
    return OK;
}

static void start_port(rpc *r, rpc_port *p) {
    grpc_server_start(p->grpc);
    for (int t = 0; t < r->n_threads; t++) {
        /* Without an armed generic call an unknown method would hang until the client's deadline.
         */
        for (int k = 0; k < 2; k++) call_arm(&r->threads[t], p, RPC_GENERIC);
        for (int i = 0; i < RPC_N_METHODS; i++)
            for (int k = 0; p->registered[i] && k < RPC_METHODS[i].n_armed; k++)
                call_arm(&r->threads[t], p, i);
    }
}

/* A message costs 7 us (tests/server/bench_messages.c), so one thread goes far; and with another
 * one core wakes it for every event, to hand the polling on. */
int rpc_threads_of(int wanted, long n_cores) {
    assert(wanted >= 0 && wanted <= RPC_THREADS_MAX); /* the configuration's range */
    if (wanted > 0) return wanted;
    const long n = n_cores / 2; /* -1, unknown: one */
    return n < 1 ? 1 : n > 4 ? 4 : (int)n;
}

status rpc_open(server *s, rpc **out, error *err) {
    const server_options *o = &s->options;
    assert(RPC_N_METHODS <= RPC_METHODS_MAX);
    rpc *r = calloc(1, sizeof *r);
    if (!r) return error_set(err, E_NOMEM, "rpc: out of memory");
    grpc_init();
    r->server = s;
    s->rpc = r;
    const int n = rpc_threads_of(o->rpc_threads, sysconf(_SC_NPROCESSORS_ONLN));
    status e = OK;
    for (int i = 0; i < n && e == OK; i++) {
        rpc_thread *t = &r->threads[i];
        e = mailbox_init(&t->box);
        if (e != OK) break;
        t->rpc = r;
        t->box.wake = (rpc_tag){on_wake, t};
        t->cq = grpc_completion_queue_create_for_next(NULL);
        if (pthread_create(&t->thread, NULL, rpc_main, t) != 0) {
            grpc_completion_queue_shutdown(t->cq);
            grpc_completion_queue_destroy(t->cq);
            mailbox_deinit(&t->box);
            e = E_NOMEM;
            break;
        }
        r->n_threads++;
    }
    if (e != OK) {
        error_set(err, e, "cannot start an rpc thread");
    } else {
        e = open_port(r, o->listen, false, s->tls, s->address, sizeof s->address, err);
        if (e == OK && o->health_listen)
            e = open_port(r, o->health_listen, true, NULL, s->health_address,
                          sizeof s->health_address, err);
    }
    if (e != OK) {
        rpc_close(r);
        s->rpc = NULL;
        return e;
    }
    for (int i = 0; i < r->n_ports; i++) start_port(r, &r->ports[i]);
    *out = r;
    return OK;
}

/* --- stop --- */

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * NS_PER_MS},
              NULL);
}

static bool all_shut(rpc *r) {
    bool shut = atomic_load(&r->n_slots) == 0;
    for (int i = 0; i < r->n_ports; i++) shut = shut && atomic_load(&r->ports[i].is_shut);
    return shut;
}

static void shut_port(rpc_port *p) {
    if (p->shutting) return;
    p->shutting = true;
    grpc_server_shutdown_and_notify(p->grpc, p->rpc->threads[0].cq, &p->shut);
}

/* Shutting a port makes core end as CANCELLED, which no retry policy repeats, the calls that reach
 * it before their client has read the GOAWAY (FilterStackCall::ExternalUnref, called for each by
 * Server::CallData::StartNewRpc). The bundled core can be made to say goodbye first, and we go on
 * answering; a second time, for those whose handshake had just ended. */
static void retire_port(rpc_port *p) {
#ifdef INFERD_GRPC_BUNDLED
    enum { GOODBYES = 2 };
    if (p->shutting || p->n_goodbyes == GOODBYES) return;
    p->n_goodbyes++;
    grpc_core_server_retire(p->grpc);
#else
    shut_port(p);
#endif
}

void rpc_stop_listening(rpc *r) {
    for (int i = 0; i < r->n_ports; i++)
        if (!r->ports[i].health_only) retire_port(&r->ports[i]);
}

/* The shutdown tag may come while calls still live, and shutting a queue then aborts at the next
 * batch: so the queues go only when the tags have come and no call or armed slot is left. */
void rpc_close(rpc *r) {
    if (!r) return;
    for (int i = 0; i < r->n_ports; i++) shut_port(&r->ports[i]);
    for (int waited_ms = 0; r->n_threads > 0 && !all_shut(r); waited_ms += 2) {
        /* Streams were given their end before; what a peer does not take in time is cut. */
        if (waited_ms % 200 == 198)
            for (int i = 0; i < r->n_ports; i++) grpc_server_cancel_all_calls(r->ports[i].grpc);
        sleep_ms(2);
    }
    for (int i = 0; i < r->n_threads; i++) grpc_completion_queue_shutdown(r->threads[i].cq);
    for (int i = 0; i < r->n_threads; i++) pthread_join(r->threads[i].thread, NULL);
    for (int i = 0; i < r->n_ports; i++) grpc_server_destroy(r->ports[i].grpc);
    for (int i = 0; i < r->n_threads; i++) {
        grpc_completion_queue_destroy(r->threads[i].cq);
        mailbox_deinit(&r->threads[i].box);
    }
    free(r);
    grpc_shutdown();
}
