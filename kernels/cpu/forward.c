/* The ops of a step, in the order of engine/model.c. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/rope.h"

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

/* The residual stream, normalised. */
static linear_input normed(const cpu_backend *b, const float *weight) {
    return (linear_input){.x = b->w.x, .ld = (size_t)b->w.embd_ld, .norm = weight};
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
                    .input = normed(b, w->attn_norm),
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
    int heads_task, n_columns; /* query heads of a task; tasks of a tile */
} attention_job;

/* Tasks from the last tile to the first: within a sequence the last ones are the longest. */
static void attention_tile(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const attention_job *j = ctx;
    const cpu_backend *b = j->b;
    const model_desc *m = &b->m;
    const int head = i_task % j->n_columns * j->heads_task;
    const query_tile *t = &b->w.tiles[b->n_tiles - 1 - i_task / j->n_columns];
    const size_t at = (size_t)t->row * (size_t)b->w.q_ld + (size_t)(head * m->head_dim);
    const attention_task task = {.q = b->w.q + at,
                                 .out = b->w.attended + at,
                                 .q_ld = (size_t)b->w.q_ld,
                                 .out_ld = (size_t)b->w.q_ld,
                                 .kv = &b->kv,
                                 .pool = b->kv_pool.base,
                                 .blocks = b->s->block + b->s->block_start[t->seq],
                                 .layer = j->layer,
                                 .kv_head = head / (m->n_heads / m->n_kv_heads),
                                 .n_group = j->heads_task,
                                 .position = t->position,
                                 .n_rows = t->n_rows,
                                 .scale = m->attn_scale,
                                 .window = m->sliding_window};
    b->kernels->attention(&task);
}

status cpu_attention(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const model_desc *m = &b->m;
    attention_job j = {.b = b, .layer = layer, .heads_task = m->n_heads / m->n_kv_heads};
    /* With few tasks, a head each: sharing K and V gains less than equal loads. */
    if (b->n_tiles * m->n_kv_heads < 4 * pool_n_threads(b->pool)) j.heads_task = 1;
    j.n_columns = m->n_heads / j.heads_task;
    pool_run(b->pool, b->n_tiles * j.n_columns, attention_tile, &j);
    return OK;
}

status cpu_attn_output(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    linear_job j = {.b = b,
                    .input = {.x = b->w.attended, .ld = (size_t)b->w.q_ld},
                    .n_rows = b->s->n_tokens,
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
    linear_input input;
    act in;     /* many rows */
    int n_rows; /* all */
    int n_blocks, blocks_task,
        n_columns; /* of 32 outputs; many rows: a task's, tasks side by side */
} gate_up_job;

/* Blocks [b0, b1) of 32 outputs of h = silu(gate) up for n_rows rows from row0; up: [n_rows][up_ld]
 * for scratch. */
static void gate_up_blocks(const gate_up_job *j, const act *in, int b0, int b1, int row0,
                           int n_rows, float *up, size_t up_ld) {
    const cpu_backend *b = j->b;
    const size_t ld = (size_t)b->w.ff_ld;
    float *h = b->w.h + (size_t)row0 * ld + (size_t)b0 * PACK_BLOCK;
    const int p0 = 2 * b0, n_panels = j->w->gate.n_panels;
    const int p1 = 2 * b1 < n_panels ? 2 * b1 : n_panels; /* padding past it stays zero */
    const linear_out g = {.y = h, .ld = ld}, u = {.y = up, .ld = up_ld};
    b->kernels->linear(&j->w->gate, in, p0, p1, row0, n_rows, &g);
    b->kernels->linear(&j->w->up, in, p0, p1, row0, n_rows, &u);
    for (int r = 0; r < n_rows; r++)
        b->kernels->silu_mul(h + (size_t)r * ld, up + (size_t)r * up_ld, (p1 - p0) * PACK_ROWS);
}

static void gate_up_few(void *ctx, int i_task, int i_thread) {
    const gate_up_job *j = ctx;
    const act in = linear_input_own(j->b, &j->input, j->n_rows, i_thread);
    const int n_tasks = pool_n_threads(j->b->pool), ld = j->b->w.ff_ld;
    const int b0 = linear_share(j->n_blocks, i_task, n_tasks);
    const int b1 = linear_share(j->n_blocks, i_task + 1, n_tasks);
    if (b0 < b1)
        gate_up_blocks(j, &in, b0, b1, 0, j->n_rows, j->b->w.up + b0 * PACK_BLOCK, (size_t)ld);
}

/* Up to FFN_TOKENS rows: h, and its quantised blocks at once. */
static void gate_up_many(void *ctx, int i_task, int i_thread) {
    const gate_up_job *j = ctx;
    cpu_backend *b = j->b;
    enum { UP_LD = FFN_BLOCKS * PACK_BLOCK };
    const int row0 = i_task / j->n_columns * FFN_TOKENS,
              b0 = i_task % j->n_columns * j->blocks_task;
    const int n = j->n_rows - row0 < FFN_TOKENS ? j->n_rows - row0 : FFN_TOKENS;
    const int b1 = b0 + j->blocks_task < j->n_blocks ? b0 + j->blocks_task : j->n_blocks;
    gate_up_blocks(j, &j->in, b0, b1, row0, n, b->w.up + (size_t)i_thread * FFN_TOKENS * UP_LD,
                   UP_LD);
    for (int r = row0; r < row0 + n; r++) {
        const float *h = b->w.h + (size_t)r * (size_t)b->w.ff_ld + (size_t)b0 * PACK_BLOCK;
        act_block *q = b->w.h_q + (size_t)(r / ACT_ROWS) * (size_t)j->n_blocks + b0;
        b->kernels->quantise(h, b1 - b0, q, r % ACT_ROWS);
    }
}

status cpu_gate_up(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    const int n = b->s->n_tokens, n_threads = pool_n_threads(b->pool);
    gate_up_job j = {.b = b,
                     .w = w,
                     .input = normed(b, w->ffn_norm),
                     .n_rows = n,
                     .n_blocks = b->w.ff_ld / PACK_BLOCK};
    if (n <= FEW_ROWS) {
        pool_run(b->pool, n_threads, gate_up_few, &j);
        return OK;
    }
    j.in = linear_input_shared(b, &j.input, n);
    /* Wide tasks keep a panel's stream going, many keep the threads equally busy. */
    const int n_row_chunks = (n + FFN_TOKENS - 1) / FFN_TOKENS;
    j.blocks_task = n_row_chunks * j.n_blocks / (6 * n_threads);
    if (j.blocks_task < 1) j.blocks_task = 1;
    if (j.blocks_task > FFN_BLOCKS) j.blocks_task = FFN_BLOCKS;
    j.n_columns = (j.n_blocks + j.blocks_task - 1) / j.blocks_task;
    pool_run(b->pool, n_row_chunks * j.n_columns, gate_up_many, &j);
    return OK;
}

status cpu_down(backend *base, int layer) {
    cpu_backend *b = (cpu_backend *)base;
    const layer_weights *w = &b->layers[layer];
    linear_job j = {.b = b,
                    .input = {.x = b->w.h, .ld = (size_t)b->w.ff_ld, .q = b->w.h_q},
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
    linear_input input = normed(b, b->output_norm);
    input.rows = b->s->sample;
    linear_job j = {.b = b,
                    .input = input,
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
