/* Who waits, and whose turn it is. Each account has a list of its own, by rank; between accounts
 * the turn goes to the one that has had the fewest tokens (start-time fair queueing, Goyal et al.,
 * SIGCOMM 1996; for tokens: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024).
 * The turn is found when a place is free, not when a request comes: those that are gone by then, or
 * too late, have used nothing up. Finding it costs a look at each account that waits. */
#include <assert.h>

#include "base/clock.h"
#include "engine/sched.h"

/* priority 8 bits | new after preempted 1 | deadline class 3 | age 52: one comparison */
enum { AGE_BITS = 52, CLASS_BITS = 3 };

static uint64_t waiting_rank(const sequence *q) {
    const uint64_t priority = (uint64_t)(LIMIT_PRIORITY - q->group->request->priority);
    const uint64_t fresh = q->preemptions == 0;
    const uint64_t class = (uint64_t)q->group->deadline_class;
    return ((priority << 4 | fresh << CLASS_BITS | class) << AGE_BITS) | q->age;
}

/* Whoever comes to wait has not saved up turns meanwhile. */
static void account_link(sched *s, sched_account *a) {
    if (a->served < s->now_serving) a->served = s->now_serving;
    a->prev = NULL;
    a->next = s->waiting;
    if (a->next != NULL) a->next->prev = a;
    s->waiting = a;
}

static void account_unlink(sched *s, sched_account *a) {
    if (a->prev != NULL)
        a->prev->next = a->next;
    else
        s->waiting = a->next;
    if (a->next != NULL) a->next->prev = a->prev;
    a->prev = a->next = NULL;
}

void sched_enqueue(sched *s, sequence *q) {
    sched_account *a = q->group->account;
    q->state = SEQ_WAITING;
    q->rank = waiting_rank(q);
    if (a->first == NULL) account_link(s, a);
    sequence *at = a->last; /* newcomers mostly go last */
    while (at != NULL && at->rank > q->rank) at = at->prev;
    q->prev = at;
    q->next = at != NULL ? at->next : a->first;
    if (q->prev != NULL)
        q->prev->next = q;
    else
        a->first = q;
    if (q->next != NULL)
        q->next->prev = q;
    else
        a->last = q;
}

void sched_dequeue(sched *s, sequence *q) {
    sched_account *a = q->group->account;
    if (q->prev != NULL)
        q->prev->next = q->next;
    else
        a->first = q->next;
    if (q->next != NULL)
        q->next->prev = q->prev;
    else
        a->last = q->prev;
    q->prev = q->next = NULL;
    if (a->first == NULL) account_unlink(s, a);
}

/* Between accounts neither priority nor deadline class counts: each could pass the others by
 * numbers of its own choosing. */
static bool goes_before(const sequence *a, const sequence *b) {
    const sched_account *of_a = a->group->account, *of_b = b->group->account;
    if (of_a == of_b) return a->rank < b->rank;
    if ((a->preemptions == 0) != (b->preemptions == 0)) return a->preemptions > 0;
    return of_a->served != of_b->served ? of_a->served < of_b->served : a->age < b->age;
}

sequence *sched_next_waiting(const sched *s) {
    sequence *best = NULL;
    for (const sched_account *a = s->waiting; a != NULL; a = a->next) {
        if (a->passed_by == s->n_admissions) continue;
        sequence *q = a->first;
        while (q != NULL && seq_paused(q)) q = q->next;
        if (q != NULL && (best == NULL || goes_before(q, best))) best = q;
    }
    return best;
}

static int expected_output(const sched *s, const seq_group *g) {
    const int mean = (s->output_16 + 15) / 16;
    return g->max_tokens < mean ? g->max_tokens : mean;
}

void sched_charge(sched *s, seq_group *g) {
    sched_account *a = g->account;
    if (a->served > s->now_serving) s->now_serving = a->served;
    g->charged = (uint64_t)(g->n_prompt - g->cached_tokens) +
                 (uint64_t)g->n_choices * (uint64_t)expected_output(s, g);
    a->served += g->charged;
}

void sched_settle(seq_group *g) {
    if (g->charged == 0) return;
    uint64_t used = (uint64_t)(g->n_prompt - g->cached_tokens);
    for (int c = 0; c < g->n_choices; c++) used += (uint64_t)g->seq[c].n_output;
    assert(g->account->served >= g->charged);
    g->account->served += used - g->charged;
    g->charged = 0;
}

void sched_note_output(sched *s, int n_output) {
    const int most = INT32_MAX / 32; /* a context is shorter: LIMIT_CONTEXT */
    s->output_16 += ((n_output < most ? n_output : most) * 16 - s->output_16) / 16;
}

/* An eighth more than the estimate: who would come in just then mostly comes in too late. */
bool sched_hopeless(const sched *s, const sequence *q, int64_t now_ns) {
    const seq_group *g = q->group;
    if (g->started || g->request->deadline_ns == TIME_NEVER) return false;
    const int64_t need_ns = expected_output(s, g) * s->step_ns;
    return need_ns + need_ns / 8 > g->request->deadline_ns - now_ns;
}
