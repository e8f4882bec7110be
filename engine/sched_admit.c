/* From waiting to running: who comes in, and with which cached blocks. */
#include <assert.h>

#include "engine/sched.h"

/* What the prefix cache has of q, and what q still needs. */
typedef struct fit {
    int n_matched, n_matched_idle;
    kv_chain chain;
    int n_needed; /* blocks to be free, the idle ones among the matched included */
} fit;

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
    }
}

/* Blocks that the running ones need for what they know already. */
static int n_outstanding(const sched *s) {
    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        const sequence *q = s->running[i];
        const int need = blocks_for(q->n_known + q->n_pending, s->kv->block_tokens) - q->n_blocks;
        if (need > q->n_reserved) n += need - q->n_reserved;
    }
    return n;
}

/* Blocks that a newcomer may have. Beside what the running ones need, one for each of them is left
 * (up to a sixteenth of the pool), lest the next step pushes out whom this one let in. */
static int n_spare(const sched *s) {
    const int sixteenth = s->kv->n_blocks / 16;
    const int margin = s->n_running < sixteenth ? s->n_running : sixteenth;
    return kv_free(s->kv) - s->n_reserved - n_outstanding(s) - margin;
}

static bool must_pin(const sequence *q) {
    return q->n_pushed_out >= LIMIT_PREEMPTIONS_BEFORE_PIN;
}

static bool fits(sched *s, const sequence *q, fit *f) {
    const int spare = n_spare(s);
    if (q == s->refused && spare <= s->refused_spare) return false;
    *f = (fit){0};
    match(s, q, f);
    const int len = must_pin(q) ? q->group->len_max : q->n_known;
    f->n_needed = blocks_for(len, s->kv->block_tokens) - f->n_matched + f->n_matched_idle;
    if (f->n_needed <= spare) return true;
    s->refused = q;
    s->refused_spare = spare;
    return false;
}

/* A running sequence whose reader is slow, the last in order; NULL: none. */
static sequence *find_paused(const sched *s) {
    for (int i = s->n_running - 1; i >= 0; i--) {
        sequence *q = s->running[i];
        if (seq_paused(q) && q->n_in_flight == 0) return q;
    }
    return NULL;
}

/* Room for q, if need be at the cost of those whose reader is slow. */
static bool make_room(sched *s, const sequence *q, fit *f) {
    while (s->n_running == s->max_sequences || !fits(s, q, f)) {
        sequence *paused = find_paused(s);
        if (paused == NULL) return false;
        sched_preempt(s, paused, true);
    }
    return true;
}

static void enter(sched *s, sequence *q, const fit *f, int64_t now_ns) {
    sched_dequeue(q);
    for (int i = 0; i < f->n_matched; i++) kv_share(s->kv, q->block[i]);
    q->n_blocks = q->n_published = f->n_matched;
    q->n_computed = q->n_planned = f->n_matched * s->kv->block_tokens;
    q->chain = f->chain;
    if (must_pin(q)) {
        q->pinned = true;
        q->n_reserved = blocks_for(q->group->len_max, s->kv->block_tokens) - q->n_blocks;
        s->n_reserved += q->n_reserved;
    }
    s->refused = NULL;
    sched_start(s, q, now_ns);
}

void sched_admit(sched *s, int64_t now_ns) {
    sequence *next;
    for (sequence *q = s->waiting.next; q != &s->waiting; q = next) {
        fit f;
        next = q->next;
        if (seq_paused(q)) continue;
        if (!make_room(s, q, &f)) return; /* nobody overtakes: a large one would never get in */
        next = q->next;                   /* making room may have put others behind q */
        enter(s, q, &f, now_ns);
    }
}
