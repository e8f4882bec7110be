/* Tiny models against a float64 forward pass: logits, log-probabilities, greedy continuations. */
#include "models.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Limits of the goldens' README: largest |d logit|, rms, and the greedy margin below which another
 * token is no error. */
typedef struct limits {
    double max, rms, margin, logprob;
} limits;

static limits limits_for(const suite_context *c, bool quantised) {
    /* The CPU computes quantised files with 24-bit activations: float32's limits for all. */
    if (c->cpu) return (limits){2e-3, 2e-4, 0.005, 1e-3};
    if (!quantised) return (limits){1.0, 0.12, 0.4, 1.0};
    return (limits){1.0, 0.16, 0.5, 1.0};
}

double log_sum_exp(const float *x, int n) {
    double max = (double)x[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

int argmax(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* ---- reading a case ---- */

static bool read_top(const json_t *list, prompt *p) {
    p->n_top = (int)json_array_size(list);
    p->top = calloc((size_t)p->n_top + 1, sizeof *p->top);
    if (p->top == NULL) return false;
    for (int i = 0; i < p->n_top; i++) {
        const json_t *o = json_array_get(list, (size_t)i);
        top_entry *t = &p->top[i];
        int n = 0;
        t->pos = (int)json_integer_value(json_object_get(o, "pos"));
        t->ids = files_ints(json_object_get(o, "ids"), &t->n);
        t->logprobs = files_reals(json_object_get(o, "logprobs"), &n);
        if (t->ids == NULL || t->logprobs == NULL || n != t->n || t->pos < 0 || t->pos >= p->n)
            return false;
        if (i > 0 && t->pos <= p->top[i - 1].pos) return false;
    }
    return true;
}

static bool read_prompt(const json_t *o, prompt *p) {
    p->ids = files_ints(json_object_get(o, "ids"), &p->n);
    p->last_logits = files_floats_b64(json_object_get(o, "last_logits_f32_b64"), &p->n_logits);
    p->greedy = files_ints(json_object_get(o, "greedy_ids"), &p->n_greedy);
    p->margins = files_reals(json_object_get(o, "greedy_margins"), &p->n_margins);
    return p->ids != NULL && p->n > 0 && p->last_logits != NULL && p->greedy != NULL &&
           p->margins != NULL && p->n_margins == p->n_greedy &&
           read_top(json_object_get(o, "top20"), p);
}

static bool read_case(const suite_context *c, const char *name, model_case *m) {
    char why[256] = "a field is missing or wrong";
    bool ok = false;
    *m = (model_case){0};
    (void)snprintf(m->name, sizeof m->name, "%s", name);
    json_t *j = files_load_json(c->goldens, "models", name, ".json", why, sizeof why);
    const json_t *prompts = json_object_get(j, "prompts");
    const char *file = json_string_value(json_object_get(j, "file"));
    if (file != NULL && json_array_size(prompts) > 0) {
        files_path(m->path, sizeof m->path, c->goldens, "models", file, "");
        m->n_ctx = (int)json_integer_value(json_object_get(j, "n_ctx"));
        ok = true;
        for (size_t i = 0; i < json_array_size(prompts) && i < PROMPTS_MAX && ok; i++)
            ok = read_prompt(json_array_get(prompts, i), &m->prompts[m->n_prompts++]);
    }
    if (!ok) report_fail(c->report, "models", name, "golden file: %s", why);
    json_decref(j);
    return ok;
}

static void free_case(model_case *m) {
    for (int i = 0; i < m->n_prompts; i++) {
        prompt *p = &m->prompts[i];
        for (int k = 0; p->top != NULL && k < p->n_top; k++) {
            free(p->top[k].ids);
            free(p->top[k].logprobs);
        }
        free(p->ids);
        free(p->greedy);
        free(p->margins);
        free(p->last_logits);
        free(p->top);
    }
}

rig_options models_rig_options(const suite_context *c, const model_case *m, int kv_block_tokens,
                               bool deterministic) {
    int n_tokens = 0, n_positions = 0;
    for (int i = 0; i < m->n_prompts; i++) {
        n_tokens += m->prompts[i].n;
        n_positions += m->prompts[i].n + m->prompts[i].n_greedy + kv_block_tokens;
    }
    return (rig_options){.backend = c->backend,
                         .threads = c->threads,
                         .deterministic = deterministic,
                         .n_tokens_max = n_tokens + 64,
                         .n_seqs_max = m->n_prompts + 4,
                         .n_samples_max = n_tokens / 8 + m->n_prompts * 4 + 64,
                         .kv_block_tokens = kv_block_tokens,
                         .kv_blocks = 2 * n_positions / kv_block_tokens + 8};
}

/* ---- comparing ---- */

typedef struct errors {
    double logit_max, logit_sq, n_logits; /* of the last prompt position */
    double rms;                           /* worst prompt */
    double logprob;                       /* golden top-20 against our raw logits */
    double report;                        /* what the sampler reports against our raw logits */
    int greedy_wrong, greedy_compared, greedy_unclear;
} errors;

static void worst(double *a, double b) {
    if (!(b <= *a)) *a = b; /* keeps NaN */
}

static void compare_last(const prompt *p, const float *x, errors *e) {
    double sq = 0;
    for (int i = 0; i < p->n_logits; i++) {
        const double d = fabs((double)x[i] - (double)p->last_logits[i]);
        worst(&e->logit_max, d);
        sq += d * d;
    }
    worst(&e->rms, sqrt(sq / p->n_logits));
}

/* The sampler's own list must be the top of the raw logits it saw: sorted, ties by id. */
static void compare_reported(const sampled *s, const float *x, int n_vocab, errors *e) {
    const double lse = log_sum_exp(x, n_vocab);
    if (s->n_top != (n_vocab < TOP ? n_vocab : TOP) || s->token != argmax(x, n_vocab) ||
        s->rank != 1 || s->top_token[0] != s->token)
        e->report = (double)NAN;
    worst(&e->report, fabs((double)s->logprob - ((double)x[s->token] - lse)));
    for (int i = 0; i < s->n_top; i++) {
        const int t = s->top_token[i];
        worst(&e->report, fabs((double)s->top_logprob[i] - ((double)x[t] - lse)));
        int n_before = 0; /* tokens that belong before place i */
        for (int k = 0; k < n_vocab; k++) n_before += x[k] > x[t] || (!(x[k] < x[t]) && k < t);
        if (n_before != i) e->report = (double)NAN;
    }
}

static void compare_top(const top_entry *t, const float *x, int n_vocab, errors *e) {
    const double lse = log_sum_exp(x, n_vocab);
    for (int i = 0; i < t->n; i++) {
        const int id = t->ids[i];
        worst(&e->logprob,
              id < 0 || id >= n_vocab ? (double)NAN : fabs((double)x[id] - lse - t->logprobs[i]));
    }
}

static void ask_top(sample_row *s, int n_vocab) {
    s->logprob = true;
    s->n_top = n_vocab < TOP ? n_vocab : TOP;
}

static status run_prompt(rig *r, const prompt *p, const limits *l, errors *e, error *err) {
    const int n_vocab = r->desc->n_vocab;
    rig_seq seq = {0};
    int last = -1; /* sample index of the last position */
    (void)rig_add(r, &seq, p->ids, p->n);
    for (int i = 0; i < p->n_top; i++) {
        ask_top(rig_sample(r, p->top[i].pos), n_vocab);
        if (p->top[i].pos == p->n - 1) last = i;
    }
    if (last < 0) ask_top(rig_sample(r, p->n - 1), n_vocab), last = p->n_top;
    status s = rig_run(r, err);
    if (s == OK) s = rig_read_logits(r, err);
    if (s != OK) return s;
    for (int i = 0; i < p->n_top; i++) compare_top(&p->top[i], rig_logits(r, i), n_vocab, e);
    for (int i = 0; i < r->n_samples; i++)
        compare_reported(&r->out[i], rig_logits(r, i), n_vocab, e);
    compare_last(p, rig_logits(r, last), e);
    int32_t token = r->out[last].token;
    for (int i = 0; i < p->n_greedy; i++) {
        if (p->margins[i] < l->margin && token != p->greedy[i]) {
            e->greedy_unclear += p->n_greedy - i; /* another text from here on: no error */
            break;
        }
        e->greedy_compared++;
        if (token != p->greedy[i]) {
            e->greedy_wrong++;
            break;
        }
        if (i + 1 == p->n_greedy) break;
        (void)rig_sample(r, rig_add(r, &seq, &token, 1));
        s = rig_run(r, err);
        if (s != OK) return s;
        token = r->out[0].token;
    }
    rig_drop(r, &seq, 0);
    return OK;
}

static bool is_quantised(const gguf *g) {
    for (int i = 0; i < gguf_n_tensors(g); i++)
        if (dtype_get((int)gguf_tensor_at(g, i)->type)->block_elems > 1) return true;
    return false;
}

static void run_case(const suite_context *c, const model_case *m) {
    const rig_options o = models_rig_options(c, m, 32, false);
    error err = {0};
    errors e = {0};
    rig r;
    status s = rig_open_file(&r, &o, m->path, m->n_ctx, &err);
    if (s != OK) {
        report_fail(c->report, "models", m->name, "%s: %s", status_name(s), err.text);
        return;
    }
    const limits l = limits_for(c, is_quantised(r.g));
    const model_info *info = weights_info(r.w);
    for (int i = 0; i < m->n_prompts && s == OK; i++) {
        const prompt *p = &m->prompts[i];
        if (p->n_logits != r.desc->n_vocab)
            s = error_set(&err, E_FORMAT, "%d golden logits for a vocabulary of %d", p->n_logits,
                          r.desc->n_vocab);
        else
            s = run_prompt(&r, p, &l, &e, &err);
    }
    if (s != OK) {
        report_fail(c->report, "models", m->name, "%s: %s", status_name(s), err.text);
    } else {
        report_measure(c->report, "models", m->name, "max |d logit|", e.logit_max, l.max, "%s, %s",
                       info->architecture, info->quantization);
        report_measure(c->report, "models", m->name, "rms d logit", e.rms, l.rms, "%s", "");
        report_measure(c->report, "models", m->name, "|d logprob|", e.logprob, l.logprob, "%s", "");
        report_measure(c->report, "models", m->name, "reported top-20", e.report, 1e-4, "%s", "");
        report_measure(c->report, "models", m->name, "greedy wrong", e.greedy_wrong, 0,
                       "%d compared, %d after a margin below %g", e.greedy_compared,
                       e.greedy_unclear, l.margin);
    }
    rig_close(&r);
}

/* One probe, so that a missing backend is one SKIP and not a failure a model. */
static bool backend_is_here(const suite_context *c) {
    const backend_options o = {.threads = 1};
    backend *b;
    error err = {0};
    const status s = backend_open(c->backend, &o, &b, &err);
    if (s == OK) b->ops->close(b);
    if (s == E_NOTFOUND || s == E_UNSUPPORTED)
        report_skip(c->report, "models", c->backend, "no such backend here: %s", err.text);
    else if (s != OK)
        report_fail(c->report, "models", c->backend, "%s: %s", status_name(s), err.text);
    return s == OK;
}

void suite_models(const suite_context *c) {
    const name_list list = files_list(c->goldens, "models", ".json");
    if (list.n == 0) report_skip(c->report, "models", "-", "no %s/models", c->goldens);
    const bool here = list.n > 0 && backend_is_here(c);
    for (size_t i = 0; i < list.n && here; i++) {
        model_case m;
        if (!suite_wants(c, list.name[i])) continue;
        if (read_case(c, list.name[i], &m)) {
            run_case(c, &m);
            models_check_bits(c, &m);
        }
        free_case(&m);
    }
    free(list.name);
}
