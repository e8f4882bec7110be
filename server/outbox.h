/* From the engine thread to the call's rpc thread: each call has an outbox (a ring that one thread
 * writes and one reads), each rpc thread a mailbox (the list of outboxes with news). The engine
 * puts events while it commits a step and then signals each mailbox once (mailbox_signal, from
 * on_step), so 256 streams cost one wake-up a thread, not 256.
 *
 *   engine: outbox_on_event -> ring, mailbox.ready list; mailbox_signal -> an empty batch
 *   rpc:    mailbox_take -> each outbox: outbox_next until it is false; then outbox.ended?
 *
 * A ring cannot overflow: below `reserve` free words the request is paused (the engine leaves it
 * out of steps), and the reserve covers what steps in flight can still add. */
#ifndef INFERD_SERVER_OUTBOX_H
#define INFERD_SERVER_OUTBOX_H

#include <grpc/grpc.h>
#include <pthread.h>

#include "engine/engine.h"
#include "server/auth.h"
#include "server/metrics.h"

typedef struct rpc_tag { /* what a completion queue gives back */
    void (*fn)(void *owner, bool ok);
    void *owner;
} rpc_tag;

struct outbox;

typedef struct mailbox {
    pthread_mutex_t lock; /* guards the rest, and outbox.next, .is_ready, .has_ended */
    struct outbox *ready; /* newest first */
    bool signalled;       /* a wake is on its way */
    rpc_tag wake;         /* set by the rpc thread's owner; comes out of its queue */
} mailbox;
BASE_MUST_USE status mailbox_init(mailbox *m);
void mailbox_deinit(mailbox *m);
/* Engine thread. Wakes the rpc thread if there is news and no wake is on its way. */
void mailbox_signal(mailbox *m);
/* Rpc thread, for every wake. Takes all news, linked by outbox.next_taken, and sets their `ended`.
 */
struct outbox *mailbox_take(mailbox *m);

typedef struct out_top {
    int32_t token;
    float logprob;
} out_top;

/* One event as the rpc thread reads it. */
typedef struct out_event {
    enum { OUT_TOKEN, OUT_FINISHED } kind;
    int choice;
    int32_t token;        /* TOKEN, and FINISHED with STOP_TOKEN */
    finish_reason reason; /* FINISHED */
    float logprob;        /* TOKEN, when asked for */
    int32_t rank;
    int n_top;
    out_top top[LIMIT_TOP_LOGPROBS];
} out_event;

/* Log-probabilities of the prompt: one row a token, written in place. */
typedef struct out_prompt_row {
    int32_t rank;
    float logprob;
    int32_t n_top;
} out_prompt_row;

typedef struct outbox {
    mailbox *box;
    struct outbox *next, *next_taken;
    bool is_ready, has_ended;
    void *owner;    /* the stream */
    grpc_call *rpc; /* borrowed: carries the wake to its queue */
    engine_request *request;
    metrics *metrics;

    uint64_t *ring; /* owned, [n_words], a power of two */
    uint32_t n_words, n_reserve;
    _Atomic uint32_t head, tail; /* free-running; the engine writes head, the rpc thread tail */

    /* Written by the engine thread, read by the rpc thread after it took the news. */
    out_prompt_row *prompt_rows; /* [n_prompt] or NULL, owned by the stream */
    out_top *prompt_tops;        /* [n_prompt * n_top] */
    _Atomic bool started;        /* EVENT_STARTED came: cached_tokens is valid */
    int cached_tokens;
    _Atomic int64_t first_token_ns;
    int64_t last_token_ns[LIMIT_CHOICES];

    bool ended; /* rpc thread: `end` is valid, and the engine has let go */
    engine_event end;
} outbox;

/* request: n_choices, logprobs and n_top decide the ring's size. E_NOMEM. */
BASE_MUST_USE status outbox_init(outbox *o, mailbox *box, engine_request *request, grpc_call *rpc,
                                 metrics *m, void *owner);
void outbox_deinit(outbox *o);

/* engine_request.on_event, ctx: the outbox. Engine thread. */
void outbox_on_event(void *ctx, const engine_event *e);
/* Rpc thread: the next event; false when there is none for now. */
bool outbox_next(outbox *o, out_event *out);
#endif
