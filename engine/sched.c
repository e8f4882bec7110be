#include "engine/sched.h"

#include <assert.h>
#include <stdlib.h>

#include "base/clock.h"

/* Running rank: not the oldest 1 bit | priority 8 | age 52 (the first set when the list is sorted).
 */
enum { AGE_BITS = 52, CHOICE_BITS = 3, OUTPUT_GUESS = 64 };

/* Whoever has an account does not push out the others by a number of its own choosing. */
static uint64_t running_rank(const sched *s, const sequence *q) {
    const bool shared = q->group->account == &s->account[0];
    const int priority = shared ? q->group->request->priority : 0;
    return (uint64_t)(LIMIT_PRIORITY - priority) << AGE_BITS | q->age;
}

/* Deadlines are ordered by class, not by time: an early arrival keeps its place among its like. */
static int deadline_class(const engine_request *r) {
    static const int64_t below_s[] = {2, 10, 60};
    for (int c = 0; c < 3; c++)
        if (r->deadline_ns - r->priv.arrival_ns < below_s[c] * NS_PER_S) return c;
    return 3;
}

status sched_init(sched *s, kv_pool *kv, int max_sequences, int max_step_tokens) {
    assert(max_sequences > 0 && max_step_tokens >= max_sequences + LIMIT_PREFILL_CHUNK_MIN);
    *s = (sched){.kv = kv,
                 .max_sequences = max_sequences,
                 .max_step_tokens = max_step_tokens,
                 .next_check_ns = TIME_NEVER};
    s->running = calloc((size_t)max_sequences, sizeof(sequence *));
    s->account = calloc(LIMIT_ACCOUNTS + 1, sizeof *s->account);
    if (s->running == NULL || s->account == NULL) {
        free(s->running);
        free(s->account);
        s->running = NULL;
        s->account = NULL;
        return E_NOMEM;
    }
    s->output_16 = 16 * OUTPUT_GUESS;
    s->live.next = s->live.prev = &s->live;
    s->retired.next = s->retired.prev = &s->retired;
    return OK;
}

void sched_deinit(sched *s) {
    if (s->running == NULL) return;
    assert(s->n_live == 0 && s->n_running == 0 && s->retired.next == &s->retired);
    free(s->running);
    free(s->account);
    *s = (sched){0};
}

static void group_link(seq_group *head, seq_group *g) {
    g->prev = head->prev;
    g->next = head;
    g->prev->next = g;
    head->prev = g;
}

static void group_unlink(seq_group *g) {
    g->prev->next = g->next;
    g->next->prev = g->prev;
}

bool seq_paused(const sequence *q) {
    return atomic_load_explicit(&q->group->request->paused, memory_order_relaxed);
}

void sched_emit(sched *s, seq_group *g, const engine_event *event) {
    s->n_events++;
    g->request->on_event(g->request->ctx, event);
}

/* Waiting groups are those of which nothing runs, but for those that were pushed out because their
 * own reader is slow: these take no place in the queue. */
static void set_waiting(sched *s, seq_group *g, bool waits) {
    if (g->waits == waits) return;
    g->waits = waits;
    s->n_groups_waiting += waits ? 1 : -1;
    if (waits)
        s->waiting_tokens += (uint64_t)g->n_prompt;
    else
        s->waiting_tokens -= (uint64_t)g->n_prompt;
}

static void note_limits(sched *s, const engine_request *r) {
    if (r->deadline_ns < s->next_check_ns) s->next_check_ns = r->deadline_ns;
    if (r->time_limit_ns < s->next_check_ns) s->next_check_ns = r->time_limit_ns;
}

void sched_add(sched *s, seq_group *g) {
    const engine_request *r = g->request;
    g->arrival = ++s->n_arrived;
    g->deadline_class = deadline_class(r);
    g->root = kv_chain_root(s->kv, r->tenant, r->cache_salt, r->cache_salt_bytes);
    g->account = &s->account[r->account];
    if (r->account > 0) g->account->n_blocks_max = r->account_blocks_max;
    for (int c = 0; c < g->n_choices; c++) {
        g->seq[c].age = g->arrival << CHOICE_BITS | (uint64_t)c;
        g->seq[c].chain = g->root;
    }
    group_link(&s->live, g);
    s->n_live++;
    set_waiting(s, g, true);
    sched_enqueue(s, &g->seq[0]);
    note_limits(s, r);
}

void sched_start(sched *s, sequence *q, int64_t now_ns) {
    seq_group *g = q->group;
    assert(s->n_running < s->max_sequences);
    s->running[s->n_running++] = q;
    s->sorted = false;
    q->state = SEQ_RUNNING;
    q->rank = running_rank(s, q);
    g->account->n_running++;
    if (g->n_running++ == 0) set_waiting(s, g, false);
    if (g->started) return;
    g->started = true;
    g->admitted_ns = now_ns;
    g->cached_tokens = q->n_computed;
    sched_charge(s, g);
    s->counters.cached_prompt_tokens += (uint64_t)q->n_computed;
    sched_emit(s, g, &(engine_event){.kind = EVENT_STARTED, .cached_tokens = g->cached_tokens});
}

static void leave_running(sched *s, sequence *q, bool own_fault) {
    int i = 0;
    while (s->running[i] != q) i++;
    for (s->n_running--; i < s->n_running; i++) s->running[i] = s->running[i + 1];
    s->sorted = false; /* the oldest may be another */
    q->group->account->n_running--;
    q->group->n_running--;
    if (q->group->n_running == 0 && q->group->n_unfinished > 0 && !own_fault)
        set_waiting(s, q->group, true);
}

/* Something has changed: who did not fit may fit now, and q may be gone soon. */
static void forget_refused(sched *s, const sequence *q) {
    s->refused = q->group->account->refused = NULL;
}

/* Gives q's blocks back, leaves before parents so that the prefix cache evicts them in that order.
 */
void sched_release(sched *s, sequence *q) {
    assert(q->n_in_flight == 0);
    while (q->n_blocks > 0) sched_give_block(s, q, q->block[--q->n_blocks]);
    sched_reserve(s, q, 0);
    forget_refused(s, q);
}

void sched_preempt(sched *s, sequence *q, bool own_fault) {
    assert(q->state == SEQ_RUNNING && q->n_pending == 0 && q->n_scored_planned == q->n_scored);
    leave_running(s, q, own_fault);
    sched_release(s, q);
    q->n_computed = q->n_planned = q->n_published = 0;
    q->chain = q->group->root;
    q->pinned = false;
    q->todo = q->rows = 0;
    q->preemptions++;
    if (!own_fault) q->n_pushed_out++;
    q->group->preemptions++;
    s->counters.preemptions++;
    sched_enqueue(s, q);
}

/* q takes no more part. Blocks that a step in flight may still write stay its own until then. */
static void drop(sched *s, sequence *q) {
    seq_group *g = q->group;
    const seq_state was = q->state;
    assert(was != SEQ_DONE);
    q->state = SEQ_DONE;
    g->n_unfinished--;
    if (was == SEQ_RUNNING) leave_running(s, q, false);
    if (was == SEQ_WAITING) sched_dequeue(s, q);
    if (g->n_unfinished == 0 && g->n_running == 0 && was != SEQ_RUNNING) set_waiting(s, g, false);
    if (q->n_in_flight == 0) sched_release(s, q);
    forget_refused(s, q);
}

void sched_unlink_done(sched *s, seq_group *g) {
    if (g->request != NULL || g->n_in_flight > 0) return;
    group_unlink(g);
    group_link(&s->retired, g);
}

static request_phase phase_of(const seq_group *g) {
    for (int c = 0; c < g->n_choices; c++)
        if (g->seq[c].n_output > 0) return PHASE_DECODE;
    return g->started ? PHASE_PREFILL : PHASE_WAITING;
}

static void count_end(sched *s, engine_end end) {
    switch (end) {
    case END_FINISHED:
        s->counters.finished++;
        return;
    case END_CANCELLED:
    case END_DEADLINE:
    case END_DRAINING:
        s->counters.cancelled++;
        return;
    case END_NOT_FINITE:
    case END_INTERNAL:
    case END_DEVICE:
        s->counters.failed++;
        return;
    }
}

void sched_end(sched *s, seq_group *g, engine_end end) {
    for (int c = 0; c < g->n_choices; c++)
        if (g->seq[c].state != SEQ_DONE) drop(s, &g->seq[c]);
    const engine_event event = {.kind = EVENT_ENDED,
                                .end = end,
                                .phase = phase_of(g),
                                .cached_tokens = g->cached_tokens,
                                .preemptions = g->preemptions,
                                .admitted_ns = g->admitted_ns,
                                .prefilled_ns = g->prefilled_ns};
    count_end(s, end);
    sched_settle(g);
    s->n_live--;
    sched_emit(s, g, &event); /* the request may be gone when this returns */
    g->request = NULL;
    sched_unlink_done(s, g);
}

void sched_finish(sched *s, sequence *q, finish_reason reason) {
    seq_group *g = q->group;
    const int32_t last = q->n_output > 0 ? q->output[q->n_output - 1] : -1;
    const sampled token = {.token = last, .finite = true};
    if (reason != FINISH_TIME_LIMIT && reason != FINISH_ABORTED) sched_note_output(s, q->n_output);
    drop(s, q);
    sched_emit(s, g,
               &(engine_event){.kind = EVENT_FINISHED,
                               .choice = q->choice,
                               .reason = reason,
                               .sampled = reason == FINISH_STOP_TOKEN ? &token : NULL});
    if (g->n_unfinished == 0) sched_end(s, g, END_FINISHED);
}

/* Every choice that still runs or waits ends with reason, then the request. */
static void finish_all(sched *s, seq_group *g, finish_reason reason) {
    if (!g->started) {
        g->started = true;
        sched_emit(s, g, &(engine_event){.kind = EVENT_STARTED});
    }
    for (int c = 0; c < g->n_choices; c++)
        if (g->seq[c].state != SEQ_DONE) sched_finish(s, &g->seq[c], reason);
}

/* True: the request has ended. */
static bool sweep_group(sched *s, seq_group *g, int64_t now_ns) {
    engine_request *r = g->request;
    const unsigned stop = atomic_load_explicit(&r->stop, memory_order_acquire);
    if (stop & STOP_CANCEL) return sched_end(s, g, END_CANCELLED), true;
    if (now_ns >= r->deadline_ns) return sched_end(s, g, END_DEADLINE), true;
    if (stop & STOP_ABORT) return finish_all(s, g, FINISH_ABORTED), true;
    unsigned done = atomic_load_explicit(&r->choices_done, memory_order_acquire);
    for (int c = 0; c < g->n_choices; c++) {
        if ((done >> c & 1u) && g->seq[c].state != SEQ_DONE)
            sched_finish(s, &g->seq[c], FINISH_STOP_STRING);
    }
    if (g->request == NULL) return true;
    if (now_ns >= r->time_limit_ns) return finish_all(s, g, FINISH_TIME_LIMIT), true;
    return false;
}

void sched_sweep(sched *s, int64_t now_ns) {
    s->next_check_ns = TIME_NEVER;
    seq_group *next;
    for (seq_group *g = s->live.next; g != &s->live; g = next) {
        next = g->next;
        if (g->request == NULL) continue; /* ended; a step in flight still holds rows of it */
        if (!sweep_group(s, g, now_ns)) note_limits(s, g->request);
    }
}

void sched_end_all(sched *s, engine_end end) {
    seq_group *next;
    for (seq_group *g = s->live.next; g != &s->live; g = next) {
        next = g->next;
        if (g->request != NULL) sched_end(s, g, end);
    }
}

seq_group *sched_take_retired(sched *s) {
    seq_group *g = s->retired.next;
    if (g == &s->retired) return NULL;
    group_unlink(g);
    return g;
}

bool sched_has_work(const sched *s) {
    for (const seq_group *g = s->live.next; g != &s->live; g = g->next)
        if (g->request != NULL && !seq_paused(&g->seq[0])) return true;
    return false;
}
