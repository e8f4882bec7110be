/* gRPC as inferctl needs it: channels, and calls that send one message and receive any number. A
 * loop is one completion queue, driven by one thread; a call's callbacks run inside
 * rpc_loop_turn of that thread. Channels may be shared by threads, loops and calls may not.
 * Call rpc_init before anything else here. */
#ifndef INFERD_CLIENT_RPC_H
#define INFERD_CLIENT_RPC_H

#include <grpc/grpc.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct rpc_channel rpc_channel;
typedef struct rpc_loop rpc_loop;
typedef struct rpc_call rpc_call;

typedef struct rpc_options {
    const char *server; /* host:port, [v6]:port, unix:PATH */
    bool tls;
    const char *ca, *cert, *key; /* PEM files, NULL: the system's authorities, no own certificate */
    const char *token;           /* NULL: none; sent as `authorization: Bearer TOKEN` */
    int retries; /* 0..4: of refusals that a server asks to repeat, by gRPC itself */
} rpc_options;

/* How a call ended. Everything is borrowed for on_end. */
typedef struct rpc_result {
    grpc_status_code code;
    const char *message;    /* NUL-terminated */
    const uint8_t *details; /* grpc-status-details-bin: a google.rpc.Status, or NULL */
    size_t details_bytes;
    int64_t pushback_ms; /* grpc-retry-pushback-ms; INT64_MIN: none came */
    bool reached;        /* false: no server answered at all */
} rpc_result;

typedef struct rpc_handlers {
    void (*on_message)(void *ctx, const uint8_t *data, size_t bytes); /* NULL: dropped */
    void (*on_end)(void *ctx, const rpc_result *r);                   /* exactly once, last */
    void *ctx;
} rpc_handlers;

void rpc_init(void);
void rpc_deinit(void); /* after every channel and loop is closed */

/* Connects when the first call needs it. E_IO: a PEM file cannot be read; E_INVAL: does not fit
 * together, or a server without a port. */
BASE_MUST_USE status rpc_channel_open(const rpc_options *o, rpc_channel **out, error *err);
/* After its calls have ended. NULL is legal. */
void rpc_channel_close(rpc_channel *c);

rpc_loop *rpc_loop_open(void);
void rpc_loop_close(rpc_loop *l); /* after its calls have ended; NULL is legal */
/* Runs callbacks of at most one event; false when until_ns (CLOCK_MONOTONIC) came first. */
bool rpc_loop_turn(rpc_loop *l, int64_t until_ns);

/* Starts a call of method ("/inferd.v1.Inference/Generate") with a request that is copied.
 * deadline_ns: CLOCK_MONOTONIC or TIME_NEVER. wait_for_ready: keep trying to connect until the
 * deadline. The call frees itself after on_end. */
rpc_call *rpc_start(rpc_channel *c, rpc_loop *l, const char *method, const void *request,
                    size_t request_bytes, int64_t deadline_ns, bool wait_for_ready,
                    rpc_handlers handlers);
/* Ends it with CANCELLED, through on_end. Only before on_end. */
void rpc_cancel(rpc_call *call);

/* "INVALID_ARGUMENT". */
const char *rpc_code_name(grpc_status_code code);
#endif
