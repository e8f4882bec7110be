/* The way in: a bounded queue from any thread to the engine, and the engine's bed. Its lock is held
 * for a list operation only. */
#ifndef INFERD_ENGINE_SUBMIT_H
#define INFERD_ENGINE_SUBMIT_H

#include <pthread.h>

#include "engine/engine.h"

typedef struct submit_queue {
    pthread_mutex_t lock; /* guards everything below but the limits */
    pthread_cond_t woken;
    engine_request *head, *tail; /* linked by priv.next */
    int n;
    uint64_t n_tokens;       /* prompt tokens of the n */
    int n_waiting;           /* requests that the scheduler has taken and not admitted */
    uint64_t waiting_tokens; /* prompt tokens of those */
    bool flagged;            /* something was flagged since the last take */
    status closed;           /* OK: open. Else what a submit gets */
    int max_requests;
    uint64_t max_tokens;
} submit_queue;

BASE_MUST_USE status submit_init(submit_queue *q, int max_requests, uint64_t max_tokens);
void submit_deinit(submit_queue *q);

/* Any thread. OK when a prompt of this size would be taken now, else what submit_put would say. */
BASE_MUST_USE status submit_check(submit_queue *q, int n_prompt);
/* Any thread. E_FULL, or the reason of submit_close. */
BASE_MUST_USE status submit_put(submit_queue *q, engine_request *r);
/* Any thread: the engine looks at every request's flags before its next step. */
void submit_wake(submit_queue *q);
/* Any thread. Nothing comes in any more; the first reason stays. */
void submit_close(submit_queue *q, status reason);

/* Engine: everything queued, oldest first, linked by priv.next; it counts as waiting until
 * submit_set_waiting says otherwise. Hears whether something was flagged. */
engine_request *submit_take(submit_queue *q, bool *flagged);
/* Engine: what the scheduler has waiting. */
void submit_set_waiting(submit_queue *q, int n_requests, uint64_t n_tokens);
/* Engine: until there is something to take or timeout_ns have passed. */
void submit_sleep(submit_queue *q, int64_t timeout_ns);
/* Any thread: requests waiting in all, and their prompt tokens. */
void submit_count(submit_queue *q, uint32_t *n_requests, uint64_t *n_tokens);
#endif
