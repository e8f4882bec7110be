/* Completion queues and their threads, the ports, and the table of methods. Each call belongs to
 * one queue, and so to one thread, for all its life. */
#ifndef INFERD_SERVER_RPC_H
#define INFERD_SERVER_RPC_H

#include "server/context.h"

typedef struct call call;

/* Something that its thread looks at every RPC_SWEEP_MS: time limits that gRPC core does not keep.
 */
typedef struct rpc_item {
    struct rpc_item *next, **at; /* at: NULL when not listed */
    void (*sweep)(void *owner, int64_t now_ns);
    void *owner;
} rpc_item;

enum { RPC_SWEEP_MS = 100 };

/* After rpc_stop_listening: time for the GOAWAY to arrive, before rpc_close cancels what still
 * comes. No use with a core that cancels at once. */
#ifdef INFERD_GRPC_BUNDLED
enum { RPC_LEAVE_MS = 200 };
#else
enum { RPC_LEAVE_MS = 0 };
#endif

typedef struct rpc_thread {
    struct rpc *rpc;
    grpc_completion_queue *cq;
    pthread_t thread;
    mailbox box;
    rpc_item *items; /* this thread's alone */
    int64_t now_ns;  /* at its last look at the clock: when not busy, RPC_SWEEP_MS ago at most */
} rpc_thread;

void rpc_item_add(rpc_thread *t, rpc_item *i);
void rpc_item_remove(rpc_item *i);

typedef struct rpc_method {
    const char *path;
    void (*handle)(call *c);
    int n_armed;         /* requests kept armed a queue */
    bool on_health_port; /* also served on the health-only port */
} rpc_method;
/* In server/methods.c. */
extern const rpc_method RPC_METHODS[];
extern const int RPC_N_METHODS;

enum { RPC_METHODS_MAX = 16, RPC_GENERIC = -1, RPC_THREADS_MAX = 16 };

typedef struct rpc_port {
    struct rpc *rpc;
    grpc_server *grpc;
    bool health_only;
    void *registered[RPC_METHODS_MAX];
    rpc_tag shut;
    bool shutting; /* main's alone, as is the next */
    int n_goodbyes;
    _Atomic bool is_shut;
} rpc_port;

typedef struct rpc {
    server *server;
    _Atomic int n_slots; /* call structs: armed and accepted */
    int n_threads;
    rpc_thread threads[RPC_THREADS_MAX];
    int n_ports;
    rpc_port ports[2];
} rpc;

/* How many threads there are: what is wanted, for 0 one for two cores, at most 4. */
int rpc_threads_of(int wanted, long n_cores);
/* Binds, starts. s->address gets the bound main address. E_IO. */
BASE_MUST_USE status rpc_open(server *s, rpc **out, error *err);
/* The main port takes no connection any more, peers are told (GOAWAY), its calls go on; the health
 * port stays. Calls that are under way are answered with the bundled core, ended as CANCELLED by
 * the distribution's. Main thread; to be called again and again while the drain lasts. */
void rpc_stop_listening(rpc *r);
/* Stops accepting, cancels what is left, waits for all calls, joins. NULL is legal. */
void rpc_close(rpc *r);
/* Engine thread. */
void rpc_signal(rpc *r);
#endif
