#include "engine/sequence.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Where each part of a group lies in its one allocation. */
typedef struct layout {
    size_t bytes;
    size_t bias, block, output, seen_entry, seen_slot; /* offsets of the first sequence's */
    int n_bias, n_blocks, n_output, n_seen;
    uint32_t n_slots;
} layout;

static bool add_array(size_t *end, size_t *offset, size_t n, size_t m, size_t size) {
    size_t bytes;
    if (!checked_add_size(*end, 15, end)) return false;
    *end &= ~(size_t)15;
    *offset = *end;
    return checked_mul_size(n, m, &bytes) && checked_mul_size(bytes, size, &bytes) &&
           checked_add_size(*end, bytes, end);
}

static bool off_or_one(float penalty) {
    return penalty == 0.0f || penalty == 1.0f;
}

static bool has_penalty(const engine_request *r) {
    return !off_or_one(r->repetition_penalty) || r->frequency_penalty != 0.0f ||
           r->presence_penalty != 0.0f;
}

static bool plan_layout(const engine_request *r, const seq_limits *l, int len_max, layout *out) {
    const size_t n = (size_t)r->n_choices;
    *out = (layout){.n_bias = r->n_bias + r->n_stop_ids + l->n_eog,
                    .n_blocks = blocks_for(len_max, l->block_tokens),
                    .n_output = len_max - r->n_prompt};
    if (has_penalty(r)) {
        const int tokens = off_or_one(r->repetition_penalty) ? out->n_output : len_max;
        out->n_seen = tokens < l->n_vocab ? tokens : l->n_vocab;
        out->n_slots = 16;
        while (out->n_slots < 2u * (uint32_t)out->n_seen) out->n_slots *= 2;
    }
    out->bytes = sizeof(seq_group) + n * sizeof(sequence);
    return add_array(&out->bytes, &out->bias, 1, (size_t)out->n_bias, sizeof(token_bias)) &&
           add_array(&out->bytes, &out->block, n, (size_t)out->n_blocks, sizeof(block_id)) &&
           add_array(&out->bytes, &out->output, n, (size_t)out->n_output, sizeof(int32_t)) &&
           add_array(&out->bytes, &out->seen_entry, n, (size_t)out->n_seen, sizeof(token_seen)) &&
           add_array(&out->bytes, &out->seen_slot, n, out->n_slots, sizeof(int32_t));
}

static void seen_add(seen_table *t, int32_t token, int n_output) {
    if (t->entry == NULL) return;
    uint32_t i = ((uint32_t)token * 2654435769u) >> 7;
    for (i &= t->mask; t->slot[i] != 0; i = (i + 1) & t->mask) {
        token_seen *s = &t->entry[t->slot[i] - 1];
        if (s->token != token) continue;
        s->n_output += n_output;
        return;
    }
    assert(t->n < t->n_max);
    t->entry[t->n++] = (token_seen){.token = token, .n_output = n_output};
    t->slot[i] = t->n;
}

static bool in_list(const int32_t *list, int n, int32_t token) {
    for (int i = 0; i < n; i++)
        if (list[i] == token) return true;
    return false;
}

static bool forbidden_early(const seq_group *g, const engine_request *r, int32_t token) {
    return in_list(r->stop_ids, r->n_stop_ids, token) || in_list(g->eog, g->n_eog, token);
}

static void forbid(seq_group *g, const int32_t *tokens, int n) {
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (int k = g->n_user; k < g->n_bias && !known; k++) known = g->bias[k].token == tokens[i];
        if (!known) g->bias[g->n_bias++] = (token_bias){.token = tokens[i], .bias = -INFINITY};
    }
}

static void fill_bias(seq_group *g, const engine_request *r) {
    for (int pass = 0; pass < 2; pass++) { /* the forbidden ones first */
        for (int i = 0; i < r->n_bias; i++)
            if (forbidden_early(g, r, r->bias[i].token) == (pass == 0))
                g->bias[g->n_user++] = r->bias[i];
        if (pass == 0) g->n_user_forbidden = g->n_user;
    }
    g->n_bias = g->n_user;
    forbid(g, r->stop_ids, r->n_stop_ids);
    forbid(g, g->eog, g->n_eog);
}

static void fill_sequence(seq_group *g, const engine_request *r, const layout *lay, int choice) {
    unsigned char *base = (unsigned char *)g;
    const size_t c = (size_t)choice;
    sequence *q = &g->seq[choice];
    q->group = g;
    q->choice = choice;
    q->state = choice == 0 ? SEQ_WAITING : SEQ_HELD;
    q->n_known = r->n_prompt;
    q->block = (block_id *)(void *)(base + lay->block) + c * (size_t)lay->n_blocks;
    q->output = (int32_t *)(void *)(base + lay->output) + c * (size_t)lay->n_output;
    if (lay->n_slots == 0) return;
    q->seen.entry = (token_seen *)(void *)(base + lay->seen_entry) + c * (size_t)lay->n_seen;
    q->seen.slot = (int32_t *)(void *)(base + lay->seen_slot) + c * lay->n_slots;
    q->seen.mask = lay->n_slots - 1;
    q->seen.n_max = lay->n_seen;
    if (off_or_one(r->repetition_penalty)) return; /* the others count output tokens only */
    for (int i = 0; i < r->n_prompt; i++) seen_add(&q->seen, r->prompt[i], 0);
}

static bool request_valid(const engine_request *r, const seq_limits *l) {
    if (r->n_prompt < 1 || r->n_prompt >= l->context || r->max_tokens < 0 || r->min_tokens < 0)
        return false;
    if (r->n_choices < 1 || r->n_choices > LIMIT_CHOICES) return false;
    if (r->priority < -LIMIT_PRIORITY || r->priority > LIMIT_PRIORITY) return false;
    if (r->n_bias < 0 || r->n_bias > LIMIT_LOGIT_BIAS) return false;
    if (r->n_stop_ids < 0 || r->n_stop_ids > LIMIT_STOP_TOKEN_IDS) return false;
    if (r->n_top < 0 || r->n_top > LIMIT_TOP_LOGPROBS || r->on_event == NULL) return false;
    if (r->cache_salt_bytes < 0 || r->cache_salt_bytes > LIMIT_CACHE_SALT_BYTES) return false;
    if (r->account < 0 || r->account > LIMIT_ACCOUNTS || r->account_blocks_max < 0) return false;
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= l->n_vocab) return false;
    for (int i = 0; i < r->n_bias; i++)
        if (r->bias[i].token < 0 || r->bias[i].token >= l->n_vocab) return false;
    for (int i = 0; i < r->n_stop_ids; i++)
        if (r->stop_ids[i] < 0 || r->stop_ids[i] >= l->n_vocab) return false;
    return true;
}

static int min_i64(int64_t a, int64_t b) {
    return (int)(a < b ? a : b);
}

status seq_group_open(engine_request *r, const seq_limits *l, seq_group **out) {
    if (!request_valid(r, l)) return E_INVAL;
    const int64_t wanted =
        (int64_t)r->n_prompt + (r->max_tokens > 0 ? r->max_tokens : l->block_tokens);
    const bool bounded = r->account_blocks_max > 0 && r->account_blocks_max < l->kv_blocks;
    const int n_blocks = bounded ? r->account_blocks_max : l->kv_blocks;
    const int64_t pool_tokens = (int64_t)n_blocks * l->block_tokens;
    if (min_i64(wanted, l->context) > pool_tokens) return E_TOO_LARGE;

    const int64_t end = r->max_tokens > 0 ? wanted : l->context;
    const int len_max = min_i64(min_i64(end, l->context), pool_tokens);
    layout lay;
    if (!plan_layout(r, l, len_max, &lay)) return E_NOMEM;
    seq_group *g = calloc(1, lay.bytes); /* large ones are mapped and touched only as they grow */
    if (g == NULL) return E_NOMEM;
    g->seq = (sequence *)(void *)(g + 1);
    g->request = r;
    g->n_prompt = r->n_prompt;
    g->n_choices = g->n_unfinished = r->n_choices;
    g->len_max = len_max;
    g->max_tokens = r->max_tokens > 0 ? r->max_tokens : INT_MAX;
    g->eog = l->eog;
    g->n_eog = r->ignore_eos ? 0 : l->n_eog;
    g->bias = (token_bias *)(void *)((unsigned char *)g + lay.bias);
    g->needs_host = lay.n_slots > 0;
    fill_bias(g, r);
    for (int c = 0; c < r->n_choices; c++) fill_sequence(g, r, &lay, c);
    *out = g;
    return OK;
}

void seq_group_close(seq_group *g) {
    free(g);
}

void seq_tokens(const sequence *q, int first, int n, int32_t *out) {
    assert(first >= 0 && first + n <= q->n_known);
    for (int i = 0; i < n; i++) out[i] = seq_token(q, first + i);
}

void seq_append(sequence *q, int32_t token) {
    assert(q->n_known < q->group->len_max);
    q->output[q->n_output++] = token;
    q->n_known++;
    seen_add(&q->seen, token, 1);
}

bool seq_is_stop(const sequence *q, int32_t token) {
    const engine_request *r = q->group->request;
    return in_list(q->group->eog, q->group->n_eog, token) ||
           in_list(r->stop_ids, r->n_stop_ids, token);
}

const token_bias *seq_bias(const sequence *q, int n_output, int *n) {
    const seq_group *g = q->group;
    if (n_output < g->request->min_tokens) {
        *n = g->n_bias - g->n_user_forbidden;
        return g->bias + g->n_user_forbidden;
    }
    *n = g->n_user;
    return g->bias;
}

uint64_t seq_seed(const sequence *q) {
    if (q->choice == 0) return q->group->request->seed;
    uint64_t z = q->group->request->seed + (uint64_t)q->choice * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9); /* SplitMix64's finaliser */
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
