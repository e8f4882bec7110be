#include "engine/plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

static bool reserve_array(size_t *end, size_t n, size_t size, size_t *offset) {
    size_t bytes;
    *offset = *end;
    return checked_mul_size(n, size, &bytes) && checked_add_size(bytes, 63, &bytes) &&
           checked_add_size(*end, bytes & ~(size_t)63, end);
}

status plan_init(plan *p, const backend_limits *cap) {
    *p = (plan){.cap = *cap};
    size_t end = 0, token, start, len, bstart, block, sample, bias, seen, copies, entry, i_prompt;
    const size_t n_seqs = (size_t)cap->n_seqs_max, n_samples = (size_t)cap->n_samples_max;
    const bool fits = reserve_array(&end, (size_t)cap->n_tokens_max, sizeof(int32_t), &token) &&
                      reserve_array(&end, n_seqs + 1, sizeof(int32_t), &start) &&
                      reserve_array(&end, n_seqs, sizeof(int32_t), &len) &&
                      reserve_array(&end, n_seqs + 1, sizeof(int32_t), &bstart) &&
                      reserve_array(&end, (size_t)cap->n_blocks_max, sizeof(int32_t), &block) &&
                      reserve_array(&end, n_samples, sizeof(sample_row), &sample) &&
                      reserve_array(&end, (size_t)cap->n_bias_max, sizeof(token_bias), &bias) &&
                      reserve_array(&end, (size_t)cap->n_seen_max, sizeof(token_seen), &seen) &&
                      reserve_array(&end, (size_t)cap->n_copies_max, sizeof(block_copy), &copies) &&
                      reserve_array(&end, n_seqs, sizeof(plan_entry), &entry) &&
                      reserve_array(&end, n_samples, sizeof(int32_t), &i_prompt);
    unsigned char *m = fits ? calloc(1, end) : NULL;
    if (m == NULL) return E_NOMEM;
    p->memory = m;
    p->step.token = (int32_t *)(void *)(m + token);
    p->step.seq_start = (int32_t *)(void *)(m + start);
    p->step.kv_len = (int32_t *)(void *)(m + len);
    p->step.block_start = (int32_t *)(void *)(m + bstart);
    p->step.block = (int32_t *)(void *)(m + block);
    p->step.sample = (sample_row *)(void *)(m + sample);
    p->step.bias = (token_bias *)(void *)(m + bias);
    p->step.seen = (token_seen *)(void *)(m + seen);
    p->step.copies = (block_copy *)(void *)(m + copies);
    p->entry = (plan_entry *)(void *)(m + entry);
    p->i_prompt = (int32_t *)(void *)(m + i_prompt);
    return OK;
}

void plan_deinit(plan *p) {
    free(p->memory);
    *p = (plan){0};
}

void plan_clear(plan *p) {
    step *s = &p->step;
    s->n_tokens = s->n_seqs = s->n_decode = 0;
    s->n_samples = s->n_bias = s->n_seen = s->n_blocks = s->n_copies = 0;
    s->seq_start[0] = s->block_start[0] = 0;
    p->n_decode_tokens = p->n_prefill_tokens = p->n_blocks_aside = 0;
}

void plan_copy(plan *p, block_id from, block_id to) {
    assert(p->step.n_copies < p->cap.n_copies_max);
    p->step.copies[p->step.n_copies++] = (block_copy){.from = from, .to = to};
}

static sample_row *add_sample(plan *p, int row, int i_prompt) {
    const int i = p->step.n_samples++;
    p->i_prompt[i] = i_prompt;
    p->step.sample[i] = (sample_row){.row = row, .target = -1};
    return &p->step.sample[i];
}

/* Scores prompt position i_prompt from the row before it. */
static void add_score(plan *p, const sequence *q, int row, int i_prompt) {
    const engine_request *r = q->group->request;
    sample_row *s = add_sample(p, row, i_prompt);
    s->target = r->prompt[i_prompt];
    s->n_top = r->n_top;
    s->logprob = true;
}

/* Draws the token after row, the last one known (or pending) of q. */
static void add_draw(plan *p, const sequence *q, int row) {
    const engine_request *r = q->group->request;
    step *st = &p->step;
    sample_row *s = add_sample(p, row, 0);
    const int n_output = q->n_output + q->n_pending;
    s->temperature = r->temperature;
    s->top_p = r->top_p;
    s->min_p = r->min_p;
    s->top_k = r->top_k;
    s->repetition_penalty = r->repetition_penalty;
    s->frequency_penalty = r->frequency_penalty;
    s->presence_penalty = r->presence_penalty;
    s->seed = seq_seed(q);
    s->position = (uint64_t)n_output;
    s->n_top = r->n_top;
    s->logprob = r->logprobs;
    const token_bias *bias = seq_bias(q, n_output, &s->n_bias);
    s->i_bias = st->n_bias;
    memcpy(st->bias + st->n_bias, bias, (size_t)s->n_bias * sizeof *bias);
    st->n_bias += s->n_bias;
    s->n_seen = q->seen.n;
    s->i_seen = st->n_seen;
    if (s->n_seen > 0)
        memcpy(st->seen + st->n_seen, q->seen.entry, (size_t)s->n_seen * sizeof *q->seen.entry);
    st->n_seen += s->n_seen;
}

static bool scores_prompt(const sequence *q) {
    return q->choice == 0 && q->group->request->prompt_logprobs &&
           q->n_scored_planned < q->group->n_prompt - 1;
}

/* Can the row at position pos score the next prompt position? */
static bool scores_at(const sequence *q, int pos) {
    return pos >= q->n_scored_planned && pos + 1 < q->group->n_prompt;
}

/* How many of q->rows fit what is left of the step's arrays. */
static int rows_that_fit(const plan *p, const sequence *q, int block_tokens) {
    const step *s = &p->step;
    const backend_limits *cap = &p->cap;
    int rows = q->rows, n_bias;
    if (s->n_seqs == cap->n_seqs_max) return 0;
    if (rows > cap->n_tokens_max - s->n_tokens) rows = cap->n_tokens_max - s->n_tokens;
    const int samples_left = cap->n_samples_max - s->n_samples;
    if (scores_prompt(q) && rows > samples_left) rows = samples_left;
    if (rows <= 0) return 0;
    const int blocks_left = cap->n_blocks_max - p->n_blocks_aside - s->n_blocks;
    if (blocks_for(q->n_planned + rows, block_tokens) > blocks_left) return 0;
    if (q->n_planned + rows < q->n_known + q->n_pending) return rows; /* draws nothing */
    (void)seq_bias(q, q->n_output + q->n_pending, &n_bias);
    const bool can_draw = samples_left > 0 && n_bias <= cap->n_bias_max - s->n_bias &&
                          q->seen.n <= cap->n_seen_max - s->n_seen;
    return can_draw ? rows : rows - 1; /* the last row waits for a step that has room */
}

int plan_add(plan *p, sequence *q, int block_tokens) {
    step *s = &p->step;
    const int rows = rows_that_fit(p, q, block_tokens);
    if (rows <= 0) return 0;
    plan_entry *e = &p->entry[s->n_seqs];
    *e = (plan_entry){.seq = q, .n_rows = rows, .i_sample = s->n_samples};
    const bool scoring = scores_prompt(q);
    for (int i = 0; i < rows; i++) {
        const int pos = q->n_planned + i, row = s->n_tokens + i;
        s->token[row] =
            pos < q->n_known ? seq_token(q, pos) : STEP_TOKEN_FROM_PREVIOUS(q->i_sample);
        if (scoring && scores_at(q, pos)) add_score(p, q, row, pos + 1);
    }
    s->n_tokens += rows;
    q->n_planned += rows;
    if (scoring) {
        const int last = q->group->n_prompt - 1;
        if (q->n_planned > q->n_scored_planned)
            q->n_scored_planned = q->n_planned < last ? q->n_planned : last;
    }
    if (q->n_planned == q->n_known + q->n_pending) {
        q->i_sample = s->n_samples;
        add_draw(p, q, s->n_tokens - 1);
        q->n_pending++;
    }
    e->n_samples = s->n_samples - e->i_sample;
    const int n_blocks = blocks_for(q->n_planned, block_tokens);
    memcpy(s->block + s->n_blocks, q->block, (size_t)n_blocks * sizeof *q->block);
    s->n_blocks += n_blocks;
    s->kv_len[s->n_seqs] = q->n_planned;
    s->n_seqs++;
    s->seq_start[s->n_seqs] = s->n_tokens;
    s->block_start[s->n_seqs] = s->n_blocks;
    q->n_in_flight++;
    q->group->n_in_flight++;
    return rows;
}
