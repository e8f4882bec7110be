#include "rig.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model.h"

static status allocate(rig *r) {
    const rig_options *o = &r->o;
    step *s = &r->s;
    s->token = calloc((size_t)o->n_tokens_max, sizeof *s->token);
    s->seq_start = calloc((size_t)o->n_seqs_max + 1, sizeof *s->seq_start);
    s->kv_len = calloc((size_t)o->n_seqs_max, sizeof *s->kv_len);
    s->block_start = calloc((size_t)o->n_seqs_max + 1, sizeof *s->block_start);
    s->block = calloc((size_t)o->n_seqs_max * RIG_SEQ_BLOCKS, sizeof *s->block);
    s->sample = calloc((size_t)o->n_samples_max, sizeof *s->sample);
    s->bias = calloc(RIG_LISTS_MAX, sizeof *s->bias);
    s->seen = calloc(RIG_LISTS_MAX, sizeof *s->seen);
    s->copies = calloc(RIG_COPIES_MAX, sizeof *s->copies);
    r->out = calloc((size_t)o->n_samples_max, sizeof *r->out);
    r->free_blocks = calloc((size_t)r->memory.kv_blocks, sizeof *r->free_blocks);
    if (s->token == NULL || s->seq_start == NULL || s->kv_len == NULL || s->block_start == NULL ||
        s->block == NULL || s->sample == NULL || s->bias == NULL || s->seen == NULL ||
        s->copies == NULL || r->out == NULL || r->free_blocks == NULL)
        return E_NOMEM;
    r->n_free = r->memory.kv_blocks;
    for (int i = 0; i < r->n_free; i++) r->free_blocks[i] = i;
    for (int i = r->n_free - 1; i > 0; i--) { /* a fixed scatter */
        const int j = (int)(((uint64_t)i * 2654435761u + 12345u) % (uint64_t)(i + 1));
        const int32_t t = r->free_blocks[i];
        r->free_blocks[i] = r->free_blocks[j];
        r->free_blocks[j] = t;
    }
    return OK;
}

static status open_backend(rig *r, error *err) {
    const backend_options bo = {.threads = r->o.threads, .deterministic = r->o.deterministic};
    const backend_limits want = {.n_tokens_max = r->o.n_tokens_max,
                                 .n_seqs_max = r->o.n_seqs_max,
                                 .n_samples_max = r->o.n_samples_max,
                                 /* rows of one request share its lists: each row counts them */
                                 .n_bias_max = RIG_LISTS_MAX,
                                 .n_seen_max = RIG_LISTS_MAX,
                                 .kv_block_tokens = r->o.kv_block_tokens,
                                 .n_copies_max = RIG_COPIES_MAX,
                                 .kv_blocks = r->o.kv_blocks,
                                 .kv_type = -1};
    status s = backend_open(r->o.backend, &bo, &r->b, err);
    if (s != OK) {
        r->b = NULL;
        return s;
    }
    s = r->b->ops->load(r->b, r->desc, NULL, NULL, err);
    if (s == OK) s = r->b->ops->reserve(r->b, &want, &r->memory, err);
    if (s == OK) s = allocate(r);
    return s;
}

status rig_open_desc(rig *r, const rig_options *o, const model_desc *desc, error *err) {
    *r = (rig){.o = *o, .desc = desc};
    const status s = open_backend(r, err);
    if (s != OK) rig_close(r);
    return s;
}

status rig_open_file(rig *r, const rig_options *o, const char *path, int context_length,
                     error *err) {
    *r = (rig){.o = *o};
    status s = gguf_open(path, &r->g, err);
    if (s == OK) s = weights_open(r->g, context_length, &r->w, err);
    if (s == OK) {
        r->desc = weights_desc(r->w);
        s = open_backend(r, err);
    }
    if (s != OK) rig_close(r);
    return s;
}

void rig_close(rig *r) {
    if (r->b != NULL) r->b->ops->close(r->b);
    free(r->s.token);
    free(r->s.seq_start);
    free(r->s.kv_len);
    free(r->s.block_start);
    free(r->s.block);
    free(r->s.sample);
    free(r->s.bias);
    free(r->s.seen);
    free(r->s.copies);
    free(r->out);
    free(r->logits);
    free(r->free_blocks);
    weights_close(r->w);
    gguf_close(r->g);
    *r = (rig){0};
}

static int32_t take_block(rig *r) {
    assert(r->n_free > 0);
    return r->free_blocks[--r->n_free];
}

int rig_add(rig *r, rig_seq *seq, const int32_t *ids, int n) {
    step *s = &r->s;
    const int first = s->n_tokens;
    assert(n > 0 && s->n_tokens + n <= r->o.n_tokens_max && s->n_seqs < r->o.n_seqs_max);
    memcpy(s->token + first, ids, (size_t)n * sizeof *ids);
    seq->len += n;
    while (seq->n_blocks * r->o.kv_block_tokens < seq->len) {
        assert(seq->n_blocks < RIG_SEQ_BLOCKS);
        seq->block[seq->n_blocks++] = take_block(r);
    }
    if (n == 1 && s->n_decode == s->n_seqs) s->n_decode++;
    s->kv_len[s->n_seqs] = seq->len;
    memcpy(s->block + s->n_blocks, seq->block, (size_t)seq->n_blocks * sizeof *seq->block);
    s->n_blocks += seq->n_blocks;
    s->n_tokens += n;
    s->n_seqs++;
    s->seq_start[s->n_seqs] = s->n_tokens;
    s->block_start[s->n_seqs] = s->n_blocks;
    return first;
}

sample_row *rig_sample(rig *r, int row) {
    step *s = &r->s;
    assert(s->n_samples < r->o.n_samples_max && row < s->n_tokens);
    assert(s->n_samples == 0 || s->sample[s->n_samples - 1].row < row);
    sample_row *p = &s->sample[s->n_samples++];
    *p = (sample_row){.row = row,
                      .target = -1,
                      .repetition_penalty = 1,
                      .i_bias = s->n_bias,
                      .i_seen = s->n_seen};
    return p;
}

void rig_add_bias(rig *r, sample_row *p, int32_t token, float bias) {
    assert(r->s.n_bias < RIG_LISTS_MAX);
    r->s.bias[r->s.n_bias++] = (token_bias){token, bias};
    p->n_bias++;
}

void rig_add_seen(rig *r, sample_row *p, int32_t token, int n_output) {
    assert(r->s.n_seen < RIG_LISTS_MAX);
    r->s.seen[r->s.n_seen++] = (token_seen){token, n_output};
    p->n_seen++;
}

void rig_fork(rig *r, const rig_seq *from, int n_tokens, rig_seq *to) {
    const int whole = n_tokens / r->o.kv_block_tokens;
    assert(n_tokens <= from->len);
    *to = (rig_seq){.n_blocks = whole, .len = n_tokens};
    memcpy(to->block, from->block, (size_t)whole * sizeof *to->block);
    if (n_tokens % r->o.kv_block_tokens == 0) return;
    to->block[to->n_blocks++] = take_block(r);
    assert(r->s.n_copies < RIG_COPIES_MAX);
    r->s.copies[r->s.n_copies++] = (block_copy){from->block[whole], to->block[whole]};
}

void rig_drop(rig *r, rig_seq *seq, int i_block) {
    for (int i = i_block; i < seq->n_blocks; i++) r->free_blocks[r->n_free++] = seq->block[i];
    *seq = (rig_seq){0};
}

static void clear(step *s) {
    s->n_tokens = s->n_seqs = s->n_decode = 0;
    s->n_samples = s->n_bias = s->n_seen = s->n_blocks = s->n_copies = 0;
}

status rig_run(rig *r, error *err) {
    r->n_samples = r->s.n_samples;
    status s = model_forward(r->b, r->desc->n_layers, &r->s);
    if (s == OK) s = r->b->ops->wait_step(r->b, r->out);
    clear(&r->s);
    if (s != OK) return error_set(err, s, "a step failed: %s", status_name(s));
    for (int i = 0; i < r->n_samples; i++)
        if (!r->out[i].finite) return error_set(err, E_INTERNAL, "sample %d is not finite", i);
    return OK;
}

status rig_read_logits(rig *r, error *err) {
    const size_t n = (size_t)r->n_samples * (size_t)r->desc->n_vocab;
    if (n > r->logits_capacity) {
        float *more = realloc(r->logits, n * sizeof *more);
        if (more == NULL) return error_set(err, E_NOMEM, "%zu logits", n);
        r->logits = more;
        r->logits_capacity = n;
    }
    const status s = r->b->ops->read_logits(r->b, r->logits, n);
    return s == OK ? OK : error_set(err, s, "read_logits: %s", status_name(s));
}

const float *rig_logits(const rig *r, int i_sample) {
    return r->logits + (size_t)i_sample * (size_t)r->desc->n_vocab;
}
