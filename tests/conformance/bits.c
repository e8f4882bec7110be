/* Invariance: a sequence's logits are the same bits however its work is cut, batched, placed in
 * blocks, reused or repeated. A trace is the logits after the prompt and after each decoded token;
 * every variant of a run must reproduce the trace of the plain one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models.h"

enum { DECODED = 6, VARIANTS_MAX = 16 };

typedef struct trace {
    float *logits; /* [DECODED + 1][n_vocab] */
    int32_t token[DECODED + 1];
    int n; /* entries so far */
} trace;

typedef struct bits {
    const suite_context *c;
    const model_case *m;
    rig r;
    trace plain[PROMPTS_MAX];
    char wrong[192]; /* names of the variants that differ */
    int n_wrong, n_checked;
} bits;

static bool trace_init(trace *t, int n_vocab) {
    *t = (trace){.logits = calloc((size_t)(DECODED + 1) * (size_t)n_vocab, sizeof(float))};
    return t->logits != NULL;
}

/* Takes sample i of the last run as t's next entry. */
static void trace_take(trace *t, const rig *r, int i_sample) {
    const size_t n = (size_t)r->desc->n_vocab;
    memcpy(t->logits + (size_t)t->n * n, rig_logits(r, i_sample), n * sizeof(float));
    t->token[t->n++] = r->out[i_sample].token;
}

static status run_and_read(rig *r, error *err) {
    const status s = rig_run(r, err);
    return s == OK ? rig_read_logits(r, err) : s;
}

/* Prefills ids in chunks (0: whole); the last one is sampled. */
static status prefill(rig *r, rig_seq *seq, const int32_t *ids, int n, int chunk, error *err) {
    status s = OK;
    for (int done = 0; done < n && s == OK;) {
        const int now = chunk > 0 && chunk < n - done ? chunk : n - done;
        const int first = rig_add(r, seq, ids + done, now);
        done += now;
        if (done == n) (void)rig_sample(r, first + now - 1);
        s = done == n ? run_and_read(r, err) : rig_run(r, err);
    }
    return s;
}

static status decode(rig *r, rig_seq *seq, trace *t, int until, error *err) {
    status s = OK;
    while (t->n < until && s == OK) {
        (void)rig_sample(r, rig_add(r, seq, &t->token[t->n - 1], 1));
        s = run_and_read(r, err);
        if (s == OK) trace_take(t, r, 0);
    }
    return s;
}

static status run_plain(rig *r, const prompt *p, int chunk, trace *t, error *err) {
    rig_seq seq = {0};
    status s = prefill(r, &seq, p->ids, p->n, chunk, err);
    if (s != OK) return s;
    trace_take(t, r, 0);
    s = decode(r, &seq, t, DECODED + 1, err);
    rig_drop(r, &seq, 0);
    return s;
}

/* All prompts together: prefilled in one step, decoded in one step each time. */
static status run_batched(rig *r, const model_case *m, trace *t, error *err) {
    rig_seq seq[PROMPTS_MAX] = {{.n_blocks = 0}};
    for (int i = 0; i < m->n_prompts; i++) {
        const prompt *p = &m->prompts[i];
        (void)rig_sample(r, rig_add(r, &seq[i], p->ids, p->n) + p->n - 1);
    }
    status s = run_and_read(r, err);
    for (int i = 0; i < m->n_prompts && s == OK; i++) trace_take(&t[i], r, i);
    for (int k = 0; k < DECODED && s == OK; k++) {
        for (int i = 0; i < m->n_prompts; i++)
            (void)rig_sample(r, rig_add(r, &seq[i], &t[i].token[k], 1));
        s = run_and_read(r, err);
        for (int i = 0; i < m->n_prompts && s == OK; i++) trace_take(&t[i], r, i);
    }
    for (int i = 0; i < m->n_prompts; i++) rig_drop(r, &seq[i], 0);
    return s;
}

/* The first prompt decodes while the others are prefilled in pieces of `piece` beside it. */
static status run_mixed(rig *r, const model_case *m, int piece, trace *t, error *err) {
    rig_seq seq[PROMPTS_MAX] = {{.n_blocks = 0}};
    int done[PROMPTS_MAX] = {m->prompts[0].n};
    status s = prefill(r, &seq[0], m->prompts[0].ids, m->prompts[0].n, 0, err);
    if (s == OK) trace_take(&t[0], r, 0);
    for (bool more = true; more && s == OK;) {
        int who[PROMPTS_MAX], n_who = 0;
        for (int i = 0; i < m->n_prompts; i++) { /* decoding ones first */
            if (t[i].n == 0 || t[i].n > DECODED) continue;
            (void)rig_sample(r, rig_add(r, &seq[i], &t[i].token[t[i].n - 1], 1));
            who[n_who++] = i;
        }
        for (int i = 0; i < m->n_prompts; i++) {
            const prompt *p = &m->prompts[i];
            const int now = piece < p->n - done[i] ? piece : p->n - done[i];
            if (now == 0) continue;
            const int first = rig_add(r, &seq[i], p->ids + done[i], now);
            done[i] += now;
            if (done[i] < p->n) continue;
            (void)rig_sample(r, first + now - 1);
            who[n_who++] = i;
        }
        more = r->s.n_tokens > 0;
        if (more) s = run_and_read(r, err);
        for (int k = 0; k < n_who && s == OK && more; k++) trace_take(&t[who[k]], r, k);
    }
    for (int i = 0; i < m->n_prompts; i++) rig_drop(r, &seq[i], 0);
    return s;
}

/* A second sequence takes the whole blocks of the first and computes only the rest. */
static status run_prefix(rig *r, const prompt *p, trace *t, error *err) {
    rig_seq first = {0}, second = {0};
    const int bt = r->o.kv_block_tokens, shared = (p->n - 1) / bt * bt;
    status s = prefill(r, &first, p->ids, p->n, 0, err);
    if (s != OK) return s;
    rig_fork(r, &first, shared, &second);
    s = prefill(r, &second, p->ids + shared, p->n - shared, 0, err);
    if (s == OK) trace_take(t, r, 0);
    if (s == OK) s = decode(r, &second, t, DECODED + 1, err);
    rig_drop(r, &second, shared / bt);
    rig_drop(r, &first, 0);
    return s;
}

/* Half-way the blocks are lost; prompt and output so far are computed again in chunks. */
static status run_preempted(rig *r, const prompt *p, trace *t, error *err) {
    rig_seq seq = {0}, other = {0};
    const int half = DECODED / 2;
    status s = prefill(r, &seq, p->ids, p->n, 0, err);
    if (s != OK) return s;
    trace_take(t, r, 0);
    s = decode(r, &seq, t, half + 1, err);
    rig_drop(r, &seq, 0);
    int32_t *again = malloc(((size_t)p->n + DECODED) * sizeof *again);
    if (again == NULL) return E_NOMEM;
    memcpy(again, p->ids, (size_t)p->n * sizeof *again);
    memcpy(again + p->n, t->token, (size_t)(half + 1) * sizeof *again);
    if (s == OK) s = prefill(r, &other, again, 3, 0, err); /* takes blocks: others for seq */
    if (s == OK) s = prefill(r, &seq, again, p->n + half + 1, 50, err);
    if (s == OK) trace_take(t, r, 0);
    if (s == OK) s = decode(r, &seq, t, DECODED + 1, err);
    rig_drop(r, &seq, 0);
    rig_drop(r, &other, 0);
    free(again);
    return s;
}

/* After the prompt a second choice branches off: whole blocks shared, the last one copied; both go
 * on side by side. */
static status run_forked(rig *r, const prompt *p, trace *t, trace *t2, error *err) {
    rig_seq seq = {0}, branch = {0};
    status s = prefill(r, &seq, p->ids, p->n, 0, err);
    if (s != OK) return s;
    trace_take(t, r, 0);
    trace_take(t2, r, 0);
    rig_fork(r, &seq, p->n, &branch);
    for (int k = 0; k < DECODED && s == OK; k++) {
        (void)rig_sample(r, rig_add(r, &seq, &t->token[k], 1));
        (void)rig_sample(r, rig_add(r, &branch, &t2->token[k], 1));
        s = run_and_read(r, err);
        if (s == OK) {
            trace_take(t, r, 0);
            trace_take(t2, r, 1);
        }
    }
    rig_drop(r, &branch, p->n / r->o.kv_block_tokens);
    rig_drop(r, &seq, 0);
    return s;
}

static void check(bits *b, const char *variant, int i_prompt, const trace *t) {
    const size_t bytes = (size_t)(DECODED + 1) * (size_t)b->r.desc->n_vocab * sizeof(float);
    b->n_checked++;
    if (t->n == DECODED + 1 && memcmp(t->logits, b->plain[i_prompt].logits, bytes) == 0) return;
    b->n_wrong++;
    const size_t used = strlen(b->wrong);
    if (strstr(b->wrong, variant) == NULL)
        (void)snprintf(b->wrong + used, sizeof b->wrong - used, " %s", variant);
}

typedef status one_prompt(rig *r, const prompt *p, trace *t, error *err);

static status chunk_1(rig *r, const prompt *p, trace *t, error *err) {
    return p->n > 64 ? run_plain(r, p, 3, t, err) : run_plain(r, p, 1, t, err);
}
static status chunk_7(rig *r, const prompt *p, trace *t, error *err) {
    return run_plain(r, p, 7, t, err);
}
static status chunk_64(rig *r, const prompt *p, trace *t, error *err) {
    return run_plain(r, p, 64, t, err);
}

static status check_alone(bits *b, error *err) {
    static const struct {
        const char *name;
        one_prompt *run;
    } variants[] = {{"chunks-of-1", chunk_1},
                    {"chunks-of-7", chunk_7},
                    {"chunks-of-64", chunk_64},
                    {"prefix-reused", run_prefix},
                    {"preempted", run_preempted}};
    status s = OK;
    for (int i = 0; i < b->m->n_prompts; i++)
        for (size_t v = 0; v < sizeof variants / sizeof variants[0] && s == OK; v++) {
            trace t;
            if (!trace_init(&t, b->r.desc->n_vocab)) return E_NOMEM;
            s = variants[v].run(&b->r, &b->m->prompts[i], &t, err);
            if (s == OK) check(b, variants[v].name, i, &t);
            free(t.logits);
        }
    return s;
}

static status check_together(bits *b, error *err) {
    status s = OK;
    for (int v = 0; v < 3 && s == OK; v++) {
        static const char *const names[] = {"batched", "mixed", "forked"};
        trace t[PROMPTS_MAX], t2;
        for (int i = 0; i < b->m->n_prompts; i++)
            if (!trace_init(&t[i], b->r.desc->n_vocab)) return E_NOMEM;
        if (!trace_init(&t2, b->r.desc->n_vocab)) return E_NOMEM;
        const int last = b->m->n_prompts - 1;
        if (v == 0) s = run_batched(&b->r, b->m, t, err);
        if (v == 1) s = run_mixed(&b->r, b->m, 23, t, err);
        if (v == 2) s = run_forked(&b->r, &b->m->prompts[last], &t[last], &t2, err);
        for (int i = v == 2 ? last : 0; i <= last && s == OK; i++) check(b, names[v], i, &t[i]);
        if (s == OK && v == 2) check(b, names[v], last, &t2);
        for (int i = 0; i <= last; i++) free(t[i].logits);
        free(t2.logits);
    }
    return s;
}

/* One block size; the first one makes the plain traces. */
static status check_block_size(bits *b, int kv_block_tokens, bool first, error *err) {
    const rig_options o = models_rig_options(b->c, b->m, kv_block_tokens, true);
    char variant[32];
    status s = rig_open_file(&b->r, &o, b->m->path, b->m->n_ctx, err);
    if (s != OK) return s;
    (void)snprintf(variant, sizeof variant, "blocks-of-%d", kv_block_tokens);
    for (int i = 0; i < b->m->n_prompts && s == OK; i++) {
        trace t;
        if (!trace_init(&t, b->r.desc->n_vocab)) s = E_NOMEM;
        if (s == OK) s = run_plain(&b->r, &b->m->prompts[i], 0, &t, err);
        if (s == OK && !first) check(b, variant, i, &t);
        if (s == OK && first)
            b->plain[i] = t;
        else
            free(t.logits);
    }
    if (s == OK) s = check_alone(b, err);
    if (s == OK) s = check_together(b, err);
    rig_close(&b->r);
    return s;
}

void models_check_bits(const suite_context *c, const model_case *m) {
    static const int sizes[] = {32, 16, 64};
    bits *b = calloc(1, sizeof *b);
    error err = {0};
    status s = b == NULL ? E_NOMEM : OK;
    if (b != NULL) *b = (bits){.c = c, .m = m};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && s == OK; i++)
        s = check_block_size(b, sizes[i], i == 0, &err);
    if (s != OK)
        report_fail(c->report, "models", m->name, "invariance: %s: %s", status_name(s), err.text);
    else
        report_measure(c->report, "models", m->name, "traces differ", b->n_wrong, 0,
                       "%d traces compared bit for bit%s%s", b->n_checked,
                       b->n_wrong > 0 ? "; differ:" : "", b->wrong);
    for (int i = 0; b != NULL && i < PROMPTS_MAX; i++) free(b->plain[i].logits);
    free(b);
}
