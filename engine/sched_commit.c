/* What a step's results mean. */
#include <assert.h>

#include "engine/sched.h"

/* Blocks that are complete and were attended to by a finite row may be found by later prompts. */
static void publish(sched *s, sequence *q) {
    const int bt = s->kv->block_tokens;
    int32_t tokens[KV_BLOCK_TOKENS_MAX];
    if (!s->kv->prefix_cache) return;
    for (; (q->n_published + 1) * bt <= q->n_computed; q->n_published++) {
        seq_tokens(q, q->n_published * bt, bt, tokens);
        kv_publish(s->kv, &q->chain, q->block[q->n_published], tokens);
    }
}

/* A sibling starts from the prompt's blocks of choice 0; the last prompt token is computed again
 * for it, into a block of its own. */
static void fork_from(sched *s, const sequence *first, sequence *q, int64_t now_ns) {
    const int n_prompt = q->group->n_prompt, bt = s->kv->block_tokens;
    q->n_blocks = blocks_for(n_prompt, bt);
    for (int i = 0; i < q->n_blocks; i++) {
        q->block[i] = first->block[i];
        sched_share_block(s, q, q->block[i]);
    }
    q->n_computed = q->n_planned = n_prompt - 1;
    q->n_published = s->kv->prefix_cache ? (n_prompt - 1) / bt : 0;
    q->chain = q->group->root;
    int32_t tokens[KV_BLOCK_TOKENS_MAX];
    for (int i = 0; i < q->n_published; i++) { /* the chain to where q will publish on */
        seq_tokens(q, i * bt, bt, tokens);
        kv_publish(s->kv, &q->chain, q->block[i], tokens);
    }
    sched_start(s, q, now_ns);
}

/* The prompt of choice 0 is in the cache for the first time: the other choices begin. */
static void prompt_done(sched *s, sequence *first, int64_t now_ns) {
    seq_group *g = first->group;
    g->prompt_done = true;
    g->prefilled_ns = now_ns;
    s->counters.prompt_tokens += (uint64_t)g->n_prompt;
    for (int c = 1; c < g->n_choices; c++) {
        sequence *q = &g->seq[c];
        if (q->state != SEQ_HELD) continue;
        if (s->n_running < s->max_sequences)
            fork_from(s, first, q, now_ns);
        else
            sched_enqueue(s, q);
    }
}

/* The request met something that is not a number: its blocks are not to be trusted. */
static void fail_not_finite(sched *s, seq_group *g) {
    for (int c = 0; c < g->n_choices; c++) {
        const sequence *q = &g->seq[c];
        if (q->state == SEQ_DONE) continue;
        for (int i = 0; i < q->n_blocks; i++) kv_forget(s->kv, q->block[i]);
    }
    sched_end(s, g, END_NOT_FINITE);
}

static void commit_score(sched *s, sequence *q, const sampled *r, int i_prompt) {
    q->n_scored = i_prompt;
    sched_emit(s, q->group,
               &(engine_event){.kind = EVENT_PROMPT, .i_prompt = i_prompt, .sampled = r});
}

static void commit_token(sched *s, sequence *q, const sampled *r) {
    seq_group *g = q->group;
    q->n_pending--;
    seq_append(q, r->token);
    s->counters.generated_tokens++;
    const engine_event event = {.kind = EVENT_TOKEN, .choice = q->choice, .sampled = r};
    sched_emit(s, g, &event);
    if (seq_is_stop(q, r->token))
        sched_finish(s, q, FINISH_STOP_TOKEN);
    else if (q->n_output >= g->max_tokens)
        sched_finish(s, q, FINISH_MAX_TOKENS);
    else if (q->n_known >= g->len_max)
        sched_finish(s, q, FINISH_CONTEXT_FULL);
}

static bool all_finite(const plan_entry *e, const sampled *result) {
    for (int i = 0; i < e->n_samples; i++)
        if (!result[e->i_sample + i].finite) return false;
    return true;
}

static void commit_entry(sched *s, const plan *p, const plan_entry *e, const sampled *result,
                         int64_t now_ns) {
    sequence *q = e->seq;
    seq_group *g = q->group;
    q->n_in_flight--;
    g->n_in_flight--;
    if (q->state == SEQ_DONE) { /* finished or stopped while this step was on its way */
        if (q->n_in_flight == 0) sched_release(s, q);
        sched_unlink_done(s, g);
        return;
    }
    q->n_computed += e->n_rows;
    if (e->n_samples == 0) return;
    if (!all_finite(e, result)) {
        fail_not_finite(s, g);
        return;
    }
    publish(s, q);
    if (q->choice == 0 && !g->prompt_done && q->n_computed >= g->n_prompt)
        prompt_done(s, q, now_ns);
    for (int i = e->i_sample; i < e->i_sample + e->n_samples; i++) {
        if (p->i_prompt[i] > 0)
            commit_score(s, q, &result[i], p->i_prompt[i]);
        else
            commit_token(s, q, &result[i]);
    }
}

/* Moves a running mean towards a new value by weight / of. One hiccup is not believed in full. */
static void move_mean(int64_t *mean, int64_t value, int64_t weight, int64_t of) {
    if (value < 1) value = 1;
    if (*mean > 0 && value > 4 * *mean) value = 4 * *mean;
    *mean += *mean == 0 ? value : (value - *mean) * weight / of;
}

/* What the last steps took sizes the next chunk. */
static void observe(sched *s, const plan *p, int64_t step_ns) {
    const int64_t n = p->n_prefill_tokens;
    if (p->n_decode_tokens > 0) move_mean(&s->step_ns, step_ns, 1, 16);
    if (n == 0) {
        move_mean(&s->decode_ns, step_ns, 1, 8);
        return;
    }
    const int64_t prefill_ns = step_ns - (p->n_decode_tokens > 0 ? s->decode_ns : 0);
    move_mean(&s->prefill_ns, prefill_ns / n, n, n + 256); /* small chunks say little */
}

void sched_commit(sched *s, plan *p, const sampled *result, int64_t step_ns, int64_t now_ns) {
    for (int i = 0; i < p->step.n_copies; i++) kv_unhold(s->kv, p->step.copies[i].from);
    for (int i = 0; i < p->step.n_seqs; i++) commit_entry(s, p, &p->entry[i], result, now_ns);
    if (step_ns > 0) observe(s, p, step_ns);
}
