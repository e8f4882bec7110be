/* A real model of 135 million parameters: log-probabilities, perplexity, divergence, chats. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "engine/tokenizer.h"
#include "rig.h"
#include "suites.h"

enum { WINDOW_MAX = 1024, GREEDY_MAX = 512, TOP = 20 };

/* Limits of the goldens' README: a float32 engine, and one with bf16 activations. */
typedef struct limits {
    double mean_abs_nll, mean_nll, top20, margin;
} limits;

typedef struct session {
    const suite_context *c;
    rig r;
    limits l;
} session;

static json_t *load(const session *s, const char *name) {
    char why[256];
    json_t *j = files_load_json(s->c->goldens, "smollm2", name, ".json", why, sizeof why);
    if (j == NULL) report_fail(s->c->report, "smollm2", name, "%s", why);
    return j;
}

static void failed(const session *s, const char *name, status code, const error *err) {
    report_fail(s->c->report, "smollm2", name, "%s: %s", status_name(code), err->text);
}

/* ---- perplexity ---- */

typedef struct nll_sums {
    double ours, golden, other; /* sums of -log p */
    double abs_ours, abs_other; /* sums of |d| against golden */
    double worst;
    int n;
} nll_sums;

/* -log p of tokens 1..n-1 of a window, through the sampler's target rows. */
static status score_window(rig *r, const int32_t *ids, int n, double *nll, error *err) {
    rig_seq seq = {0};
    (void)rig_add(r, &seq, ids, n);
    for (int i = 0; i + 1 < n; i++) {
        sample_row *row = rig_sample(r, i);
        row->target = ids[i + 1];
        row->logprob = true;
    }
    const status s = rig_run(r, err);
    for (int i = 0; i + 1 < n && s == OK; i++) nll[i] = -(double)r->out[i].logprob;
    rig_drop(r, &seq, 0);
    return s;
}

static void add_window(nll_sums *t, const double *nll, const json_t *golden, const json_t *other) {
    for (size_t i = 0; i < json_array_size(golden); i++) {
        const double g = json_number_value(json_array_get(golden, i));
        const double o = json_number_value(json_array_get(other, i));
        const double d = fabs(nll[i] - g);
        t->ours += nll[i];
        t->golden += g;
        t->other += o;
        t->abs_ours += d;
        t->abs_other += fabs(o - g);
        if (!(d <= t->worst)) t->worst = d;
        t->n++;
    }
}

static void report_perplexity(const session *s, const nll_sums *t) {
    const double ours = t->ours / t->n, golden = t->golden / t->n, other = t->other / t->n;
    report *r = s->c->report;
    report_measure(r, "smollm2", "perplexity", "mean |d nll|", t->abs_ours / t->n,
                   s->l.mean_abs_nll, "%d tokens, worst %.3g", t->n, t->worst);
    report_measure(r, "smollm2", "perplexity", "|d mean nll|", fabs(ours - golden), s->l.mean_nll,
                   "ppl %.5f, reference %.5f, llama.cpp %.5f", exp(ours), exp(golden), exp(other));
    report_measure(r, "smollm2", "perplexity", "gap of ppl", fabs(exp(ours - golden) - 1), 0.005,
                   "%s", "");
    report_measure(r, "smollm2", "perplexity", "gap / llama.cpp's",
                   fabs(ours - golden) / fabs(other - golden), 1,
                   "mean |d nll| is %.3g of llama.cpp's", t->abs_ours / t->abs_other);
}

static void run_perplexity(session *s) {
    json_t *j = load(s, "perplexity");
    if (j == NULL) return;
    const json_t *golden = json_object_get(j, "nll"), *other = json_object_get(j, "nll_llama_cpp");
    const int window = (int)json_integer_value(json_object_get(j, "window"));
    int n = 0;
    int32_t *ids = files_ints(json_object_get(j, "ids"), &n);
    nll_sums t = {0};
    double nll[WINDOW_MAX];
    error err = {0};
    status code = ids != NULL && window > 1 && window <= WINDOW_MAX / 2 ? OK : E_FORMAT;
    for (size_t w = 0; w < json_array_size(golden) && code == OK; w++) {
        const int first = (int)w * window, left = n - first;
        const json_t *want = json_array_get(golden, w);
        const int len = left < window ? left : window;
        if (len < 2 || (int)json_array_size(want) != len - 1)
            code = error_set(&err, E_FORMAT, "window %zu", w);
        else
            code = score_window(&s->r, ids + first, len, nll, &err);
        if (code == OK) add_window(&t, nll, want, json_array_get(other, w));
    }
    if (code == OK && t.n > 0)
        report_perplexity(s, &t);
    else
        failed(s, "perplexity", code, &err);
    free(ids);
    json_decref(j);
}

/* ---- log-probabilities and divergence ---- */

/* KL(reference || ours) over the golden top-20 and the rest as one token: a lower bound that is
 * tight where the tail is light. */
static double divergence(const double *golden, const double *ours, int n) {
    double kl = 0, rest_g = 1, rest_o = 1;
    for (int i = 0; i < n; i++) {
        kl += exp(golden[i]) * (golden[i] - ours[i]);
        rest_g -= exp(golden[i]);
        rest_o -= exp(ours[i]);
    }
    if (rest_g > 1e-6 && rest_o > 1e-12) kl += rest_g * log(rest_g / rest_o);
    return kl;
}

static double log_softmax_at(const float *x, int n_vocab, int id, double lse) {
    return id < 0 || id >= n_vocab ? (double)NAN : (double)x[id] - lse;
}

static double lse_of(const float *x, int n) {
    double max = (double)x[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

typedef struct logprob_sums {
    double abs, worst, kl, reported;
    int n, n_positions;
} logprob_sums;

static void compare_position(const session *s, int i, const json_t *golden, logprob_sums *t) {
    const int n_vocab = s->r.desc->n_vocab;
    const float *x = rig_logits(&s->r, i);
    const sampled *out = &s->r.out[i];
    const double lse = lse_of(x, n_vocab);
    double want[TOP] = {0}, got[TOP] = {0};
    int n = (int)json_array_size(json_object_get(golden, "ids"));
    if (n > TOP) n = TOP;
    for (int k = 0; k < n; k++) {
        const json_t *ids = json_object_get(golden, "ids");
        const json_t *logprobs = json_object_get(golden, "logprobs");
        const int id = (int)json_integer_value(json_array_get(ids, (size_t)k));
        want[k] = json_number_value(json_array_get(logprobs, (size_t)k));
        got[k] = log_softmax_at(x, n_vocab, id, lse);
        t->abs += fabs(got[k] - want[k]);
        if (!(fabs(got[k] - want[k]) <= t->worst)) t->worst = fabs(got[k] - want[k]);
        t->n++;
    }
    for (int k = 0; k < out->n_top; k++) {
        const double d =
            fabs((double)out->top_logprob[k] - log_softmax_at(x, n_vocab, out->top_token[k], lse));
        if (!(d <= t->reported)) t->reported = d;
    }
    t->kl += divergence(want, got, n);
    t->n_positions++;
}

/* In pieces, because raw logits of all positions at once are large. */
static void run_logprobs(session *s) {
    enum { PIECE = 64 };
    json_t *j = load(s, "logprobs");
    if (j == NULL) return;
    const json_t *golden = json_object_get(j, "top20");
    int n = 0;
    int32_t *ids = files_ints(json_object_get(j, "ids"), &n);
    logprob_sums t = {0};
    rig_seq seq = {0};
    error err = {0};
    status code = ids != NULL && (int)json_array_size(golden) == n ? OK : E_FORMAT;
    for (int done = 0; done < n && code == OK;) {
        const int now = n - done < PIECE ? n - done : PIECE;
        const int first = rig_add(&s->r, &seq, ids + done, now);
        for (int i = 0; i < now; i++) {
            sample_row *row = rig_sample(&s->r, first + i);
            row->logprob = true;
            row->n_top = TOP;
        }
        code = rig_run(&s->r, &err);
        if (code == OK) code = rig_read_logits(&s->r, &err);
        for (int i = 0; i < now && code == OK; i++)
            compare_position(s, i, json_array_get(golden, (size_t)(done + i)), &t);
        done += now;
    }
    rig_drop(&s->r, &seq, 0);
    if (code == OK && t.n > 0) {
        report *r = s->c->report;
        report_measure(r, "smollm2", "logprobs", "mean |d|", t.abs / t.n, s->l.top20,
                       "top-20 of %d positions, worst %.3g", t.n_positions, t.worst);
        report_measure(r, "smollm2", "logprobs", "mean KL", t.kl / t.n_positions, 2e-3, "%s", "");
        report_measure(r, "smollm2", "logprobs", "reported top-20", t.reported, 1e-4, "%s", "");
    } else {
        failed(s, "logprobs", code, &err);
    }
    free(ids);
    json_decref(j);
}

/* ---- chats ---- */

typedef struct chat_tools {
    tokenizer *t;
    chat_template *template;
} chat_tools;

typedef struct chat_tally {
    int n, n_text_wrong, n_ids_wrong, n_greedy_wrong, n_compared, n_unclear;
} chat_tally;

static status open_tools(const session *s, chat_tools *k, error *err) {
    gguf_str source = {0};
    bool found = false;
    size_t len;
    status code = tokenizer_open(s->r.g, &k->t, err);
    if (code == OK) code = gguf_get_str(s->r.g, "tokenizer.chat_template", &found, &source, err);
    if (code == OK && !found) code = error_set(err, E_FORMAT, "no tokenizer.chat_template");
    if (code != OK) return code;
    char special[2][64] = {"", ""};
    const int32_t id[2] = {tokenizer_bos(k->t), tokenizer_eos(k->t)};
    for (int i = 0; i < 2; i++) {
        const char *p = id[i] < 0 ? "" : tokenizer_spelling(k->t, id[i], &len);
        if (id[i] >= 0) (void)snprintf(special[i], sizeof special[i], "%.*s", (int)len, p);
    }
    return chat_template_open(source.s, source.len, special[0], special[1], &k->template, err);
}

/* Renders and encodes; the ids that a server would prefill. */
static status prompt_of(const chat_tools *k, const json_t *chat, token_list *ids, bool *same_text,
                        error *err) {
    enum { MESSAGES_MAX = 64 };
    const json_t *messages = json_object_get(chat, "messages");
    const json_t *rendered = json_object_get(chat, "rendered");
    chat_message m[MESSAGES_MAX] = {{0}};
    const size_t n = json_array_size(messages);
    if (n > MESSAGES_MAX) return error_set(err, E_TOO_LARGE, "more than 64 messages");
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(messages, i);
        const json_t *role = json_object_get(o, "role"), *content = json_object_get(o, "content");
        m[i] = (chat_message){.role = json_string_value(role),
                              .role_len = json_string_length(role),
                              .content = json_string_value(content),
                              .content_len = json_string_length(content),
                              .name = ""};
    }
    const chat_request r = {.messages = m, .n_messages = (int)n, .add_generation_prompt = true};
    chat_text text = {0};
    status s = chat_render(k->template, &r, &text, err);
    if (s != OK) return s;
    *same_text = text.text_len == json_string_length(rendered) &&
                 memcmp(text.text, json_string_value(rendered), text.text_len) == 0;
    s = tokenizer_encode(k->t, text.parts, text.n_parts, 0, ids);
    chat_text_free(&text);
    return s == OK ? OK : error_set(err, s, "encode");
}

static bool same_ids(const int32_t *a, int n, const token_list *b) {
    return (size_t)n == b->n && memcmp(a, b->id, b->n * sizeof *a) == 0;
}

static status run_greedy(session *s, const json_t *chat, const int32_t *ids, int n, chat_tally *t,
                         error *err) {
    int n_greedy = 0, n_margins = 0;
    int32_t *greedy = files_ints(json_object_get(chat, "greedy_ids"), &n_greedy);
    double *margins = files_reals(json_object_get(chat, "greedy_margins"), &n_margins);
    rig_seq seq = {0};
    status code = greedy != NULL && margins != NULL && n_margins == n_greedy
                      ? OK
                      : error_set(err, E_FORMAT, "greedy_ids and greedy_margins");
    for (int i = 0; i < n_greedy && code == OK; i++) {
        const int row =
            i == 0 ? rig_add(&s->r, &seq, ids, n) + n - 1 : rig_add(&s->r, &seq, &greedy[i - 1], 1);
        (void)rig_sample(&s->r, row);
        code = rig_run(&s->r, err);
        if (code != OK) break;
        if (s->r.out[0].token != greedy[i] && margins[i] < s->l.margin) {
            t->n_unclear += n_greedy - i;
            break;
        }
        t->n_compared++;
        if (s->r.out[0].token == greedy[i]) continue;
        t->n_greedy_wrong++;
        break;
    }
    rig_drop(&s->r, &seq, 0);
    free(greedy);
    free(margins);
    return code;
}

static status run_chat(session *s, const chat_tools *k, const json_t *chat, chat_tally *t,
                       error *err) {
    int n = 0;
    int32_t *ids = files_ints(json_object_get(chat, "ids"), &n);
    token_list mine = {0};
    bool same_text = false;
    if (ids == NULL) return error_set(err, E_FORMAT, "ids");
    status code = prompt_of(k, chat, &mine, &same_text, err);
    t->n++;
    if (code == OK) {
        t->n_text_wrong += !same_text;
        t->n_ids_wrong += !same_ids(ids, n, &mine);
        code = run_greedy(s, chat, ids, n, t, err);
    }
    token_list_free(&mine);
    free(ids);
    return code;
}

static void run_chats(session *s) {
    chat_tools k = {0};
    chat_tally t = {0};
    error err = {0};
    size_t i;
    const json_t *chat;
    json_t *j = load(s, "chat");
    if (j == NULL) return;
    status code = open_tools(s, &k, &err);
    json_array_foreach(json_object_get(j, "chats"), i, chat) {
        if (code == OK) code = run_chat(s, &k, chat, &t, &err);
    }
    report *r = s->c->report;
    if (code != OK || t.n == 0) {
        failed(s, "chat", code, &err);
    } else {
        report_measure(r, "smollm2", "chat", "renderings wrong", t.n_text_wrong, 0, "of %d", t.n);
        report_measure(r, "smollm2", "chat", "ids wrong", t.n_ids_wrong, 0, "of %d", t.n);
        report_measure(r, "smollm2", "chat", "greedy wrong", t.n_greedy_wrong, 0,
                       "%d tokens compared, %d after a margin below %g", t.n_compared, t.n_unclear,
                       s->l.margin);
    }
    chat_template_close(k.template);
    tokenizer_close(k.t);
    json_decref(j);
}

/* The references are of one file, byte for byte. */
static bool right_file(const session *s) {
    char hex[65];
    uint8_t digest[32];
    json_t *j = load(s, "perplexity");
    const char *want = json_string_value(json_object_get(json_object_get(j, "model"), "sha256"));
    bool ok = false;
    if (gguf_sha256(s->r.g, digest) == OK) {
        sha256_hex(digest, hex);
        ok = want != NULL && strcmp(want, hex) == 0;
    }
    if (!ok)
        report_fail(s->c->report, "smollm2", "-", "%s is not the file of the references",
                    s->c->model);
    json_decref(j);
    return ok;
}

void suite_smollm2(const suite_context *c) {
    char path[1024];
    error err = {0};
    session s = {
        .c = c, .l = c->cpu ? (limits){1e-3, 5e-4, 1e-3, 0.005} : (limits){0.08, 0.005, 0.25, 0.2}};
    const rig_options o = {.backend = c->backend,
                           .threads = c->threads,
                           .n_tokens_max = WINDOW_MAX,
                           .n_seqs_max = 2,
                           .n_samples_max = WINDOW_MAX / 2,
                           .kv_block_tokens = 32,
                           .kv_blocks = 2 * WINDOW_MAX / 32};
    files_path(path, sizeof path, c->goldens, "smollm2", "perplexity", ".json");
    if (!files_exist(path) || c->model == NULL) {
        report_skip(c->report, "smollm2", "-", "%s",
                    c->model == NULL ? "no model file (--model, INFERD_MODEL)" : "no references");
        return;
    }
    const status code = rig_open_file(&s.r, &o, c->model, 0, &err);
    if (code == E_NOTFOUND || (code == E_UNSUPPORTED && !c->cpu))
        report_skip(c->report, "smollm2", "-", "%s", err.text);
    else if (code != OK)
        report_fail(c->report, "smollm2", "-", "%s: %s", status_name(code), err.text);
    if (code != OK) return;
    if (right_file(&s)) {
        run_perplexity(&s);
        run_logprobs(&s);
        run_chats(&s);
    }
    rig_close(&s.r);
}
