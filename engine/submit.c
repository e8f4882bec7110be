#include "engine/submit.h"

#include <assert.h>
#include <time.h>

#include "base/clock.h"

status submit_init(submit_queue *q, int max_requests, uint64_t max_tokens) {
    pthread_condattr_t attr;
    *q = (submit_queue){.max_requests = max_requests, .max_tokens = max_tokens};
    if (pthread_mutex_init(&q->lock, NULL) != 0) return E_NOMEM;
    if (pthread_condattr_init(&attr) != 0) goto fail_attr;
    const int bad = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 ||
                    pthread_cond_init(&q->woken, &attr) != 0;
    pthread_condattr_destroy(&attr);
    if (!bad) return OK;

fail_attr:
    pthread_mutex_destroy(&q->lock);
    return E_NOMEM;
}

void submit_deinit(submit_queue *q) {
    assert(q->head == NULL);
    pthread_cond_destroy(&q->woken);
    pthread_mutex_destroy(&q->lock);
}

static void lock(submit_queue *q) {
    const int failed = pthread_mutex_lock(&q->lock);
    assert(failed == 0);
    (void)failed;
}

static void unlock(submit_queue *q) {
    const int failed = pthread_mutex_unlock(&q->lock);
    assert(failed == 0);
    (void)failed;
}

/* A prompt larger than the whole token limit is taken when nothing else waits: else never. */
static status room_for(const submit_queue *q, int n_prompt) {
    if (q->closed != OK) return q->closed;
    if (q->n + q->n_waiting >= q->max_requests) return E_FULL;
    const uint64_t tokens = q->n_tokens + q->waiting_tokens;
    if (tokens > 0 && tokens + (uint64_t)n_prompt > q->max_tokens) return E_FULL;
    return OK;
}

status submit_check(submit_queue *q, int n_prompt) {
    lock(q);
    const status s = room_for(q, n_prompt);
    unlock(q);
    return s;
}

status submit_put(submit_queue *q, engine_request *r) {
    lock(q);
    const status s = room_for(q, r->n_prompt);
    if (s == OK) {
        r->priv.next = NULL;
        if (q->tail == NULL)
            q->head = r;
        else
            q->tail->priv.next = r;
        q->tail = r;
        q->n++;
        q->n_tokens += (uint64_t)r->n_prompt;
        pthread_cond_signal(&q->woken);
    }
    unlock(q);
    return s;
}

void submit_wake(submit_queue *q) {
    lock(q);
    q->flagged = true;
    pthread_cond_signal(&q->woken);
    unlock(q);
}

void submit_close(submit_queue *q, status reason) {
    assert(reason != OK);
    lock(q);
    if (q->closed == OK) q->closed = reason;
    q->flagged = true;
    pthread_cond_signal(&q->woken);
    unlock(q);
}

engine_request *submit_take(submit_queue *q, bool *flagged) {
    lock(q);
    engine_request *head = q->head;
    *flagged = q->flagged;
    q->n_waiting += q->n;
    q->waiting_tokens += q->n_tokens;
    q->head = q->tail = NULL;
    q->n = 0;
    q->n_tokens = 0;
    q->flagged = false;
    unlock(q);
    return head;
}

void submit_set_waiting(submit_queue *q, int n_requests, uint64_t n_tokens) {
    lock(q);
    q->n_waiting = n_requests;
    q->waiting_tokens = n_tokens;
    unlock(q);
}

void submit_sleep(submit_queue *q, int64_t timeout_ns) {
    const int64_t until = clock_now_ns() + timeout_ns;
    const struct timespec t = {.tv_sec = (time_t)(until / NS_PER_S),
                               .tv_nsec = (long)(until % NS_PER_S)};
    lock(q);
    int timed_out = 0;
    while (q->head == NULL && !q->flagged && timed_out == 0)
        timed_out = pthread_cond_timedwait(&q->woken, &q->lock, &t);
    unlock(q);
}

void submit_count(submit_queue *q, uint32_t *n_requests, uint64_t *n_tokens) {
    lock(q);
    *n_requests = (uint32_t)(q->n + q->n_waiting);
    *n_tokens = q->n_tokens + q->waiting_tokens;
    unlock(q);
}
