/* What the parts of server/ share. Immutable after server_open but for atomics, and `model`, which
 * is written once before `phase` says SERVING (release/acquire). */
#ifndef INFERD_SERVER_CONTEXT_H
#define INFERD_SERVER_CONTEXT_H

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "server/auth.h"
#include "server/ids.h"
#include "server/outbox.h"
#include "server/server.h"
#include "server/tls.h"
#include "server/worker.h"

/* Values of inferd.v1.EngineState. */
typedef enum server_phase {
    SERVER_LOADING = 1,
    SERVER_SERVING = 2,
    SERVER_DRAINING = 3,
    SERVER_FAILED = 4
} server_phase;

struct rpc;

struct server {
    server_options options;
    char address[300], health_address[300]; /* the bound ones; the second may be empty */
    metrics metrics;
    int64_t start_ns;
    served_model model;
    engine_stats baseline; /* counters before the first request: what start-up checks have used */
    char *strings;         /* owned: the model's strings */

    _Atomic int phase; /* server_phase */
    _Atomic bool admitting, stalled, closing;
    _Atomic int fatal; /* refuse_kind; REFUSE_NONE */
    _Atomic double load_progress;
    _Atomic bool was_ready; /* startup: has been ready once */
    _Atomic int n_calls, n_generating;
    _Atomic uint64_t reply_bytes; /* of unary replies in flight */

    struct {                                  /* smoothed over some seconds by server_tick */
        _Atomic double requests, errors, cpu; /* a second, a second, of all cores */
        uint64_t seen_requests, seen_errors;  /* main's alone, as are the next two */
        int64_t seen_ns;
        double seen_cpu_s;
    } rates;

    id_table *ids;
    auth *auth;
    tls *tls;
    worker *worker;
    struct rpc *rpc;
};

/* What it is now: FAILED also while it is stalled. */
server_phase server_state(const server *s);
/* REFUSE_NONE when a call that needs the model may go on. generate: also needs admission. */
refuse_kind server_gate(const server *s, bool generate);
/* Milliseconds after which a refused call has a chance (server/backlog.h), with jitter. */
int server_pushback_ms(const server *s);
/* Others wait, and what they and then a newcomer of max_tokens are expected to take is longer than
 * its deadline. An estimate from what outputs, steps and the rate were of late. */
bool server_outlasts(const server *s, int64_t deadline_ns, int64_t now_ns, uint64_t max_tokens);
/* Counters since serving began. */
void server_read_stats(const server *s, engine_stats *out);
double server_last_step_age_s(const server *s);
#endif
