/* Sampling: the distribution that the backend's sampler really draws from, against exact ones.
 *
 * Logits are fed through a model whose head is a bias and nothing else: all matrices are zero, so
 * the row's logits are the bias, bit for bit. The distribution is read by inverting the draw: it
 * depends on sample_uniform(seed, position) alone, so a table from u to a position lets the test
 * choose u, and the boundaries between tokens are found by bisection to 2^-20. That gives the kept
 * set and every probability exactly, not by chance; a chi-square over plain consecutive positions
 * shows that the draws of a request have that distribution too. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"
#include "suites.h"

enum { EMBD = 64, U_BITS = 20, N_BUCKETS = 1 << U_BITS, ROWS = 256, POINTS_MAX = 1 << 16 };

static const uint64_t TABLE_SEED = 20261;

/* positions[i]: a draw counter with floor(u * 2^20) == i, or UINT32_MAX. */
static uint32_t *make_table(void) {
    uint32_t *positions = malloc((size_t)N_BUCKETS * sizeof *positions);
    if (positions == NULL) return NULL;
    memset(positions, 0xFF, (size_t)N_BUCKETS * sizeof *positions);
    size_t filled = 0;
    for (uint32_t p = 0; p < 1u << 25 && filled < N_BUCKETS; p++) {
        const uint32_t i = (uint32_t)(sample_uniform(TABLE_SEED, p) * (float)N_BUCKETS);
        if (positions[i] != UINT32_MAX) continue;
        positions[i] = p;
        filled++;
    }
    return positions;
}

/* ---- the model that says a given vector ---- */

typedef struct speaker {
    float *zeros, *ones, *bias; /* owned */
    layer_desc layer;
    model_desc desc;
    float rope_freq[EMBD / 2];
} speaker;

static tensor_view view(const char *name, const float *data, int n_in, int n_out) {
    return (tensor_view){name, data, DTYPE_F32, n_in, n_out};
}

static bool speaker_init(speaker *s, const double *logits, int n_vocab) {
    const size_t most = (size_t)EMBD * (size_t)(n_vocab > EMBD ? n_vocab : EMBD);
    *s = (speaker){.zeros = calloc(most, sizeof(float)),
                   .ones = calloc(EMBD, sizeof(float)),
                   .bias = calloc((size_t)n_vocab, sizeof(float))};
    if (s->zeros == NULL || s->ones == NULL || s->bias == NULL) return false;
    for (int i = 0; i < EMBD; i++) s->ones[i] = 1;
    for (int i = 0; i < n_vocab; i++) s->bias[i] = (float)logits[i];
    const tensor_view square = view("zero", s->zeros, EMBD, EMBD);
    const tensor_view norm = view("one", s->ones, EMBD, 1);
    s->layer = (layer_desc){.attn_norm = norm,
                            .q = square,
                            .k = square,
                            .v = square,
                            .o = square,
                            .ffn_norm = norm,
                            .gate = square,
                            .up = square,
                            .down = square};
    s->desc = (model_desc){.architecture = "speaker",
                           .n_layers = 1,
                           .n_embd = EMBD,
                           .n_ff = EMBD,
                           .n_heads = 1,
                           .n_kv_heads = 1,
                           .head_dim = EMBD,
                           .n_vocab = n_vocab,
                           .context_length = 1024,
                           .norm_eps = 1e-5f,
                           .attn_scale = 0.125f,
                           .n_rot = EMBD,
                           .rope_freq = s->rope_freq,
                           .rope_mscale = 1,
                           .token_embd = view("zero", s->zeros, EMBD, n_vocab),
                           .output_norm = norm,
                           .output = view("zero", s->zeros, EMBD, n_vocab),
                           .output_bias = view("bias", s->bias, n_vocab, 1),
                           .layers = &s->layer};
    return true;
}

static void speaker_deinit(speaker *s) {
    free(s->zeros);
    free(s->ones);
    free(s->bias);
}

/* ---- a case ---- */

typedef struct sampling_case {
    sample_row row; /* the parameters */
    const json_t *bias;
    int32_t *prompt, *output, *kept;
    double *probs;
    int n_prompt, n_output, n_kept, n_probs;
} sampling_case;

static float param(const json_t *params, const json_t *defaults, const char *key) {
    const json_t *v = json_object_get(params, key);
    return (float)json_number_value(v != NULL ? v : json_object_get(defaults, key));
}

static sample_row read_params(const json_t *p, const json_t *defaults) {
    return (sample_row){.target = -1,
                        .temperature = param(p, defaults, "temperature"),
                        .top_p = param(p, defaults, "top_p"),
                        .min_p = param(p, defaults, "min_p"),
                        .top_k = (int32_t)param(p, defaults, "top_k"),
                        .repetition_penalty = param(p, defaults, "repetition_penalty"),
                        .frequency_penalty = param(p, defaults, "frequency_penalty"),
                        .presence_penalty = param(p, defaults, "presence_penalty")};
}

static int count_of(const int32_t *ids, int n, int32_t id) {
    int count = 0;
    for (int i = 0; i < n; i++) count += ids[i] == id;
    return count;
}

/* Adds a sample of row with the case's parameters. Bias and seen lists are the step's own: a
 * request's are shared by its rows, so the first row adds them and the others point there. */
static void add_sample(rig *r, const sampling_case *k, int row, const sample_row *shared,
                       uint64_t seed, uint64_t position) {
    sample_row *s = rig_sample(r, row);
    const char *key;
    json_t *value;
    const int32_t i_bias = s->i_bias, i_seen = s->i_seen;
    *s = k->row;
    s->row = row;
    s->i_bias = i_bias;
    s->i_seen = i_seen;
    s->seed = seed;
    s->position = position;
    if (shared != NULL) {
        s->n_bias = shared->n_bias;
        s->i_bias = shared->i_bias;
        s->n_seen = shared->n_seen;
        s->i_seen = shared->i_seen;
        return;
    }
    json_object_foreach((json_t *)k->bias, key, value) {
        rig_add_bias(r, s, (int32_t)strtol(key, NULL, 10), (float)json_number_value(value));
    }
    for (int i = 0; i < k->n_prompt + k->n_output; i++) {
        const int32_t id = i < k->n_prompt ? k->prompt[i] : k->output[i - k->n_prompt];
        if (count_of(k->prompt, i < k->n_prompt ? i : k->n_prompt, id) > 0) continue;
        if (i > k->n_prompt && count_of(k->output, i - k->n_prompt, id) > 0) continue;
        rig_add_seen(r, s, id, count_of(k->output, k->n_output, id));
    }
}

/* Draws n tokens at the given positions. */
static status draw(rig *r, const sampling_case *k, uint64_t seed, const uint64_t *positions, int n,
                   int32_t *out, error *err) {
    static const int32_t zeros[ROWS] = {0};
    status s = OK;
    for (int done = 0; done < n && s == OK;) {
        const int now = n - done < ROWS ? n - done : ROWS;
        rig_seq seq = {0};
        (void)rig_add(r, &seq, zeros, now);
        for (int i = 0; i < now; i++)
            add_sample(r, k, i, i > 0 ? &r->s.sample[0] : NULL, seed, positions[done + i]);
        s = rig_run(r, err);
        for (int i = 0; i < now && s == OK; i++) out[done + i] = r->out[i].token;
        rig_drop(r, &seq, 0);
        done += now;
    }
    return s;
}

/* ---- reading the distribution ---- */

typedef struct point {
    uint32_t bucket;
    int32_t token;
} point;

typedef struct probe {
    rig *r;
    const sampling_case *k;
    const uint32_t *table;
    point *points; /* [POINTS_MAX] ascending bucket */
    int n;
} probe;

/* The nearest bucket at or after i that the table has. */
static uint32_t filled_bucket(const uint32_t *table, uint32_t i) {
    while (i < N_BUCKETS - 1 && table[i] == UINT32_MAX) i++;
    while (table[i] == UINT32_MAX) i--;
    return i;
}

static status ask(probe *p, const uint32_t *buckets, int n, error *err) {
    uint64_t *positions = calloc((size_t)n, sizeof *positions);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    status s = positions == NULL || tokens == NULL ? E_NOMEM : OK;
    for (int i = 0; i < n && s == OK; i++) positions[i] = p->table[buckets[i]];
    if (s == OK) s = draw(p->r, p->k, TABLE_SEED, positions, n, tokens, err);
    for (int i = 0; i < n && s == OK; i++) p->points[p->n++] = (point){buckets[i], tokens[i]};
    free(positions);
    free(tokens);
    return s;
}

static int compare_points(const void *a, const void *b) {
    const uint32_t x = ((const point *)a)->bucket, y = ((const point *)b)->bucket;
    return x < y ? -1 : x > y;
}

/* Bisects between neighbours of different tokens until they are neighbouring buckets. */
static status refine(probe *p, error *err) {
    uint32_t *ask_for = malloc(POINTS_MAX * sizeof *ask_for);
    status s = ask_for == NULL ? E_NOMEM : OK;
    for (int round = 0; round < 2 * U_BITS && s == OK; round++) {
        int n = 0;
        qsort(p->points, (size_t)p->n, sizeof *p->points, compare_points);
        for (int i = 1; i < p->n; i++) {
            const point *a = &p->points[i - 1], *b = &p->points[i];
            if (a->token == b->token || b->bucket - a->bucket < 2) continue;
            uint32_t middle = filled_bucket(p->table, a->bucket + (b->bucket - a->bucket) / 2);
            if (middle >= b->bucket) continue; /* a hole in the table */
            if (p->n + n >= POINTS_MAX) break;
            ask_for[n++] = middle;
        }
        if (n == 0) break;
        s = ask(p, ask_for, n, err);
    }
    free(ask_for);
    qsort(p->points, (size_t)p->n, sizeof *p->points, compare_points);
    return s;
}

static status first_grid(probe *p, error *err) {
    uint32_t grid[257];
    int n = 0;
    for (uint32_t i = 0; i <= 256; i++) {
        const uint32_t b =
            filled_bucket(p->table, i == 256 ? N_BUCKETS - 1 : i * (N_BUCKETS / 256));
        if (n == 0 || grid[n - 1] != b) grid[n++] = b;
    }
    return ask(p, grid, n, err);
}

/* mass[token] from the boundaries; a token whose points are not one run counts as not found. */
static void measure(const probe *p, double *mass, int n_vocab) {
    double start = 0;
    memset(mass, 0, (size_t)n_vocab * sizeof *mass);
    for (int i = 0; i < p->n; i++) {
        const bool last = i + 1 == p->n;
        if (!last && p->points[i + 1].token == p->points[i].token) continue;
        const double end =
            last ? 1.0 : (p->points[i].bucket + p->points[i + 1].bucket + 1) * 0.5 / N_BUCKETS;
        const int t = p->points[i].token;
        if (t < 0 || t >= n_vocab) continue;
        mass[t] = mass[t] > 0 ? (double)NAN : end - start; /* two runs: not an inverse CDF */
        start = end;
    }
}

/* Largest |p - golden|, and tokens that are kept but should not be, or the other way round (those
 * of less probability than the table resolves cannot be seen). */
static double compare(const sampling_case *k, const double *mass, int n_vocab, int *n_wrong) {
    const double resolution = 4.0 / N_BUCKETS;
    double worst = 0;
    *n_wrong = 0;
    for (int t = 0; t < n_vocab; t++) {
        double want = 0;
        bool kept = false;
        for (int i = 0; i < k->n_kept; i++)
            if (k->kept[i] == t) want = k->probs[i], kept = true;
        const double d = fabs(mass[t] - want);
        if (!(d <= worst)) worst = d;
        if (kept ? !(mass[t] > 0) && want > resolution : !(mass[t] <= 0)) ++*n_wrong;
    }
    return worst;
}

/* ---- draws of a request ---- */

/* Upper tail of chi-square with n degrees of freedom as a normal deviate (Wilson-Hilferty). */
static double chi_square_deviate(double x, int n) {
    const double a = 2.0 / (9.0 * n);
    return (cbrt(x / n) - (1 - a)) / sqrt(a);
}

/* Deviate of n draws at consecutive positions; bins of fewer than 5 expected are one bin. */
static status chi_square(rig *r, const sampling_case *k, uint64_t seed, int n, double *deviate,
                         error *err) {
    int *count = calloc((size_t)r->desc->n_vocab, sizeof *count);
    uint64_t *positions = calloc((size_t)n, sizeof *positions);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    double x = 0, rest_want = 0, rest_got = 0, got_sum = 0;
    int bins = 0;
    status s = count == NULL || positions == NULL || tokens == NULL ? E_NOMEM : OK;
    for (int i = 0; i < n && s == OK; i++) positions[i] = (uint64_t)i;
    if (s == OK) s = draw(r, k, seed, positions, n, tokens, err);
    for (int i = 0; i < n && s == OK; i++) count[tokens[i]]++;
    for (int i = 0; i <= k->n_kept && s == OK; i++) {
        double want = i < k->n_kept ? k->probs[i] * n : rest_want;
        double got = i < k->n_kept ? count[k->kept[i]] : rest_got;
        if (i < k->n_kept) got_sum += got;
        if (i < k->n_kept && want < 5) {
            rest_want += want;
            rest_got += got;
            continue;
        }
        if (want < 1e-9) continue;
        x += (got - want) * (got - want) / want;
        bins++;
    }
    *deviate = bins > 1 ? chi_square_deviate(x, bins - 1) : 0;
    if (s == OK && got_sum < n) *deviate = (double)NAN; /* a token outside the kept set */
    free(count);
    free(positions);
    free(tokens);
    return s;
}

/* ---- the suite ---- */

typedef struct totals {
    double probability, deviate;
    int n, n_wrong_sets, n_greedy_wrong;
    char first[96];
} totals;

static status run_case(rig *r, const sampling_case *k, const uint32_t *table, int index,
                       int n_draws, totals *t, error *err) {
    const int n_vocab = r->desc->n_vocab;
    probe p = {.r = r, .k = k, .table = table, .points = malloc(POINTS_MAX * sizeof *p.points)};
    double *mass = malloc((size_t)n_vocab * sizeof *mass), deviate = 0;
    status s = p.points == NULL || mass == NULL ? E_NOMEM : OK;
    int n_wrong = 0;
    if (s == OK) s = first_grid(&p, err);
    if (s == OK) s = refine(&p, err);
    if (s == OK) {
        measure(&p, mass, n_vocab);
        const double d = compare(k, mass, n_vocab, &n_wrong);
        if (!(d <= t->probability)) t->probability = d;
        if (n_wrong > 0 && t->n_wrong_sets++ == 0)
            (void)snprintf(t->first, sizeof t->first, "; first: case %d, %d tokens", index,
                           n_wrong);
    }
    if (s == OK && n_draws > 0 && k->n_kept > 1)
        s = chi_square(r, k, 1000 + (uint64_t)index, n_draws, &deviate, err);
    if (!(deviate <= t->deviate)) t->deviate = deviate;
    t->n++;
    free(p.points);
    free(mass);
    return s;
}

static bool read_case(const json_t *o, const json_t *defaults, sampling_case *k) {
    const json_t *params = json_object_get(o, "params");
    *k = (sampling_case){.row = read_params(params, defaults),
                         .bias = json_object_get(params, "logit_bias")};
    k->prompt = files_ints(json_object_get(o, "prompt_ids"), &k->n_prompt);
    k->output = files_ints(json_object_get(o, "output_ids"), &k->n_output);
    k->kept = files_ints(json_object_get(o, "kept_ids"), &k->n_kept);
    k->probs = files_reals(json_object_get(o, "probs"), &k->n_probs);
    return k->prompt != NULL && k->output != NULL && k->kept != NULL && k->probs != NULL &&
           k->n_kept == k->n_probs && k->n_kept > 0;
}

static void free_sampling_case(sampling_case *k) {
    free(k->prompt);
    free(k->output);
    free(k->kept);
    free(k->probs);
}

static status open_speaker(const suite_context *c, speaker *sp, const json_t *logits, rig *r,
                           error *err) {
    int n = 0;
    double *values = files_reals(logits, &n);
    const bool ok = values != NULL && n > 0 && speaker_init(sp, values, n);
    free(values);
    if (!ok) return error_set(err, E_FORMAT, "no logits");
    const rig_options o = {.backend = c->backend,
                           .threads = c->threads,
                           .n_tokens_max = ROWS,
                           .n_seqs_max = 4,
                           .n_samples_max = ROWS,
                           .kv_block_tokens = 32,
                           .kv_blocks = 32};
    return rig_open_desc(r, &o, &sp->desc, err);
}

/* All cases of one named vector. */
static void run_vector(const suite_context *c, const json_t *j, const char *name,
                       const json_t *logits, const uint32_t *table) {
    speaker sp = {0};
    rig r = {0};
    error err = {0};
    totals t = {0};
    size_t i;
    const json_t *o;
    status s = open_speaker(c, &sp, logits, &r, &err);
    const bool missing = s == E_NOTFOUND || (s == E_UNSUPPORTED && r.b == NULL && !c->cpu);
    json_array_foreach(json_object_get(j, "cases"), i, o) {
        const char *of = json_string_value(json_object_get(o, "logits"));
        sampling_case k;
        if (s != OK || of == NULL || strcmp(of, name) != 0) continue;
        if (!read_case(o, json_object_get(j, "default_params"), &k))
            s = error_set(&err, E_FORMAT, "case %zu", i);
        else
            s = run_case(&r, &k, table, (int)i, c->n_draws, &t, &err);
        free_sampling_case(&k);
    }
    if (missing)
        report_skip(c->report, "sampling", name, "backend %s: %s", c->backend, err.text);
    else if (s != OK)
        report_fail(c->report, "sampling", name, "%s: %s", status_name(s), err.text);
    else if (t.n > 0) {
        report_measure(c->report, "sampling", name, "|d probability|", t.probability, 1e-5,
                       "%d cases", t.n);
        report_measure(c->report, "sampling", name, "kept sets wrong", t.n_wrong_sets, 0, "of %d%s",
                       t.n, t.first);
        /* 4.75 sigma: one in a million */
        report_measure(c->report, "sampling", name, "chi-square, sigma", t.deviate, 4.75,
                       "%d draws a case", c->n_draws);
    }
    rig_close(&r);
    speaker_deinit(&sp);
}

void suite_sampling(const suite_context *c) {
    char why[256], path[1024];
    const char *name;
    json_t *logits;
    files_path(path, sizeof path, c->goldens, "sampling", "sampling", ".json");
    if (!files_exist(path)) {
        report_skip(c->report, "sampling", "-", "no %s", path);
        return;
    }
    json_t *j = files_load_json(c->goldens, "sampling", "sampling", ".json", why, sizeof why);
    uint32_t *table = j == NULL ? NULL : make_table();
    if (table == NULL) {
        report_fail(c->report, "sampling", "-", "%s", j == NULL ? why : "no memory");
    } else {
        json_object_foreach(json_object_get(j, "logits"), name, logits) {
            if (suite_wants(c, name)) run_vector(c, j, name, logits, table);
        }
    }
    free(table);
    json_decref(j);
}
