/* Checks kernels/cuda sampling against a plain host version in double: every rule of step.h over
 * odd vocabularies and kinds of logits; equal results for every number of rows (cluster sizes
 * differ); raw logits unchanged afterwards. A draw within 1e-5 of a border between tokens may fall
 * either way. Usage: cuda_sample_check [small]   small: short, for compute-sanitizer */
#include <string.h>

#include <algorithm>
#include <string>

#include "kernels/cuda/sample.h"
#include "kernels/cuda_check.h"

struct row_case {
    sample_row r;
    std::vector<token_bias> bias;
    std::vector<token_seen> seen;
};

enum kind { NORMAL, PEAKED, EQUAL, FEW_VALUES, HUGE_SCALE, KINDS };

static std::vector<float> make_logits(int n, int kind, rng &r) {
    std::vector<float> x(n);
    for (float &v : x) {
        const float z = r.normal();
        v = kind == EQUAL        ? 1.5f
            : kind == FEW_VALUES ? (float)(int)(z * 2.0f)
            : kind == HUGE_SCALE ? z * 3000.0f
            : kind == PEAKED     ? z * 1.5f
                                 : z * 2.5f;
    }
    if (kind == PEAKED) {
        for (int k = 0; k < 30; k++) x[r.below(n)] = 16.0f - 0.35f * (float)k;
    }
    return x;
}

/* What may come out of a row. */
struct expected {
    std::vector<int> order; /* kept tokens, most likely first */
    int token;
    bool near_border; /* another token is as right */
};

static std::vector<float> adjusted(const row_case &c, const std::vector<float> &x,
                                   const std::vector<uint8_t> &never) {
    std::vector<float> y = x;
    for (const token_bias &b : c.bias) y[b.token] += b.bias;
    for (const token_seen &s : c.seen) {
        float &v = y[s.token];
        const float rep = c.r.repetition_penalty;
        if (rep > 0.0f && rep != 1.0f) v = v > 0.0f ? v / rep : v * rep;
        v -= c.r.frequency_penalty * (float)s.n_output;
        if (s.n_output > 0) v -= c.r.presence_penalty;
    }
    for (size_t i = 0; i < never.size(); i++) {
        if (never[i]) y[i] = -INFINITY;
    }
    return y;
}

static expected draw(const row_case &c, const std::vector<float> &y) {
    expected e;
    const sample_row &r = c.r;
    const int n_vocab = (int)y.size();
    std::vector<int> &o = e.order;
    for (int i = 0; i < n_vocab; i++) o.push_back(i);
    std::sort(o.begin(), o.end(), [&](int a, int b) { return y[a] != y[b] ? y[a] > y[b] : a < b; });
    e.token = o[0];
    e.near_border = false;
    if (r.temperature <= 0.0f) return e;
    std::vector<double> w(n_vocab);
    for (int i = 0; i < n_vocab; i++) {
        w[i] = exp(((double)y[o[i]] - (double)y[o[0]]) / (double)r.temperature);
    }
    int n = n_vocab;
    while (n > 1 && y[o[n - 1]] == -INFINITY) n--;
    const double eps = 1e-5;
    if (r.min_p > 0.0f) {
        int q = 0;
        while (q < n && w[q] >= (double)r.min_p) q++;
        for (int d = std::max(1, q - 2); d < std::min(n, q + 3); d++) {
            if (fabs(w[d] / (double)r.min_p - 1.0) < eps) e.near_border = true;
        }
        n = std::max(1, q);
    }
    if (r.top_k > 0 && r.top_k < n) {
        int q = r.top_k;
        while (q < n && y[o[q]] == y[o[r.top_k - 1]]) q++;
        n = q;
    }
    double mass = 0;
    for (int i = 0; i < n; i++) mass += w[i];
    if (r.top_p > 0.0f && r.top_p < 1.0f) {
        double cum = 0;
        int q = 0;
        while (q < n) {
            cum += w[q++];
            if (fabs(cum / mass - (double)r.top_p) < eps) e.near_border = true;
            if (cum >= (double)r.top_p * mass) break;
        }
        n = q;
        mass = cum;
    }
    o.resize(n);
    std::vector<std::pair<int, double>> by_id;
    for (int i = 0; i < n; i++) by_id.push_back({o[i], w[i]});
    std::sort(by_id.begin(), by_id.end());
    const double x = (double)sample_uniform(r.seed, r.position) * mass;
    double cum = 0;
    int at = -1;
    for (int i = 0; i < n; i++) {
        cum += by_id[i].second;
        if (fabs(cum - x) < eps * mass) e.near_border = true;
        if (at < 0 && cum > x) at = i;
    }
    e.token = by_id[at < 0 ? n - 1 : at].first;
    return e;
}

struct batch {
    int n_vocab, stride;
    std::vector<row_case> cases;
    std::vector<std::vector<float>> logits;
    std::vector<uint8_t> never;
    bool shared = false; /* all rows have the first row's lists */
};

struct result {
    std::vector<int32_t> token;
    std::vector<sampled> out;
    bool detail, intact;
};

/* Rows [from, from + n) of b as the arrays of a step. */
struct step_arrays {
    std::vector<sample_row> rows;
    std::vector<token_bias> bias;
    std::vector<token_seen> seen;
    std::vector<float> logits;
    step_arrays(const batch &b, int from, int n)
        : logits((size_t)n * b.stride, NAN) { /* NaN in the padding must not matter */
        for (int i = 0; i < n; i++) {
            const row_case &c = b.cases[from + i];
            sample_row r = c.r;
            r.row = i;
            if (b.shared && i > 0) { /* the choices of a request: one list for all */
                r.i_bias = rows[0].i_bias, r.n_bias = rows[0].n_bias;
                r.i_seen = rows[0].i_seen, r.n_seen = rows[0].n_seen;
                push(b, r, from, i);
                continue;
            }
            r.i_bias = (int)bias.size();
            r.n_bias = (int)c.bias.size();
            r.i_seen = (int)seen.size();
            r.n_seen = (int)c.seen.size();
            bias.insert(bias.end(), c.bias.begin(), c.bias.end());
            seen.insert(seen.end(), c.seen.begin(), c.seen.end());
            push(b, r, from, i);
        }
    }
    void push(const batch &b, const sample_row &r, int from, int i) {
        rows.push_back(r);
        std::copy(b.logits[from + i].begin(), b.logits[from + i].end(),
                  logits.begin() + (size_t)i * b.stride);
    }
};

/* Launches twice: the workspace must be back at rest. */
static void launch_twice(const sampler &s, const sampler_plan &p, const sampler_args &a,
                         const device_array<int32_t> &token, result *r) {
    for (int pass = 0; pass < 2; pass++) {
        CUDA_OK(cudaMemset(a.token, 0x7f, token.n * sizeof(int32_t)));
        if (cuda_sample(&s, &p, &a, 0) != OK) {
            printf("launch failed\n");
            exit(1);
        }
        CUDA_OK(cudaDeviceSynchronize());
        std::vector<int32_t> t = token.get();
        if (pass && t != r->token) {
            printf("second pass differs\n");
            t[0] = -2;
        }
        r->token = t;
    }
}

/* Runs rows [from, from + n) of b as one step. */
static result run(const batch &b, int from, int n) {
    step_arrays h(b, from, n);
    std::vector<uint8_t> never = b.never;
    never.resize(b.stride, 0);
    device_array<uint8_t> dnever(never);
    sampler s;
    error err;
    step st;
    sampler_plan p;
    memset(&st, 0, sizeof st);
    st.n_samples = n;
    st.sample = h.rows.data();
    if (sampler_init(&s, b.n_vocab, b.stride, n, (int)(h.bias.size() + h.seen.size()),
                     b.never.empty() ? nullptr : dnever.p, 0, &err) != OK) {
        printf("%s\n", err.text);
        exit(1);
    }
    std::vector<char> plan(sampler_plan_bytes(&s));
    if (sampler_plan_make(&s, &st, plan.data(), &p) != OK) {
        printf("plan refused\n");
        exit(1);
    }
    device_array<sample_row> rows(h.rows);
    device_array<token_bias> bias(h.bias);
    device_array<token_seen> seen(h.seen);
    device_array<char> dplan(plan), work(sampler_workspace_bytes(&s));
    work.fill(0);
    device_array<float> logits(h.logits);
    device_array<int32_t> token((size_t)n);
    device_array<sampled> out((size_t)n);
    out.fill(0x7f);
    const sampler_args a = {logits.p, rows.p, bias.p,  seen.p,
                            dplan.p,  work.p, token.p, p.detail ? out.p : nullptr,
                            false};
    result r;
    launch_twice(s, p, a, token, &r);
    r.out = out.get();
    r.detail = p.detail;
    const std::vector<float> after = logits.get();
    r.intact = memcmp(after.data(), h.logits.data(), after.size() * 4) == 0;
    return r;
}

static bool check_detail(const row_case &c, const std::vector<float> &x, const sampled &o,
                         int token) {
    const int n = (int)x.size();
    float top = -INFINITY;
    for (float v : x) top = fmaxf(top, v);
    double z = 0;
    for (float v : x) z += exp((double)v - (double)top);
    const double lse = (double)top + log(z), slack = 4e-6 + 2e-7 * fabs(lse);
    auto near = [&](float got, double want) { /* the answer itself is a float */
                                              return fabs((double)got - want) <
                                                     slack + 1e-7 * fabs(want);
    };
    int rank = 1;
    for (float v : x) rank += v > x[token];
    bool ok =
        o.token == token && o.finite && o.rank == rank && near(o.logprob, (double)x[token] - lse);
    const int k = std::min(c.r.n_top, n);
    if (o.n_top != k) return false;
    std::vector<int> id(n);
    for (int i = 0; i < n; i++) id[i] = i;
    std::partial_sort(id.begin(), id.begin() + k, id.end(),
                      [&](int a, int b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    for (int i = 0; i < k; i++) {
        ok = ok && o.top_token[i] == id[i] && near(o.top_logprob[i], (double)x[id[i]] - lse);
    }
    return ok;
}

static int verify(const batch &b, const char *what) {
    const int n = (int)b.cases.size();
    const result all = run(b, 0, n);
    int wrong = !all.intact, border = 0, differ = 0;
    for (int i = 0; i < n; i++) {
        const row_case &c = b.cases[i];
        const std::vector<float> &x = b.logits[i];
        bool bad = false;
        for (float v : x) bad |= !(v < INFINITY);
        if (bad) {
            wrong += all.token[i] != -1 || (all.detail && all.out[i].finite);
            continue;
        }
        int token = all.token[i];
        if (c.r.target >= 0) {
            if (token != c.r.target) wrong++;
        } else {
            const std::vector<float> y = adjusted(c, x, b.never);
            if (*std::max_element(y.begin(), y.end()) == -INFINITY) { /* nothing may be drawn */
                wrong += token != -1 || (all.detail && all.out[i].finite);
                continue;
            }
            const expected e = draw(c, y);
            if (token != e.token) {
                const bool kept = std::find(e.order.begin(), e.order.end(), token) != e.order.end();
                if (e.near_border)
                    border++;
                else {
                    wrong++;
                    printf(
                        "  %s row %d: token %d, expected %d of %zu%s (T %g p %g min-p %g k %d)\n",
                        what, i, token, e.token, e.order.size(), kept ? "" : ", not kept",
                        (double)c.r.temperature, (double)c.r.top_p, (double)c.r.min_p, c.r.top_k);
                }
            }
        }
        const bool wants = c.r.logprob || c.r.n_top > 0 || c.r.target >= 0;
        if (wants && token >= 0 && token < b.n_vocab && !check_detail(c, x, all.out[i], token)) {
            wrong++;
            printf("  %s row %d: logprob %g rank %d n_top %d\n", what, i,
                   (double)all.out[i].logprob, all.out[i].rank, all.out[i].n_top);
        }
    }
    for (int size : {1, 20, 40}) { /* other cluster sizes, other neighbours */
        if (size >= n) continue;
        const int from = size == 1 ? n - 1 : 0;
        const result part = run(b, from, size);
        for (int i = 0; i < size; i++) differ += part.token[i] != all.token[from + i];
        wrong += !part.intact;
    }
    wrong += differ;
    printf("%-40s rows %3d border %d batch differs %d %s%s\n", what, n, border, differ,
           all.intact ? "" : "logits changed ", wrong ? "WRONG" : "ok");
    fflush(stdout);
    return wrong;
}

static sample_row params(float t, float p, float m, int k) {
    sample_row r;
    memset(&r, 0, sizeof r);
    r.target = -1;
    r.temperature = t;
    r.top_p = p;
    r.min_p = m;
    r.top_k = k;
    return r;
}

static batch make_batch(int n_vocab, int kind, bool detail, bool entries, bool never, bool greedy,
                        int seed) {
    static const sample_row sets[] = {
        params(1, 0, 0, 0),        params(0.7f, 0.95f, 0.05f, 40),  params(1, 0.9f, 0, 0),
        params(2, 0.9f, 0, 0),     params(1, 0, 0.02f, 0),          params(1.3f, 0.8f, 0.01f, 0),
        params(1, 0.97f, 0, 5000), params(2, 0.999f, 0, 0),         params(1, 0.05f, 0, 0),
        params(0, 0, 0, 0),        params(0.8f, 0.95f, 0, 50),      params(2, 0.9f, 0, 3),
        params(1, 0, 0, 1),        params(2, 0.9f, 0.001f, 100000), params(1.5f, 0, 0, 1024),
        params(0.01f, 0.5f, 0, 0)};
    batch b;
    b.n_vocab = n_vocab;
    b.stride = (n_vocab + 7) / 8 * 8 + (seed & 1) * 8;
    rng r{(uint64_t)seed * 7919u + (uint64_t)n_vocab};
    if (never) {
        b.never.assign(n_vocab, 0);
        for (int i = n_vocab - n_vocab / 8; i < n_vocab; i++) b.never[i] = 1;
        if (n_vocab > 40) b.never[37] = 1;
    }
    for (int i = 0; i < 48; i++) {
        row_case c;
        c.r = greedy ? params(0, 0, 0, 0) : sets[i % 16];
        c.r.seed = r.next() | (uint64_t)r.next() << 32;
        c.r.position = (uint64_t)i * 3;
        std::vector<float> x = make_logits(n_vocab, kind, r);
        if (detail) {
            c.r.logprob = i % 3 != 0;
            c.r.n_top = i % 4 == 1 ? 20 : i % 4 == 2 ? 1 : 0;
            if (i % 7 == 6) c.r.target = r.below(n_vocab);
        }
        if (entries && i % 3 != 1) {
            c.r.repetition_penalty = i % 2 ? 1.3f : 0.0f;
            c.r.frequency_penalty = i % 5 ? 0.3f : -0.5f;
            c.r.presence_penalty = 0.2f;
            std::vector<int> ids(n_vocab);
            for (int j = 0; j < n_vocab; j++) ids[j] = j;
            const int n = std::min(n_vocab / 2, i % 4 == 3 ? 5000 : 40);
            for (int j = 0; j < n; j++) {
                std::swap(ids[j], ids[j + r.below(n_vocab - j)]);
                c.seen.push_back({ids[j], r.below(4)});
            }
            const int n_bias = std::min(n_vocab / 2, 20);
            for (int j = 0; j < n_bias; j++) { /* half of them seen as well */
                const int at = j % 2 && j < n ? j : n - 1 + j - j / 2;
                if (at < 0 || at >= n_vocab) continue;
                bool twice = false;
                for (const token_bias &o : c.bias) twice |= o.token == ids[at];
                if (!twice) {
                    c.bias.push_back({ids[at], j % 5 == 4 ? -INFINITY : 6.0f * r.normal()});
                }
            }
            const int best = (int)(std::max_element(x.begin(), x.end()) - x.begin());
            bool seen = false;
            for (const token_seen &o : c.seen) seen |= o.token == best;
            if (!seen) c.seen.push_back({best, 2});
        }
        if (i == 45) x[r.below(n_vocab)] = NAN;
        if (i == 46) x[r.below(n_vocab)] = INFINITY;
        if (i == 47 && n_vocab > 4) x[r.below(n_vocab)] = -INFINITY; /* legal */
        b.cases.push_back(c);
        b.logits.push_back(x);
    }
    return b;
}

/* Lists that rows share need more entries than the arrays hold: sampled in ranges. */
static int verify_shared(int n_vocab) {
    batch b = make_batch(n_vocab, NORMAL, true, true, false, false, 9);
    b.shared = true;
    row_case first = b.cases[3]; /* the longest lists */
    for (row_case &c : b.cases) {
        c.bias = first.bias;
        c.seen = first.seen;
        c.r.repetition_penalty = 1.2f;
    }
    return verify(b, "shared lists") != 0;
}

int main(int argc, char **argv) {
    if (cuda_device_missing()) return 0;
    const bool small = argc > 1 && !strcmp(argv[1], "small");
    int wrong = 0, n = 0;
    const std::vector<int> vocabs =
        small ? std::vector<int>{5, 4099}
              : std::vector<int>{1, 2, 5, 31, 257, 4096, 4097, 32064, 151936};
    for (int v : vocabs) {
        for (int kind = 0; kind < KINDS; kind++) {
            for (int mode = 0; mode < 5; mode++) {
                if (small && kind != NORMAL && kind != EQUAL) continue;
                if (v > 100000 && (kind > EQUAL || mode % 2 == 0)) continue; /* host time */
                const bool detail = mode == 1 || mode == 3, entries = mode == 2 || mode == 3;
                const bool never = mode == 3 && v > 16, greedy = mode == 4;
                char what[80];
                snprintf(what, sizeof what, "vocab %d kind %d%s%s%s%s", v, kind,
                         detail ? " detail" : "", entries ? " entries" : "", never ? " never" : "",
                         greedy ? " greedy" : "");
                wrong += verify(make_batch(v, kind, detail, entries, never || (greedy && v > 64),
                                           greedy, mode + 1),
                                what) != 0;
                n++;
            }
        }
    }
    for (int v : small ? std::vector<int>{4099} : std::vector<int>{257, 32064}) {
        wrong += verify_shared(v);
        n++;
    }
    printf("sampling: %d batches, %d wrong\n", n, wrong);
    return wrong ? 1 : 0;
}
