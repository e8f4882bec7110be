/* From waiting to running: who comes in, and with which cached blocks. */
#include <assert.h>
#include <limits.h>

#include "engine/sched.h"

/* What the prefix cache has of q, and what q still needs. */
typedef struct fit {
    int n_matched, n_matched_idle, n_matched_unheld; /* in the LRU; in nobody's table */
    kv_chain chain;
    int n_needed; /* blocks to be free, the idle ones among the matched included */
} fit;

typedef enum lack { LACK_NOTHING, LACK_ROOM, LACK_SHARE } lack; /* share: its account's */

/* Scoring needs the logits of every prompt row, so nothing may be skipped. */
static bool may_match(const sequence *q) {
    const seq_group *g = q->group;
    return !(q->choice == 0 && g->request->prompt_logprobs && q->n_scored < g->n_prompt - 1);
}

/* Finds the published blocks that q begins with, into q->block, without references. The last known
 * token is always computed: its logits are wanted. */
static void match(const sched *s, const sequence *q, fit *f) {
    const kv_pool *kv = s->kv;
    const int n_max = may_match(q) ? (q->n_known - 1) / kv->block_tokens : 0;
    int32_t tokens[KV_BLOCK_TOKENS_MAX];
    f->chain = q->group->root;
    for (f->n_matched = 0; f->n_matched < n_max; f->n_matched++) {
        seq_tokens(q, f->n_matched * kv->block_tokens, kv->block_tokens, tokens);
        const block_id id = kv_find(kv, &f->chain, tokens);
        if (id == BLOCK_NONE) return;
        q->block[f->n_matched] = id;
        if (kv_idle(kv, id)) f->n_matched_idle++;
        if (kv->block[id].refs == 0) f->n_matched_unheld++;
    }
}

/* Blocks that a newcomer may have. Beside what the running ones need, one for each of them is left
 * (up to a sixteenth of the pool), lest the next step pushes out whom this one let in. */
static int n_spare(const sched *s) {
    const int sixteenth = s->kv->n_blocks / 16;
    const int margin = s->n_running < sixteenth ? s->n_running : sixteenth;
    return kv_free(s->kv) - s->n_reserved - sched_outstanding(s, NULL) - margin;
}

/* The same within its account. Whoever comes in while it holds nothing is not bounded: its length
 * was, and a bound that was lowered since must not keep it out for ever. */
static int n_account_spare(const sched *s, const sched_account *a) {
    if (a->n_blocks_max == 0 || (a->n_running == 0 && a->n_blocks == 0)) return INT_MAX;
    const int sixteenth = a->n_blocks_max / 16;
    const int margin = a->n_running < sixteenth ? a->n_running : sixteenth;
    return a->n_blocks_max - a->n_blocks - a->n_reserved - sched_outstanding(s, a) - margin;
}

static bool must_pin(const sequence *q) {
    return q->n_pushed_out >= LIMIT_PREEMPTIONS_BEFORE_PIN;
}

/* Those of its account who did not fit just now are not measured again. */
static lack find_fit(sched *s, const sequence *q, fit *f) {
    sched_account *a = q->group->account;
    const int spare = n_spare(s), account_spare = n_account_spare(s, a);
    if (q == a->refused && account_spare <= a->refused_spare) return LACK_SHARE;
    if (q == s->refused && spare <= s->refused_spare) return LACK_ROOM;
    *f = (fit){0};
    match(s, q, f);
    const int len = must_pin(q) ? q->group->len_max : q->n_known;
    const int n_new = blocks_for(len, s->kv->block_tokens) - f->n_matched;
    f->n_needed = n_new + f->n_matched_idle;
    if (n_new + f->n_matched_unheld > account_spare) {
        a->refused = q;
        a->refused_spare = account_spare;
        return LACK_SHARE;
    }
    if (f->n_needed <= spare) return LACK_NOTHING;
    s->refused = q;
    s->refused_spare = spare;
    return LACK_ROOM;
}

/* A running sequence whose reader is slow, the last in order; NULL: none. whose: as in find_fit's
 * answer, of this account only; NULL: anybody's. */
static sequence *find_paused(const sched *s, const sched_account *whose) {
    for (int i = s->n_running - 1; i >= 0; i--) {
        sequence *q = s->running[i];
        if (whose != NULL && q->group->account != whose) continue;
        if (seq_paused(q) && q->n_in_flight == 0) return q;
    }
    return NULL;
}

/* Room for q, if need be at the cost of those whose reader is slow. */
static lack make_room(sched *s, const sequence *q, fit *f) {
    for (;;) {
        const lack l = s->n_running == s->max_sequences ? LACK_ROOM : find_fit(s, q, f);
        if (l == LACK_NOTHING) return l;
        sequence *paused = find_paused(s, l == LACK_SHARE ? q->group->account : NULL);
        if (paused == NULL) return l;
        sched_preempt(s, paused, true);
    }
}

static void enter(sched *s, sequence *q, const fit *f, int64_t now_ns) {
    sched_dequeue(s, q);
    for (int i = 0; i < f->n_matched; i++) sched_share_block(s, q, q->block[i]);
    q->n_blocks = q->n_published = f->n_matched;
    q->n_computed = q->n_planned = f->n_matched * s->kv->block_tokens;
    q->chain = f->chain;
    if (must_pin(q)) {
        q->pinned = true;
        sched_reserve(s, q, blocks_for(q->group->len_max, s->kv->block_tokens) - q->n_blocks);
    }
    s->refused = q->group->account->refused = NULL;
    sched_start(s, q, now_ns);
}

void sched_admit(sched *s, int64_t now_ns) {
    s->n_admissions++;
    for (sequence *q; (q = sched_next_waiting(s)) != NULL;) {
        fit f;
        if (s->n_groups_waiting > 1 && sched_hopeless(s, q, now_ns)) {
            sched_end(s, q->group, END_DEADLINE);
            continue;
        }
        const lack l = make_room(s, q, &f);
        if (l == LACK_ROOM) return; /* nobody overtakes: a large one would never get in */
        if (l == LACK_SHARE)        /* others do; its own kind do not */
            q->group->account->passed_by = s->n_admissions;
        else
            enter(s, q, &f, now_ns);
    }
}
