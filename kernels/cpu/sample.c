/* No sorting: top-k and top-p need only a threshold. Logits are taken as ordered integers and the
 * k-th one (or the one where the mass reaches p) is found by three passes of counting, 11 + 11 + 10
 * bits, from the top. Ties are then whole groups of equal floats, taken by ascending id. */
#include "kernels/cpu/sample.h"

#include <math.h>
#include <string.h>

/* Ascending as the floats (no NaN): sign-magnitude to two's complement order. -0 is 0. */
static uint32_t order_key(float v) {
    uint32_t u;
    v += 0.0f;
    memcpy(&u, &v, sizeof u);
    return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

static bool changes_logits(const sample_row *r, const sample_vocab *v) {
    return r->n_bias > 0 || r->n_seen > 0 || v->n_never > 0;
}

static void penalise(const sample_row *r, const token_seen *seen, float *logit) {
    const float repetition = r->repetition_penalty > 0.0f ? r->repetition_penalty : 1.0f;
    for (int i = 0; i < r->n_seen; i++) {
        const token_seen *t = &seen[r->i_seen + i];
        float *l = &logit[t->token];
        *l = *l > 0.0f ? *l / repetition : *l * repetition;
        *l -= r->frequency_penalty * (float)t->n_output;
        if (t->n_output > 0) *l -= r->presence_penalty;
    }
}

/* The logits that sampling acts on: the raw ones, or a changed copy. */
static const float *changed_logits(const sample_vocab *v, const float *logits, const sample_row *r,
                                   const token_bias *bias, const token_seen *seen,
                                   sample_scratch *s) {
    if (!changes_logits(r, v)) return logits;
    memcpy(s->logit, logits, (size_t)v->n_vocab * sizeof *logits);
    for (int i = 0; i < r->n_bias; i++)
        s->logit[bias[r->i_bias + i].token] += bias[r->i_bias + i].bias;
    penalise(r, seen, s->logit);
    for (int i = 0; i < v->n_never; i++) s->logit[v->never[i]] = -INFINITY;
    return s->logit;
}

/* Where a running total, taken from the largest logit down, reaches a target. */
typedef struct threshold {
    uint32_t key;  /* of the logit that crosses; all above are kept */
    double before; /* total above it */
} threshold;

/* by_mass: totals of s->weight, else of 1. The target must not exceed the total. */
static threshold find_threshold(const float *logit, int n, sample_scratch *s, bool by_mass,
                                double target) {
    static const struct { int shift, bits; } LEVELS[] = {{21, 11}, {10, 11}, {0, 10}};
    threshold t = {0, 0.0};
    uint32_t known = 0; /* mask of the bits of t.key that are settled */
    for (size_t level = 0; level < sizeof LEVELS / sizeof LEVELS[0]; level++) {
        const int shift = LEVELS[level].shift, n_bins = 1 << LEVELS[level].bits;
        memset(s->mass, 0, sizeof s->mass);
        memset(s->count, 0, sizeof s->count);
        for (int i = 0; i < n; i++) {
            const uint32_t key = order_key(logit[s->id[i]]);
            if ((key & known) != t.key) continue;
            const uint32_t bin = key >> shift & (uint32_t)(n_bins - 1);
            s->mass[bin] += by_mass ? (double)s->weight[s->id[i]] : 1.0;
            s->count[bin]++;
        }
        int bin = n_bins - 1, last = -1;
        for (; bin >= 0; bin--) {
            if (s->count[bin] == 0) continue;
            last = bin;
            if (t.before + s->mass[bin] >= target) break;
            t.before += s->mass[bin];
        }
        if (bin < 0) { /* rounding kept the total below the target: keep all */
            bin = last;
            t.before -= s->mass[bin];
        }
        t.key |= (uint32_t)bin << shift;
        known |= (uint32_t)(n_bins - 1) << shift;
    }
    return t;
}

/* Keeps the k largest and all that tie with the k-th. */
static int keep_top_k(const float *logit, int n, int k, sample_scratch *s) {
    if (k <= 0 || k >= n) return n;
    const threshold t = find_threshold(logit, n, s, false, (double)k);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        if (order_key(logit[s->id[i]]) >= t.key) s->id[kept++] = s->id[i];
    }
    return kept;
}

/* Keeps the smallest prefix, by descending logit and ascending id, whose mass reaches p. */
static int keep_top_p(const float *logit, int n, float p, sample_scratch *s) {
    if (p <= 0.0f || p >= 1.0f) return n;
    double total = 0.0;
    for (int i = 0; i < n; i++) total += (double)s->weight[s->id[i]];
    const double target = (double)p * total;
    threshold t = find_threshold(logit, n, s, true, target);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        const int32_t id = s->id[i];
        const uint32_t key = order_key(logit[id]);
        if (key == t.key && t.before < target) {
            t.before += (double)s->weight[id];
            s->id[kept++] = id;
        } else if (key > t.key) {
            s->id[kept++] = id;
        }
    }
    return kept;
}

int sample_distribution(const cpu_kernels *k, const sample_vocab *v, const float *logits,
                        const sample_row *row, const token_bias *bias, const token_seen *seen,
                        sample_scratch *s, double *total) {
    const float *logit = changed_logits(v, logits, row, bias, seen, s);
    float max = 0.0f;
    if (!k->scan_max(logit, v->n_vocab, &max) || max == -INFINITY) return 0;
    k->scan_exp(logit, v->n_vocab, max, 1.0f / row->temperature, s->weight);
    int n = 0;
    for (int i = 0; i < v->n_vocab; i++) {
        if (logit[i] > -INFINITY && s->weight[i] >= row->min_p) s->id[n++] = i;
    }
    n = keep_top_k(logit, n, row->top_k, s);
    n = keep_top_p(logit, n, row->top_p, s);
    *total = 0.0;
    for (int i = 0; i < n; i++) *total += (double)s->weight[s->id[i]];
    return n;
}

/* Inverse CDF over the survivors by ascending id. */
static int32_t draw(const sample_row *row, const sample_scratch *s, int n, double total) {
    const double target = (double)sample_uniform(row->seed, row->position) * total;
    double sum = 0.0;
    int32_t last = -1;
    for (int i = 0; i < n; i++) {
        const float w = s->weight[s->id[i]];
        if (w <= 0.0f) continue;
        last = s->id[i];
        sum += (double)w;
        if (sum > target) break;
    }
    return last;
}

static int32_t choose(const cpu_kernels *k, const sample_vocab *v, const float *logits,
                      const sample_row *row, const token_bias *bias, const token_seen *seen,
                      sample_scratch *s) {
    if (row->temperature > 0.0f) {
        double total = 0.0;
        const int n = sample_distribution(k, v, logits, row, bias, seen, s, &total);
        return n == 0 ? -1 : draw(row, s, n, total);
    }
    const float *logit = changed_logits(v, logits, row, bias, seen, s);
    float max = 0.0f;
    if (!k->scan_max(logit, v->n_vocab, &max) || max == -INFINITY) return -1;
    return k->scan_find(logit, v->n_vocab, max); /* the first: the lowest id */
}

/* The n most likely tokens, descending, ties by id: one pass with a short sorted list. */
static void most_likely(const float *logits, int n_vocab, double log_sum, int n_top, sampled *out) {
    const int want = n_top < LIMIT_TOP_LOGPROBS ? n_top : LIMIT_TOP_LOGPROBS;
    int n = 0;
    for (int i = 0; i < n_vocab && want > 0; i++) {
        if (n == want && logits[i] <= logits[out->top_token[n - 1]]) continue;
        int at = n < want ? n++ : n - 1;
        for (; at > 0 && logits[i] > logits[out->top_token[at - 1]]; at--)
            out->top_token[at] = out->top_token[at - 1];
        out->top_token[at] = i;
    }
    out->n_top = n;
    for (int i = 0; i < n; i++)
        out->top_logprob[i] = (float)((double)logits[out->top_token[i]] - log_sum);
}

void sample_answer(const cpu_kernels *k, const sample_vocab *v, const float *logits,
                   const sample_row *row, const token_bias *bias, const token_seen *seen,
                   sample_scratch *s, sampled *out) {
    *out = (sampled){.token = -1};
    float max = 0.0f;
    if (!k->scan_max(logits, v->n_vocab, &max)) return;
    const int32_t token = row->target >= 0 ? row->target : choose(k, v, logits, row, bias, seen, s);
    if (token < 0) return;
    out->token = token;
    out->finite = true;
    if (!row->logprob && row->target < 0 && row->n_top == 0) return;
    const double log_sum = (double)max + log(k->scan_exp(logits, v->n_vocab, max, 1.0f, NULL));
    out->logprob = (float)((double)logits[token] - log_sum);
    out->rank = k->scan_count_above(logits, v->n_vocab, logits[token]) + 1;
    most_likely(logits, v->n_vocab, log_sum, row->n_top, out);
}
