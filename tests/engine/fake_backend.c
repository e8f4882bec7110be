#include "tests/engine/fake_backend.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEPTH_MAX = 2 };

typedef struct slot { /* one position of the KV memory */
    uint64_t history;
    int32_t token, position;
    bool poison;
} slot;

typedef struct flight { /* a step queued and not waited for */
    sampled *result;
    int n_samples;
} flight;

typedef struct fake {
    backend base;
    struct backend_ops ops;
    fake_options o;
    backend_limits cap;
    slot *kv;      /* [kv_blocks, block_tokens] */
    long *used;    /* [kv_blocks] last step that had the block in a table */
    long *copied;  /* [kv_blocks] last step that copied into the block */
    long *touched; /* [kv_blocks] last step that had it, and by which sequence */
    int *toucher;  /* [kv_blocks] */
    bool *written; /* [kv_blocks] written by toucher in that step */
    float *logits; /* [n_samples, FAKE_VOCAB] of the newest step */
    flight ring[DEPTH_MAX];
    long n_queued, n_waited;
    _Atomic long n_steps;
    const step *now;
} fake;

static uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v + UINT64_C(0x9E3779B97F4A7C15) + (h << 6) + (h >> 2);
    h *= UINT64_C(0xBF58476D1CE4E5B9);
    return h ^ (h >> 29);
}

static float logit(uint64_t history, int v) {
    return (float)(mix(history, (uint64_t)v) >> 40) * (8.0f / 16777216.0f);
}

int fake_greedy(const int *history, int n) {
    uint64_t h = 0;
    int best = 0;
    for (int i = 0; i < n; i++) h = mix(h, (uint64_t)history[i]);
    for (int v = 1; v < FAKE_VOCAB; v++)
        if (logit(h, v) > logit(h, best)) best = v;
    return best;
}

static status load(backend *b, const model_desc *m, backend_progress *progress, void *ctx,
                   error *err) {
    (void)m;
    if (((fake *)b)->o.no_load) return error_set(err, E_UNSUPPORTED, "fake: no load");
    if (progress != NULL) progress(ctx, 1.0);
    return OK;
}

static status reserve(backend *b, const backend_limits *want, backend_memory *got, error *err) {
    fake *f = (fake *)b;
    if (f->o.no_memory) return error_set(err, E_NOMEM, "fake: no memory");
    f->cap = *want;
    if (f->cap.kv_blocks == 0) f->cap.kv_blocks = f->o.kv_blocks;
    const size_t n = (size_t)f->cap.kv_blocks;
    f->kv = calloc(n * (size_t)f->cap.kv_block_tokens, sizeof *f->kv);
    f->used = calloc(n, sizeof *f->used);
    f->copied = calloc(n, sizeof *f->copied);
    f->touched = calloc(n, sizeof *f->touched);
    f->toucher = calloc(n, sizeof *f->toucher);
    f->written = calloc(n, sizeof *f->written);
    f->logits = calloc((size_t)want->n_samples_max * FAKE_VOCAB, sizeof *f->logits);
    assert(f->kv && f->used && f->copied && f->touched && f->toucher && f->written && f->logits);
    for (int i = 0; i < DEPTH_MAX; i++) {
        f->ring[i].result = calloc((size_t)want->n_samples_max, sizeof(sampled));
        assert(f->ring[i].result != NULL);
    }
    *got = (backend_memory){.kv_blocks = f->cap.kv_blocks, .kv_type = DTYPE_F32};
    return OK;
}

static status begin_step(backend *b, const step *s) {
    fake *f = (fake *)b;
    assert(f->now == NULL && f->n_queued - f->n_waited < f->o.depth);
    f->now = s;
    return OK;
}

static status op(backend *b) {
    assert(((fake *)b)->now != NULL);
    return OK;
}

static status layer_op(backend *b, int layer) {
    assert(((fake *)b)->now != NULL && layer == 0);
    return OK;
}

static bool in_flight(const fake *f, int32_t block) {
    return f->used[block] > f->n_waited;
}

static void check_shape(const fake *f, const step *s) {
    const backend_limits *c = &f->cap;
    assert(s->n_seqs > 0 && s->n_seqs <= c->n_seqs_max && s->n_tokens <= c->n_tokens_max);
    assert(s->n_samples <= c->n_samples_max && s->n_blocks <= c->n_blocks_max);
    assert(s->n_bias <= c->n_bias_max && s->n_seen <= c->n_seen_max);
    assert(s->n_copies <= c->n_copies_max && s->n_decode <= s->n_seqs);
    assert(s->seq_start[0] == 0 && s->seq_start[s->n_seqs] == s->n_tokens);
    assert(s->block_start[0] == 0 && s->block_start[s->n_seqs] == s->n_blocks);
    for (int i = 0; i < s->n_seqs; i++) {
        const int rows = s->seq_start[i + 1] - s->seq_start[i], len = s->kv_len[i];
        const int n_blocks = s->block_start[i + 1] - s->block_start[i];
        assert(rows >= 1 && rows <= len && (i >= s->n_decode || rows == 1));
        assert(n_blocks == (len + c->kv_block_tokens - 1) / c->kv_block_tokens);
    }
    for (int i = 0; i < s->n_blocks; i++) assert(s->block[i] >= 0 && s->block[i] < c->kv_blocks);
    for (int i = 0; i < s->n_samples; i++) {
        assert(s->sample[i].row >= 0 && s->sample[i].row < s->n_tokens);
        assert(i == 0 || s->sample[i].row > s->sample[i - 1].row);
    }
}

static void do_copies(fake *f, const step *s, long serial) {
    const size_t bt = (size_t)f->cap.kv_block_tokens;
    for (int i = 0; i < s->n_copies; i++) {
        const int32_t from = s->copies[i].from, to = s->copies[i].to;
        assert(from != to && f->copied[to] != serial && f->copied[from] != serial);
        assert(!in_flight(f, to)); /* somebody's rows may still be writing there */
        f->copied[to] = serial;
        memcpy(f->kv + (size_t)to * bt, f->kv + (size_t)from * bt, bt * sizeof *f->kv);
    }
    for (int i = 0; i < s->n_copies; i++) assert(f->copied[s->copies[i].from] != serial);
}

static slot *slot_at(const fake *f, const step *s, int seq, int pos) {
    const int bt = f->cap.kv_block_tokens;
    const int32_t block = s->block[s->block_start[seq] + pos / bt];
    return &f->kv[(size_t)block * (size_t)bt + (size_t)(pos % bt)];
}

/* A block written in this step is in no other table of it. */
static void check_owners(fake *f, const step *s, int seq, long serial) {
    const int bt = f->cap.kv_block_tokens, len = s->kv_len[seq];
    const int first = len - (s->seq_start[seq + 1] - s->seq_start[seq]);
    for (int k = 0; k < s->block_start[seq + 1] - s->block_start[seq]; k++) {
        const int32_t b = s->block[s->block_start[seq] + k];
        const bool writes = (k + 1) * bt > first;
        if (f->touched[b] == serial) assert(f->toucher[b] != seq && !writes && !f->written[b]);
        f->touched[b] = serial;
        f->toucher[b] = seq;
        f->written[b] = writes;
    }
}

static int32_t token_of(const fake *f, const step *s, int row) {
    const int32_t t = s->token[row];
    if (t >= 0) return t;
    assert(f->o.depth == 2 && f->n_queued > 0);
    const flight *before = &f->ring[(f->n_queued - 1) % DEPTH_MAX];
    assert(~t < before->n_samples);
    const sampled *r = &before->result[~t];
    return r->finite ? r->token : 0; /* a row of a sequence about to end: anything */
}

/* A block begun anew must not be in a step still in flight, unless the same thing is written again
 * (a further choice computes the last prompt token once more). */
static void write_slot(fake *f, const step *s, int seq, int pos, slot value, long serial) {
    const int32_t b = s->block[s->block_start[seq] + pos / f->cap.kv_block_tokens];
    slot *at = slot_at(f, s, seq, pos);
    const bool same = at->history == value.history && at->position == pos;
    if (pos % f->cap.kv_block_tokens == 0)
        assert(!in_flight(f, b) || f->copied[b] == serial || same);
    *at = value;
}

static void write_rows(fake *f, const step *s, int seq, long serial) {
    const int n = s->seq_start[seq + 1] - s->seq_start[seq];
    for (int i = 0; i < n; i++) {
        const int row = s->seq_start[seq] + i, pos = s->kv_len[seq] - n + i;
        const int32_t token = token_of(f, s, row);
        const uint64_t before = pos > 0 ? slot_at(f, s, seq, pos - 1)->history : 0;
        assert(token >= 0 && token < FAKE_VOCAB);
        const slot value = {.history = mix(before, (uint64_t)token),
                            .token = token,
                            .position = pos,
                            .poison = f->o.nan_token > 0 && token == f->o.nan_token};
        write_slot(f, s, seq, pos, value, serial);
    }
}

/* Attention: everything up to pos is one unbroken history. Returns false when some of it is
 * poisoned. */
static bool read_history(const fake *f, const step *s, int seq, int pos, uint64_t *history) {
    bool finite = true;
    uint64_t h = 0;
    for (int p = 0; p <= pos; p++) {
        const slot *k = slot_at(f, s, seq, p);
        h = mix(h, (uint64_t)k->token);
        assert(k->position == p && k->history == h);
        finite = finite && !k->poison;
    }
    *history = h;
    return finite;
}

static void adjust(const step *s, const sample_row *r, float *x) {
    for (int i = 0; i < r->n_bias; i++)
        x[s->bias[r->i_bias + i].token] += s->bias[r->i_bias + i].bias;
    for (int i = 0; i < r->n_seen; i++) {
        const token_seen *t = &s->seen[r->i_seen + i];
        float *v = &x[t->token];
        if (r->repetition_penalty > 0)
            *v = *v > 0 ? *v / r->repetition_penalty : *v * r->repetition_penalty;
        *v -= (float)t->n_output * r->frequency_penalty;
        if (t->n_output > 0) *v -= r->presence_penalty;
    }
}

static int draw(const sample_row *r, const float *x) {
    int best = 0;
    for (int v = 1; v < FAKE_VOCAB; v++)
        if (x[v] > x[best]) best = v;
    if (r->temperature == 0) return best;
    double sum = 0, at = 0;
    for (int v = 0; v < FAKE_VOCAB; v++) sum += exp((double)((x[v] - x[best]) / r->temperature));
    const double u = (double)sample_uniform(r->seed, r->position) * sum;
    for (int v = 0; v < FAKE_VOCAB; v++) {
        at += exp((double)((x[v] - x[best]) / r->temperature));
        if (u < at) return v;
    }
    return best;
}

static sampled sample_one(const step *s, const sample_row *r, uint64_t history, float *raw) {
    float x[FAKE_VOCAB];
    double sum = 0;
    for (int v = 0; v < FAKE_VOCAB; v++) {
        x[v] = raw[v] = logit(history, v);
        sum += exp((double)x[v]);
    }
    sampled out = {.finite = true, .rank = 1, .n_top = r->n_top};
    if (r->target < 0) adjust(s, r, x);
    out.token = r->target >= 0 ? r->target : draw(r, x);
    out.logprob = raw[out.token] - (float)log(sum);
    for (int v = 0; v < FAKE_VOCAB; v++) out.rank += raw[v] > raw[out.token];
    return out;
}

static status end_step(backend *b) {
    fake *f = (fake *)b;
    const step *s = f->now;
    const long serial = f->n_queued + 1;
    flight *out = &f->ring[f->n_queued % DEPTH_MAX];
    check_shape(f, s);
    do_copies(f, s, serial);
    for (int i = 0; i < s->n_seqs; i++) check_owners(f, s, i, serial);
    for (int i = 0; i < s->n_seqs; i++) write_rows(f, s, i, serial);
    for (int i = 0, seq = 0; i < s->n_samples; i++) {
        const sample_row *r = &s->sample[i];
        uint64_t history;
        while (s->seq_start[seq + 1] <= r->row) seq++;
        const int pos = s->kv_len[seq] - (s->seq_start[seq + 1] - r->row);
        if (read_history(f, s, seq, pos, &history))
            out->result[i] = sample_one(s, r, history, f->logits + (size_t)i * FAKE_VOCAB);
        else
            out->result[i] = (sampled){.token = -1};
    }
    for (int i = 0; i < s->n_blocks; i++) f->used[s->block[i]] = serial;
    for (int i = 0; i < s->n_copies; i++) f->used[s->copies[i].from] = serial;
    out->n_samples = s->n_samples;
    f->n_queued++;
    f->now = NULL;
    atomic_fetch_add(&f->n_steps, 1);
    return OK;
}

static status wait_step(backend *b, sampled *out) {
    fake *f = (fake *)b;
    assert(f->n_queued > f->n_waited && f->now == NULL);
    if (f->o.step_us > 0) nanosleep(&(struct timespec){.tv_nsec = 1000L * f->o.step_us}, NULL);
    if (f->o.in_step != NULL) f->o.in_step(f->o.in_step_ctx);
    const flight *r = &f->ring[f->n_waited % DEPTH_MAX];
    f->n_waited++;
    if (f->o.fault_step > 0 && f->n_waited >= f->o.fault_step) return E_DEVICE;
    memcpy(out, r->result, (size_t)r->n_samples * sizeof *out);
    return OK;
}

static status read_logits(backend *b, float *out, size_t out_floats) {
    memcpy(out, ((fake *)b)->logits, out_floats * sizeof *out);
    return OK;
}

static const char *device_name(const backend *b) {
    (void)b;
    return "fake";
}

static void close_fake(backend *b) {
    fake *f = (fake *)b;
    if (f == NULL) return;
    for (int i = 0; i < DEPTH_MAX; i++) free(f->ring[i].result);
    free(f->kv);
    free(f->used);
    free(f->copied);
    free(f->touched);
    free(f->toucher);
    free(f->written);
    free(f->logits);
    free(f);
}

backend *fake_backend_open(const fake_options *o) {
    fake *f = calloc(1, sizeof *f);
    assert(f != NULL && o->depth >= 1 && o->depth <= DEPTH_MAX);
    f->o = *o;
    f->ops = (struct backend_ops){.name = "fake",
                                  .pipeline_depth = o->depth,
                                  .load = load,
                                  .reserve = reserve,
                                  .begin_step = begin_step,
                                  .embed = op,
                                  .qkv = layer_op,
                                  .attention = layer_op,
                                  .attn_output = layer_op,
                                  .gate_up = layer_op,
                                  .down = layer_op,
                                  .head = op,
                                  .sample = op,
                                  .end_step = end_step,
                                  .wait_step = wait_step,
                                  .read_logits = read_logits,
                                  .device_name = device_name,
                                  .close = close_fake};
    f->base.ops = &f->ops;
    return &f->base;
}

void fake_backend_corrupt(backend *b) {
    fake *f = (fake *)b;
    for (int i = 0; i < f->cap.kv_blocks * f->cap.kv_block_tokens; i++) f->kv[i].poison = true;
}

long fake_backend_steps(const backend *b) {
    return atomic_load(&((const fake *)b)->n_steps);
}

model_desc fake_model_desc(int context_length) {
    return (model_desc){.architecture = "fake",
                        .n_layers = 1,
                        .n_vocab = FAKE_VOCAB,
                        .context_length = context_length};
}
