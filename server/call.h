/* One accepted call, from its armed slot to its release: identity, ids, trailers, and the single
 * batch of a unary reply or a refusal. Thread: the rpc thread it belongs to. */
#ifndef INFERD_SERVER_CALL_H
#define INFERD_SERVER_CALL_H

#include "server/refuse.h"
#include "server/rpc.h"

enum { CALL_TRAILERS_MAX = 6, TRACEPARENT_BYTES = 55 };

struct call {
    server *srv;
    rpc_thread *thread;
    rpc_port *port;
    int i_method; /* RPC_GENERIC */
    rpc_tag tag;  /* accepted; then the end of the reply */

    grpc_call *rpc;            /* NULL while armed */
    grpc_call_details details; /* generic calls */
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload; /* owned; NULL: half-closed without a message */
    grpc_slice request;        /* call_read_request */
    int cancelled;             /* gRPC may write it until RECV_CLOSE's tag is out */

    int64_t arrival_ns, deadline_ns;
    identity who;
    char request_id[LIMIT_REQUEST_ID_BYTES + 1]; /* as given in metadata, valid; or empty */
    bool reports_load;                           /* the trailers carry a load report */
    bool bad_request_id;                         /* metadata had one that is not valid */
    char traceparent[TRACEPARENT_BYTES + 1];     /* ours, in the caller's trace; or empty */

    grpc_byte_buffer *reply; /* in flight */
    size_t reply_bytes;
    rpc_item item;                    /* call_watch */
    _Atomic int64_t reply_started_ns; /* 0: not yet; a worker may write it */
    bool cut;                         /* the reply was not taken in time */
    grpc_metadata trailers[CALL_TRAILERS_MAX];
    size_t n_trailers;
    grpc_slice status_text;
};

/* Arms one slot. */
void call_arm(rpc_thread *t, rpc_port *p, int i_method);

/* The request's bytes in one piece (borrowed until release); false: there was no message. */
bool call_read_request(call *c, const void **data, size_t *len);
/* A metadata value, borrowed; false when absent. */
bool call_metadata(const call *c, const char *key, const char **value, size_t *len);

/* From its answer on, the client has slow_reader_s to take it: else the call ends SLOW_CONSUMER.
 * Rpc thread, before a worker gets the call. */
void call_watch(call *c);

/* Answers and releases c: exactly one of these, once. A worker may. */
/* Takes message; status OK. A large one is refused QUEUE_FULL while LIMIT_REPLIES_BYTES wait. */
void call_reply(call *c, grpc_byte_buffer *message);
void call_refuse(call *c, const refusal *r);
void call_refuse_kind(call *c, refuse_kind k);

/* For streams: fills op with SEND_STATUS and the trailers that belong to r (NULL: OK). What op
 * points at lives until call_release. */
void call_status_op(call *c, const refusal *r, grpc_op *op);
/* After every tag has come back. */
void call_release(call *c);
/* Frees what the request's bytes hold, early. */
void call_drop_request(call *c);

grpc_byte_buffer *call_bytes(const void *data, size_t len);
#endif
