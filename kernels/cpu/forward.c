/* The ops of a step, in the order of engine/model.c. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/rope.h"

/* Row-wise work goes to the pool in groups of this many rows; fewer rows are done on the spot,
 * where waking the others would cost more. */
enum { ROWS_TASK = 8 };

typedef void row_fn(cpu_backend *b, int row, const void *arg);

typedef struct rows_job {
    cpu_backend *b;
    row_fn *fn;
    const void *arg;
    int n_rows;
} rows_job;

static void rows_task(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const rows_job *j = ctx;
    const int end = (i_task + 1) * ROWS_TASK < j->n_rows ? (i_task + 1) * ROWS_TASK : j->n_rows;
    for (int r = i_task * ROWS_TASK; r < end; r++) j->fn(j->b, r, j->arg);
}

static void for_rows(cpu_backend *b, int n_rows, row_fn *fn, const void *arg) {
    rows_job j = {.b = b, .fn = fn, .arg = arg, .n_rows = n_rows};
    pool_run(b->pool, (n_rows + ROWS_TASK - 1) / ROWS_TASK, rows_task, &j);
}

/* ---- begin ---- */

static status check_step(const cpu_backend *b, const step *s) {
    const backend_limits *l = &b->limits;
    if (s->n_tokens < 1 || s->n_tokens > l->n_tokens_max || s->n_seqs < 1 ||
        s->n_seqs > l->n_seqs_max || s->n_samples < 0 || s->n_samples > l->n_samples_max)
        return E_INVAL;
    if (s->seq_start[0] != 0 || s->seq_start[s->n_seqs] != s->n_tokens) return E_INVAL;
    for (int i = 0; i < s->n_tokens; i++) {
        if (s->token[i] < 0 || s->token[i] >= b->m.n_vocab) return E_INVAL;
    }
    for (int i = 0; i < s->n_blocks; i++) {
        if (s->block[i] < 0 || s->block[i] >= b->kv_blocks) return E_INVAL;
    }
    for (int i = 0; i < s->n_copies; i++) {
        const block_copy c = s->copies[i];
        if (c.from < 0 || c.from >= b->kv_blocks || c.to < 0 || c.to >= b->kv_blocks ||
            c.from == c.to)
            return E_INVAL;
    }
    for (int i = 0; i < s->n_seqs; i++) {
        const int n = s->seq_start[i + 1] - s->seq_start[i];
        const int64_t room =
            (int64_t)(s->block_start[i + 1] - s->block_start[i]) * b->kv.block_tokens;
        if (n < 1 || s->kv_len[i] < n || s->kv_len[i] > room || s->block_start[i] < 0 ||
            s->block_start[i + 1] > s->n_blocks)
            return E_INVAL;
    }
    for (int i = 0; i < s->n_samples; i++) {
        if (s->sample[i].row < 0 || s->sample[i].row >= s->n_tokens ||
            s->sample[i].target >= b->m.n_vocab)
            return E_INVAL;
    }
    return OK;
}

static void copy_blocks(cpu_backend *b, const step *s) {
    uint8_t *base = b->kv_pool.base;
    for (int i = 0; i < s->n_copies; i++)
        memcpy(base + (size_t)s->copies[i].to * b->kv.block_bytes,
               base + (size_t)s->copies[i].from * b->kv.block_bytes, b->kv.block_bytes);
}

static void angles_row(cpu_backend *b, int row, const void *arg) {
    (void)arg;
    rope_angles(b->w.position[row], b->rope_freq, b->m.n_rot, b->m.rope_mscale,
                b->w.cos_sin + (size_t)row * (size_t)b->m.n_rot);
}

/* What depends on the batch only: positions, angles, the tiles of attention. */
static void plan(cpu_backend *b, const step *s) {
    b->n_tiles = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        const int start = s->seq_start[i], end = s->seq_start[i + 1];
        for (int r = start; r < end; r++) {
            b->w.seq[r] = i;
            b->w.position[r] = s->kv_len[i] - (end - r);
        }
        for (int r = start; r < end; r += QUERY_TOKENS)
            b->w.tiles[b->n_tiles++] =
                (query_tile){.seq = i,
                             .row = r,
                             .n_rows = end - r < QUERY_TOKENS ? end - r : QUERY_TOKENS,
                             .position = b->w.position[r]};
    }
    if (b->m.n_rot > 0) for_rows(b, s->n_tokens, angles_row, NULL);
}

status cpu_begin_step(backend *base, const step *s) {
    cpu_backend *b = (cpu_backend *)base;
    if (b->work.base == NULL || b->in_step) return E_STATE;
    const status ok = check_step(b, s);
    if (ok != OK) return ok;
    b->s = s;
    b->in_step = true;
    copy_blocks(b, s);
    plan(b, s);
    return OK;
}

status cpu_end_step(backend *base) {
    cpu_backend *b = (cpu_backend *)base;
    assert(b->in_step);
    b->in_step = false;
    b->n_results = b->s->n_samples;
    b->s = NULL;
    return OK;
}

/* ---- rows ---- */

static void embed_row(cpu_backend *b, int row, const void *arg) {
    (void)arg;
    pack_row(&b->embd, b->s->token[row], b->w.x + (size_t)row * (size_t)b->w.embd_ld);
}

status cpu_embed(backend *base) {
    cpu_backend *b = (cpu_backend *)base;
    for_rows(b, b->s->n_tokens, embed_row, NULL);
    return OK;
}

static void quantise_row(const cpu_kernels *k, const float *x, int n_blocks, act_block *q,
                         int row) {
    k->quantise(x, n_blocks, q + (size_t)(row / ACT_ROWS) * (size_t)n_blocks, row % ACT_ROWS);
}

/* Normalised rows, as floats and quantised. */
typedef struct norm_arg {
    const float *weight;
    const sample_row *rows; /* NULL: row r is row r */
} norm_arg;

static void norm_row(cpu_backend *b, int row, const void *arg) {
    const norm_arg *n = arg;
    const int ld = b->w.embd_ld, from = n->rows != NULL ? n->rows[row].row : row;
    float *y = b->w.normed + (size_t)row * (size_t)ld;
    b->kernels->rms_norm(y, b->w.x + (size_t)from * (size_t)ld, n->weight, b->m.n_embd, ld,
                         b->m.norm_eps);
    quantise_row(b->kernels, y, ld / PACK_BLOCK, b->w.in_q, row);
}

static act normed(cpu_backend *b, int n_rows, const float *weight, const sample_row *rows) {
    const norm_arg arg = {.weight = weight, .rows = rows};
    for_rows(b, n_rows, norm_row, &arg);
    return (act){.f = b->w.normed,
                 .ld = (size_t)b->w.embd_ld,
                 .q = b->w.in_q,
                 .n_blocks = b->w.embd_ld / PACK_BLOCK};
}

/* ---- attention ---- */

static void norm_heads(cpu_backend *b, float *x, int n_heads, const float *weight) {
    float padded[KV_HEAD_DIM_MAX + 32] = {0}; /* the kernel wants zeros up to a multiple of 16 */
    const int n = b->m.head_dim;
    for (int h = 0; h < n_heads; h++, x += n) {
        memcpy(padded, x, (size_t)n * sizeof *x);
        b->kernels->rms_norm(padded, padded, weight, n, pad32(n), b->m.norm_eps);
        memcpy(x, padded, (size_t)n * sizeof *x);
    }
}

static void rope_and_append_row(cpu_backend *b, int row, const void *arg) {
    const int layer = *(const int *)arg;
    const model_desc *m = &b->m;
    const layer_weights *w = &b->layers[layer];
    float *q = b->w.q + (size_t)row * (size_t)b->w.q_ld;
    float *k = b->w.k + (size_t)row * (size_t)b->w.kv_ld;
    const float *v = b->w.v + (size_t)row * (size_t)b->w.kv_ld;
    const float *cos_sin = b->w.cos_sin + (size_t)row * (size_t)m->n_rot;
    if (w->q_norm != NULL) norm_heads(b, q, m->n_heads, w->q_norm);
    if (w->k_norm != NULL) norm_heads(b, k, m->n_kv_heads, w->k_norm);
    rope_rotate(q, m->n_heads, m->head_dim, cos_sin, m->n_rot, m->rope_neox);
    rope_rotate(k, m->n_kv_heads, m->head_dim, cos_sin, m->n_rot, m->rope_neox);
    const int position = b->w.position[row], tokens = b->kv.block_tokens;
    const int32_t block = b->s->block[b->s->block_start[b->w.seq[row]] + position / tokens];
    kv_append(&b->kv, b->kv_pool.base, block, position % tokens, layer, k, v);
}

status cpu_qkv(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    const int n = b->s->n_tokens;
    linear_job j = {.b = b,
                    .in = normed(b, n, w->attn_norm, NULL),
                    .n_rows = n,
                    .n_matrices = 3,
                    .matrix = {{&w->q, b->w.q, (size_t)b->w.q_ld, w->q_bias},
                               {&w->k, b->w.k, (size_t)b->w.kv_ld, w->k_bias},
                               {&w->v, b->w.v, (size_t)b->w.kv_ld, w->v_bias}}};
    linear_run(&j);
    for_rows(b, n, rope_and_append_row, &layer);
    return OK;
}

typedef struct attention_job {
    const cpu_backend *b;
    int layer;
} attention_job;

/* Tasks from the last tile to the first: within a sequence the last ones are the longest. */
static void attention_tile(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const attention_job *j = ctx;
    const cpu_backend *b = j->b;
    const model_desc *m = &b->m;
    const int n_group = m->n_heads / m->n_kv_heads, head = i_task % m->n_kv_heads;
    const query_tile *t = &b->w.tiles[b->n_tiles - 1 - i_task / m->n_kv_heads];
    const size_t at = (size_t)t->row * (size_t)b->w.q_ld + (size_t)(head * n_group * m->head_dim);
    const attention_task task = {.q = b->w.q + at,
                                 .out = b->w.attended + at,
                                 .q_ld = (size_t)b->w.q_ld,
                                 .out_ld = (size_t)b->w.q_ld,
                                 .kv = &b->kv,
                                 .pool = b->kv_pool.base,
                                 .blocks = b->s->block + b->s->block_start[t->seq],
                                 .layer = j->layer,
                                 .kv_head = head,
                                 .n_group = n_group,
                                 .position = t->position,
                                 .n_rows = t->n_rows,
                                 .scale = m->attn_scale,
                                 .window = m->sliding_window};
    b->kernels->attention(&task);
}

status cpu_attention(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    attention_job j = {.b = b, .layer = layer};
    pool_run(b->pool, b->n_tiles * b->m.n_kv_heads, attention_tile, &j);
    return OK;
}

static void quantise_attended_row(cpu_backend *b, int row, const void *arg) {
    (void)arg;
    quantise_row(b->kernels, b->w.attended + (size_t)row * (size_t)b->w.q_ld,
                 b->w.q_ld / PACK_BLOCK, b->w.in_q, row);
}

status cpu_attn_output(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    const int n = b->s->n_tokens;
    for_rows(b, n, quantise_attended_row, NULL);
    linear_job j = {.b = b,
                    .in = {.f = b->w.attended,
                           .ld = (size_t)b->w.q_ld,
                           .q = b->w.in_q,
                           .n_blocks = b->w.q_ld / PACK_BLOCK},
                    .n_rows = n,
                    .n_matrices = 1,
                    .matrix = {{&w->o, b->w.x, (size_t)b->w.embd_ld, w->o_bias}},
                    .add = true};
    linear_run(&j);
    return OK;
}

/* ---- feed-forward ---- */

typedef struct gate_up_job {
    cpu_backend *b;
    const layer_weights *w;
    act in;
    int n_rows, n_columns; /* blocks of 32 outputs */
} gate_up_job;

/* 32 outputs of gate and up for up to FFN_TOKENS rows: h, and its quantised block at once. */
static void gate_up_task(void *ctx, int i_task, int i_thread) {
    const gate_up_job *j = ctx;
    cpu_backend *b = j->b;
    const int row0 = i_task / j->n_columns * FFN_TOKENS, block = i_task % j->n_columns;
    const int n = j->n_rows - row0 < FFN_TOKENS ? j->n_rows - row0 : FFN_TOKENS;
    const int ff_blocks = b->w.ff_ld / PACK_BLOCK;
    float *up = b->w.up + (size_t)i_thread * FFN_TOKENS * PACK_BLOCK;
    float *h = b->w.h + (size_t)row0 * (size_t)b->w.ff_ld + (size_t)block * PACK_BLOCK;
    const int p0 = 2 * block, n_panels = j->w->gate.n_panels;
    const int p1 = p0 + 2 < n_panels ? p0 + 2 : n_panels; /* padding past it stays zero */
    const linear_out g = {.y = h, .ld = (size_t)b->w.ff_ld}, u = {.y = up, .ld = PACK_BLOCK};
    b->kernels->linear(&j->w->gate, &j->in, p0, p1, row0, n, &g);
    b->kernels->linear(&j->w->up, &j->in, p0, p1, row0, n, &u);
    for (int r = 0; r < n; r++) {
        float *hr = h + (size_t)r * (size_t)b->w.ff_ld;
        b->kernels->silu_mul(hr, up + r * PACK_BLOCK, (p1 - p0) * PACK_ROWS);
        act_block *q = b->w.h_q + (size_t)((row0 + r) / ACT_ROWS) * (size_t)ff_blocks + block;
        b->kernels->quantise(hr, 1, q, (row0 + r) % ACT_ROWS);
    }
}

status cpu_gate_up(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    const int n = b->s->n_tokens;
    gate_up_job j = {.b = b,
                     .w = w,
                     .in = normed(b, n, w->ffn_norm, NULL),
                     .n_rows = n,
                     .n_columns = b->w.ff_ld / PACK_BLOCK};
    pool_run(b->pool, (n + FFN_TOKENS - 1) / FFN_TOKENS * j.n_columns, gate_up_task, &j);
    return OK;
}

status cpu_down(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    linear_job j = {.b = b,
                    .in = {.f = b->w.h,
                           .ld = (size_t)b->w.ff_ld,
                           .q = b->w.h_q,
                           .n_blocks = b->w.ff_ld / PACK_BLOCK},
                    .n_rows = b->s->n_tokens,
                    .n_matrices = 1,
                    .matrix = {{&w->down, b->w.x, (size_t)b->w.embd_ld, NULL}},
                    .add = true};
    linear_run(&j);
    return OK;
}

/* ---- head ---- */

status cpu_head(backend *base) {
    cpu_backend *b = (cpu_backend *)base;
    const int n = b->s->n_samples;
    if (n == 0) return OK;
    linear_job j = {.b = b,
                    .in = normed(b, n, b->output_norm, b->s->sample),
                    .n_rows = n,
                    .n_matrices = 1,
                    .matrix = {{&b->output, b->w.logits, (size_t)b->w.vocab_ld, b->output_bias}}};
    linear_run(&j);
    return OK;
}

static void sample_task(void *ctx, int i_task, int i_thread) {
    cpu_backend *b = ctx;
    sample_answer(b->kernels, &b->vocab, b->w.logits + (size_t)i_task * (size_t)b->w.vocab_ld,
                  &b->s->sample[i_task], b->s->bias, b->s->seen, &b->w.scratch[i_thread],
                  &b->w.results[i_task]);
}

status cpu_sample(backend *base) {
    cpu_backend *b = (cpu_backend *)base;
    pool_run(b->pool, b->s->n_samples, sample_task, b);
    return OK;
}
