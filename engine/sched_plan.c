/* What the next step computes. */
#include <assert.h>

#include "base/clock.h"
#include "engine/sched.h"

enum {
    CHUNK_FIRST_BESIDE = 64, /* tokens, before anything is measured */
    CHUNK_FIRST_ALONE = 512,
    PILE = 8 /* so many prefills at once get the whole slice */
};

/* Tokens of q that can be planned now. */
static int n_todo(const sequence *q) {
    if (q->n_pending > 0 && q->n_known + q->n_pending >= q->group->len_max)
        return 0; /* its last one is being drawn */
    return q->paused ? 0 : q->n_known + q->n_pending - q->n_planned;
}

/* Running order, see sched.h. Insertion sort: the list is sorted but for newcomers. */
static void sort_running(sched *s) {
    const uint64_t age_mask = (UINT64_C(1) << 52) - 1, not_oldest = UINT64_C(1) << 63;
    uint64_t oldest = UINT64_MAX;
    if (s->sorted) return;
    for (int i = 0; i < s->n_running; i++)
        if (s->running[i]->age < oldest) oldest = s->running[i]->age;
    for (int i = 0; i < s->n_running; i++) {
        sequence *q = s->running[i];
        q->rank = (q->rank & ~not_oldest) | ((q->rank & age_mask) == oldest ? 0 : not_oldest);
        int k = i;
        for (; k > 0 && s->running[k - 1]->rank > q->rank; k--) s->running[k] = s->running[k - 1];
        s->running[k] = q;
    }
    s->sorted = true;
}

/* Every sequence with one token to compute gets its row. Returns how many. */
static int want_decodes(sched *s) {
    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        sequence *q = s->running[i];
        q->paused = seq_paused(q); /* read once: the other thread may change it meanwhile */
        q->todo = n_todo(q);
        q->rows = q->todo == 1;
        n += q->rows;
    }
    return n;
}

/* Time that prefill may add to a step with decodes: half of what the decodes take, so that one
 * prompt now and then is hardly felt. More, up to LIMIT_PREFILL_SLICE_MS, when prefills are a large
 * part of those that run, or some pile up: each one waiting is a decode that does not happen. */
static int64_t slice_beside(const sched *s, int n_decodes, int n_prefills) {
    const int64_t most = LIMIT_PREFILL_SLICE_MS * NS_PER_MS;
    const int64_t n = n_prefills < PILE ? n_prefills : PILE;
    int64_t slice = s->decode_ns / 2;
    if (slice < most * n_prefills / (n_prefills + n_decodes))
        slice = most * n_prefills / (n_prefills + n_decodes);
    if (slice < most * n * n / (PILE * PILE)) slice = most * n * n / (PILE * PILE);
    return slice < most ? slice : most;
}

/* Rows for prefill in this step, from the time it may take and the measured cost of a row. */
static int prefill_budget(const sched *s, int n_decodes, int n_prefills) {
    const int room = s->max_step_tokens - n_decodes;
    const int64_t slice_ns =
        n_decodes > 0 ? slice_beside(s, n_decodes, n_prefills) : LIMIT_PREFILL_ALONE_MS * NS_PER_MS;
    int64_t tokens = n_decodes > 0 ? CHUNK_FIRST_BESIDE : CHUNK_FIRST_ALONE;
    if (s->prefill_ns > 0) tokens = slice_ns / s->prefill_ns;
    if (tokens < LIMIT_PREFILL_CHUNK_MIN) tokens = LIMIT_PREFILL_CHUNK_MIN;
    return tokens < room ? (int)tokens : room;
}

static int min_int(int a, int b) {
    return a < b ? a : b;
}

/* Half of the budget goes to the first in order, so that it gets on; the rest to the shortest, so
 * that a short prompt does not wait for a long one; what is left to the first again. */
static void want_prefills(sched *s, int n_decodes) {
    static const int class_max[] = {64, 512, 4096, INT32_MAX};
    sequence *first = NULL;
    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        if (s->running[i]->todo < 2) continue;
        if (n++ == 0) first = s->running[i];
    }
    if (n == 0) return;
    int budget = prefill_budget(s, n_decodes, n);
    first->rows = min_int(first->todo, n > 1 ? (budget + 1) / 2 : budget);
    budget -= first->rows;
    for (int c = 0; c < 4 && n > 1; c++)
        for (int i = 0; i < s->n_running && budget > 0; i++) {
            sequence *q = s->running[i];
            if (q->todo < 2 || q->rows > 0 || q->todo > class_max[c]) continue;
            q->rows = min_int(q->todo, budget);
            budget -= q->rows;
        }
    first->rows += min_int(budget, first->todo - first->rows);
}

/* The block that q's next row writes is somebody else's too. */
static bool must_copy(const sched *s, const sequence *q) {
    const int i = q->n_planned / s->kv->block_tokens;
    return i < q->n_blocks && !kv_writable(s->kv, q->block[i]);
}

static int n_missing(const sched *s, const sequence *q) {
    const int n = blocks_for(q->n_planned + q->rows, s->kv->block_tokens) - q->n_blocks;
    return (n > 0 ? n : 0) + must_copy(s, q);
}

/* While steps are in flight nobody can be pushed out, so all must fit. */
static bool all_fit(const sched *s) {
    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        const sequence *q = s->running[i];
        if (q->rows == 0) continue;
        const int missing = n_missing(s, q);
        if (missing > q->n_reserved) n += missing - q->n_reserved;
    }
    return n <= kv_free(s->kv) - s->n_reserved;
}

static bool can_yield(const sequence *q) {
    return q->n_in_flight == 0 && q->n_blocks > 0 && (!q->pinned || q->paused);
}

/* Pushes out whoever yields to running[*i]: a paused one anywhere, else the last one behind it.
 * whose: of this account only; NULL: anybody. */
static bool preempt_for(sched *s, int *i, const sched_account *whose) {
    for (int pass = 0; pass < 2; pass++)
        for (int k = s->n_running - 1; k > (pass == 0 ? -1 : *i); k--) {
            sequence *v = s->running[k];
            if (k == *i || !can_yield(v) || (pass == 0 && !v->paused)) continue;
            if (whose != NULL && v->group->account != whose) continue;
            sched_preempt(s, v, pass == 0);
            if (k < *i) --*i;
            return true;
        }
    return false;
}

/* A sequence with penalties cannot be planned before its last token is known. Running one step
 * ahead without it would halve its rate; for all of them to wait costs the others only the host's
 * share of a step. */
static bool waits_for_host(const sched *s) {
    for (int i = 0; i < s->n_running; i++) {
        const sequence *q = s->running[i];
        if (q->n_pending > 0 && q->group->needs_host && !q->paused) return true;
    }
    return false;
}

/* Blocks that q may take now: of the pool, and of its account. */
static int n_available(const sched *s, const sequence *q) {
    return min_int(kv_free(s->kv) - s->n_reserved + q->n_reserved, sched_account_left(q));
}

/* Running[i] lacks blocks that only its own account could give, and those who could are in flight:
 * the last of them sits this step out, so that it can be pushed out after it. */
static void hold_back_for(sched *s, int i) {
    const sched_account *a = s->running[i]->group->account;
    for (int k = s->n_running - 1; k > i; k--) {
        sequence *v = s->running[k];
        if (v->group->account != a || v->pinned || v->n_in_flight == 0) continue;
        v->rows = 0;
        return;
    }
}

/* Makes room for running[*i]'s rows as far as the order allows. Returns what is available. */
static int make_available(sched *s, int *i) {
    sequence *q = s->running[*i];
    for (;;) {
        const int available = n_available(s, q), missing = n_missing(s, q);
        if (available >= missing) return available;
        const bool own = kv_free(s->kv) - s->n_reserved + q->n_reserved >= missing;
        if (preempt_for(s, i, own ? q->group->account : NULL)) continue;
        if (own) hold_back_for(s, *i);
        return available;
    }
}

/* Blocks for running[*i]'s rows, or for as many of them as can be had. */
static void secure(sched *s, plan *p, int *i) {
    sequence *q = s->running[*i];
    const int bt = s->kv->block_tokens;
    const int available = make_available(s, i);
    const int copy = must_copy(s, q);
    if (available < n_missing(s, q)) {
        const int rows =
            available < copy ? 0 : (q->n_blocks + available - copy) * bt - q->n_planned;
        q->rows = rows > 0 ? min_int(rows, q->rows) : 0;
    }
    if (q->rows == 0) return;
    if (copy) {
        block_id *b = &q->block[q->n_planned / bt];
        const block_id from = *b;
        *b = sched_take_block(s, q);
        plan_copy(p, from, *b);
        kv_hold(s->kv, from); /* until the plan is committed */
        sched_give_block(s, q, from);
    }
    const int n = blocks_for(q->n_planned + q->rows, bt);
    while (q->n_blocks < n) q->block[q->n_blocks++] = sched_take_block(s, q);
}

/* Fills the step: decodes first. When its arrays are full the next step starts where this one
 * stopped. */
static void emit(sched *s, plan *p) {
    const int bt = s->kv->block_tokens, n = s->n_running;
    const sequence *oldest = n > 0 ? s->running[0] : NULL;
    int left_out = -1;
    if (s->i_first_decode >= n) s->i_first_decode = 0;
    if (oldest != NULL && oldest->todo > 1) /* its turn comes after all decodes */
        p->n_blocks_aside = blocks_for(oldest->n_planned + oldest->rows, bt);
    for (int k = 0; k < n; k++) {
        const int i = (s->i_first_decode + k) % n;
        sequence *q = s->running[i];
        if (q->todo != 1 || q->rows == 0) continue;
        if (plan_add(p, q, bt) == 1)
            p->n_decode_tokens++;
        else if (left_out < 0)
            left_out = i;
    }
    s->i_first_decode = left_out < 0 ? 0 : left_out;
    p->step.n_decode = p->step.n_seqs;
    p->n_blocks_aside = 0;
    for (int i = 0; i < n; i++) {
        sequence *q = s->running[i];
        if (q->todo > 1 && q->rows > 0) p->n_prefill_tokens += plan_add(p, q, bt);
    }
}

int sched_plan(sched *s, plan *p, int n_in_flight, int64_t now_ns) {
    plan_clear(p);
    sched_admit(s, now_ns);
    sort_running(s);
    const int n_decodes = want_decodes(s);
    want_prefills(s, n_decodes);
    if (n_in_flight > 0 && (waits_for_host(s) || !all_fit(s))) return 0; /* let those steps end */
    for (int i = 0; i < s->n_running; i++)
        if (s->running[i]->rows > 0) secure(s, p, &i);
    emit(s, p);
    assert(p->step.n_seqs > 0 || p->step.n_copies == 0);
    return p->step.n_seqs;
}
