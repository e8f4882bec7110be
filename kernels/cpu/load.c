/* Weights: checks the shape, counts the memory, takes it in one piece, and repacks every tensor
 * with all threads. */
#include <math.h>
#include <string.h>

#include "base/limits.h"
#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/dequant.h"

/* What the kernels rely on. The loader of the file has checked most of it already. */
static status check_shape(const model_desc *m, error *err) {
    if (m->n_layers < 1 || m->n_layers > LIMIT_LAYERS || m->n_embd < 1 || m->n_embd > LIMIT_EMBED ||
        m->n_ff < 1 || m->n_ff > (1 << 24) || m->n_vocab < 1 || m->n_vocab > LIMIT_VOCAB ||
        m->context_length < 1 || m->context_length > LIMIT_CONTEXT)
        return error_set(err, E_INVAL,
                         "%s: layers %d, embedding %d, feed-forward %d, vocabulary "
                         "%d, context %d: out of range",
                         m->architecture, m->n_layers, m->n_embd, m->n_ff, m->n_vocab,
                         m->context_length);
    if (m->head_dim < 2 || m->head_dim > KV_HEAD_DIM_MAX || m->head_dim % 2 != 0)
        return error_set(err, E_UNSUPPORTED,
                         "%s: head size %d: the CPU backend has even sizes up "
                         "to %d",
                         m->architecture, m->head_dim, KV_HEAD_DIM_MAX);
    if (m->n_heads < 1 || m->n_heads > LIMIT_HEADS || m->n_kv_heads < 1 ||
        m->n_heads % m->n_kv_heads != 0)
        return error_set(err, E_INVAL, "%s: %d heads over %d KV heads", m->architecture, m->n_heads,
                         m->n_kv_heads);
    if (m->n_kv_heads > KV_HEADS_MAX)
        return error_set(err, E_UNSUPPORTED, "%s: %d KV heads: the CPU backend takes %d",
                         m->architecture, m->n_kv_heads, KV_HEADS_MAX);
    if (m->n_rot < 0 || m->n_rot > m->head_dim || m->n_rot % 2 != 0 ||
        (m->n_rot > 0 && m->rope_freq == NULL))
        return error_set(err, E_INVAL, "%s: %d rotary dims of %d", m->architecture, m->n_rot,
                         m->head_dim);
    if (!(m->norm_eps > 0.0f) || !isfinite(m->norm_eps) || !isfinite(m->attn_scale) ||
        m->sliding_window < 0)
        return error_set(err, E_INVAL, "%s: norm epsilon, attention scale or window out of range",
                         m->architecture);
    return OK;
}

/* Plans (cursor without memory) or makes (with it) one matrix. */
typedef struct loader {
    cpu_backend *b;
    memory_cursor at;
    error *err;
    backend_progress *progress;
    void *progress_ctx;
    size_t n_bytes_all; /* 0 while planning */
    status failed;      /* first failure: later calls do nothing */
} loader;

typedef struct pack_job {
    const pack *w;
    const tensor_view *t;
    int panels_task;
} pack_job;

static void pack_task(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const pack_job *j = ctx;
    const int p0 = i_task * j->panels_task, p1 = p0 + j->panels_task;
    pack_panels(j->w, j->t, p0, p1 < j->w->n_panels ? p1 : j->w->n_panels);
}

static void matrix(loader *l, const tensor_view *t, int n_in, int n_out, pack *out) {
    if (l->failed != OK) return;
    if (t->data == NULL || t->n_in != n_in || t->n_out != n_out) {
        l->failed = error_set(l->err, E_INVAL, "%s: [%d, %d] where [%d, %d] was expected",
                              t->name != NULL ? t->name : "?", t->n_in, t->n_out, n_in, n_out);
        return;
    }
    pack p;
    l->failed = pack_plan(t, &p, l->err);
    if (l->failed != OK) return;
    p.data = memory_take(&l->at, 1, pack_bytes(&p));
    if (p.data == NULL) return; /* planning */
    pack_job j = {.w = &p, .t = t, .panels_task = p.n_panels / 256 + 1};
    pool_run(l->b->pool, (p.n_panels + j.panels_task - 1) / j.panels_task, pack_task, &j);
    *out = p;
    if (l->progress != NULL)
        l->progress(l->progress_ctx, (double)l->at.used / (double)l->n_bytes_all);
}

/* A float vector padded with zeros to a multiple of 32; absent: NULL. */
static void vector(loader *l, const tensor_view *t, int n, bool needed, const float **out) {
    if (l->failed != OK || (t->data == NULL && !needed)) return;
    if (t->data == NULL || t->type != DTYPE_F32 || t->n_in != n || t->n_out != 1) {
        l->failed = error_set(l->err, E_INVAL,
                              "%s: [%d, %d] of type %d where %d floats were "
                              "expected",
                              t->name != NULL ? t->name : "?", t->n_in, t->n_out, (int)t->type, n);
        return;
    }
    float *v = memory_take(&l->at, (size_t)pad32(n), sizeof *v);
    if (v == NULL) return;
    memcpy(v, t->data, (size_t)n * sizeof *v);
    *out = v;
}

static void layer(loader *l, const model_desc *m, const layer_desc *d, layer_weights *w) {
    const int q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    vector(l, &d->attn_norm, m->n_embd, true, &w->attn_norm);
    matrix(l, &d->q, m->n_embd, q, &w->q);
    matrix(l, &d->k, m->n_embd, kv, &w->k);
    matrix(l, &d->v, m->n_embd, kv, &w->v);
    vector(l, &d->q_bias, q, false, &w->q_bias);
    vector(l, &d->k_bias, kv, false, &w->k_bias);
    vector(l, &d->v_bias, kv, false, &w->v_bias);
    vector(l, &d->q_norm, m->head_dim, false, &w->q_norm);
    vector(l, &d->k_norm, m->head_dim, false, &w->k_norm);
    matrix(l, &d->o, q, m->n_embd, &w->o);
    vector(l, &d->o_bias, m->n_embd, false, &w->o_bias);
    vector(l, &d->ffn_norm, m->n_embd, true, &w->ffn_norm);
    matrix(l, &d->gate, m->n_embd, m->n_ff, &w->gate);
    matrix(l, &d->up, m->n_embd, m->n_ff, &w->up);
    matrix(l, &d->down, m->n_ff, m->n_embd, &w->down);
}

/* Ids that must not be drawn, as an ascending list. */
static void never_sampled(loader *l, const model_desc *m) {
    int n = 0;
    for (int i = 0; m->never_sampled != NULL && i < m->n_vocab; i++) n += m->never_sampled[i] != 0;
    int32_t *ids = memory_take(&l->at, (size_t)n, sizeof *ids);
    if (ids == NULL) return;
    int at = 0;
    for (int i = 0; n > 0 && i < m->n_vocab; i++) {
        if (m->never_sampled[i] != 0) ids[at++] = i;
    }
    l->b->vocab = (sample_vocab){.n_vocab = m->n_vocab, .never = ids, .n_never = n};
}

static bool same_view(const tensor_view *a, const tensor_view *b) {
    return a->data == b->data && a->type == b->type && a->n_in == b->n_in && a->n_out == b->n_out;
}

/* Runs twice: once to count, once to fill. */
static void everything(loader *l, const model_desc *m) {
    cpu_backend *b = l->b;
    layer_weights *layers = memory_take(&l->at, (size_t)m->n_layers, sizeof *layers);
    layer_weights unused = {0};
    matrix(l, &m->token_embd, m->n_embd, m->n_vocab, &b->embd);
    for (int i = 0; i < m->n_layers; i++)
        layer(l, m, &m->layers[i], layers != NULL ? &layers[i] : &unused);
    vector(l, &m->output_norm, m->n_embd, true, &b->output_norm);
    if (same_view(&m->output, &m->token_embd)) {
        b->output = b->embd;
    } else {
        matrix(l, &m->output, m->n_embd, m->n_vocab, &b->output);
    }
    vector(l, &m->output_bias, m->n_vocab, false, &b->output_bias);
    float *freq = memory_take(&l->at, (size_t)(m->n_rot / 2), sizeof *freq);
    if (freq != NULL && m->n_rot > 0)
        memcpy(freq, m->rope_freq, (size_t)(m->n_rot / 2) * sizeof *freq);
    never_sampled(l, m);
    b->layers = layers;
    b->rope_freq = freq;
}

status cpu_load(backend *base, const model_desc *m, backend_progress *progress, void *ctx,
                error *err) {
    cpu_backend *b = (cpu_backend *)base;
    if (b->loaded) return error_set(err, E_STATE, "a model is loaded already");
    const status s = check_shape(m, err);
    if (s != OK) return s;
    loader plan = {.b = b, .err = err};
    everything(&plan, m);
    if (plan.failed != OK) return plan.failed;

    uint64_t total = 0, available = 0;
    memory_share(&total, &available);
    const size_t need = plan.at.used;
    if (available > 0 && need > available)
        return error_set(err, E_NOMEM, "weights need %zu MiB of memory, %llu MiB are available",
                         need >> 20, (unsigned long long)(available >> 20));
    b->weights = memory_map(need);
    if (b->weights.base == NULL)
        return error_set(err, E_NOMEM, "weights need %zu MiB of memory: the system refuses",
                         need >> 20);
    loader fill = {.b = b,
                   .at = {.base = b->weights.base},
                   .err = err,
                   .progress = progress,
                   .progress_ctx = ctx,
                   .n_bytes_all = need};
    everything(&fill, m);
    if (fill.failed != OK) return fill.failed; /* cannot be: the plan went through */
    b->m = *m;
    b->m.layers = NULL; /* borrowed until here */
    b->m.token_embd = b->m.output = b->m.output_norm = b->m.output_bias = (tensor_view){0};
    b->m.rope_freq = b->rope_freq;
    b->m.never_sampled = NULL;
    b->m.architecture = NULL;
    b->loaded = true;
    if (progress != NULL) progress(ctx, 1.0);
    return OK;
}
