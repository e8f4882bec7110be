/* Checks kernels/cuda attention against a plain double-precision host version: every layout, odd
 * shapes, groups 1..8 and beyond, windows, stale NaNs behind a sequence's end, split plans; and
 * that the deterministic kernel's bits do not depend on batch or chunking. Usage:
 * cuda_attention_check [substring of a case name] */
#include "kernels/cuda_attention_case.h"

static void fill_pool(const attention_case &c, const case_step &st, host_pool &pool, rng &r) {
    std::vector<float> x(c.dim);
    for (size_t q = 0; q < c.seqs.size(); q++) {
        const int n = st.block_start[q + 1] - st.block_start[q];
        for (int k = 0; k < n * c.block_tokens; k++) {
            /* Decode kernels must not let stale keys leak; prefill relies on a finite pool. */
            const bool stale = k >= c.seqs[q].keys && c.seqs[q].rows == 1 && !c.deterministic;
            for (int h = 0; h < c.n_kv_heads; h++) {
                for (int v = 0; v < 2; v++) {
                    for (float &f : x) f = stale && c.type != DTYPE_I8 ? NAN : r.normal();
                    pool.set(st.block[st.block_start[q] + k / c.block_tokens], h, v,
                             k % c.block_tokens, x);
                }
            }
        }
    }
}

static double reference_error(const attention_case &c, const case_step &st, host_pool &pool,
                              const std::vector<float> &q, const std::vector<float> &out,
                              float scale) {
    double num = 0, den = 0;
    std::vector<double> p, o(c.dim);
    const int group = c.n_heads / c.n_kv_heads;
    for (int row = 0; row < st.s.n_tokens; row++) {
        const int seq = st.row_seq[row], pos = st.row_pos[row];
        const int low = c.window > 0 && pos + 1 > c.window ? pos + 1 - c.window : 0;
        const int32_t *block = st.block.data() + st.block_start[seq];
        for (int h = 0; h < c.n_heads; h++) {
            const float *qr = &q[((size_t)row * c.n_heads + h) * c.dim];
            double top = -1e300, sum = 0;
            p.assign(pos + 1, 0.0);
            for (int k = low; k <= pos; k++) {
                double s = 0;
                for (int d = 0; d < c.dim; d++) {
                    s += (double)qr[d] * (double)pool.get(block[k / c.block_tokens], h / group, 0,
                                                          k % c.block_tokens, d);
                }
                p[k] = s * (double)scale;
                top = fmax(top, p[k]);
            }
            std::fill(o.begin(), o.end(), 0.0);
            for (int k = low; k <= pos; k++) {
                const double w = exp(p[k] - top);
                sum += w;
                for (int d = 0; d < c.dim; d++) {
                    o[d] += w * (double)pool.get(block[k / c.block_tokens], h / group, 1,
                                                 k % c.block_tokens, d);
                }
            }
            for (int d = 0; d < c.dim; d++) {
                const double x = o[d] / sum;
                const double y = (double)out[((size_t)row * c.n_heads + h) * c.dim + d];
                num += (x - y) * (x - y);
                den += x * x;
            }
        }
    }
    return sqrt(num / den); /* NaN when an output is NaN: never within a tolerance */
}

/* Queries as the kernels get them, and as floats. */
struct queries {
    std::vector<float> f;
    std::vector<uint16_t> h;
    queries(const attention &a, size_t n, rng &r) : f(n), h(n) {
        for (size_t i = 0; i < n; i++) {
            f[i] = r.normal();
            if (a.q_type == DTYPE_F32) continue;
            h[i] = to16(a.q_type, f[i]);
            f[i] = from16(a.q_type, h[i]);
        }
    }
};

struct answer {
    std::vector<float> out;
    attention_plan plan;
    bool ok, repeatable;
};

/* Plans and runs the step twice: counters must be back at rest. bucket as in attention_plan_make.
 */
static answer run_step(const attention &a, const case_step &st, const host_pool &pool,
                       const queries &q, int bucket) {
    answer r = {};
    device_array<char> dpool(pool.bytes), work(attention_workspace_bytes(&a));
    work.fill(0);
    device_array<float> dq32(q.f), out(q.f.size());
    device_array<uint16_t> dq16(q.h);
    out.fill(0xff);
    const device_step ds(st);
    const step_device view = ds.view();
    std::vector<char> buffer(attention_plan_bytes(&a));
    if (attention_plan_make(&a, &st.s, bucket, buffer.data(), &r.plan) != OK) return r;
    buffer.resize(r.plan.bytes); /* what the plan says it needs is all that is uploaded */
    device_array<char> dplan(buffer);
    attention_args args;
    memset(&args, 0, sizeof args);
    args.q = a.q_type == DTYPE_F32 ? (void *)dq32.p : (void *)dq16.p;
    args.kv_layer = dpool.p;
    args.out = out.p;
    args.out_type = DTYPE_F32;
    args.step = &view;
    args.n_tokens = st.s.n_tokens;
    args.plan = dplan.p;
    args.workspace = work.p;
    for (int pass = 0; pass < 2; pass++) {
        if (cuda_attention(&a, &r.plan, &args, 0) != OK) return r;
        CUDA_OK(cudaDeviceSynchronize());
        const std::vector<float> o = out.get();
        r.repeatable = memcmp(o.data(), (pass ? r.out : o).data(), o.size() * 4) == 0;
        r.out = o;
    }
    r.ok = true;
    return r;
}

static bool run_case(const attention_case &c) {
    rng r{(uint64_t)c.dim * 1000003u + (uint64_t)c.n_heads * 101u + (uint64_t)c.seqs.size()};
    case_step st;
    make_step(c, r, st);
    const model_desc m = model_of(c);
    attention a;
    error err;
    if (attention_init(&a, &m, c.type, c.block_tokens, st.s.n_tokens, st.s.n_seqs + 2, 0,
                       c.deterministic, &err) != OK) {
        printf("%-44s init: %s\n", c.name.c_str(), err.text);
        return false;
    }
    host_pool pool(a.kv, st.n_blocks);
    fill_pool(c, st, pool, r);
    const queries q(a, (size_t)st.s.n_tokens * c.n_heads * c.dim, r);
    /* Every other case as a captured graph would have it, with room for two more rows. */
    const int bucket = c.seqs.size() & 1 ? st.s.n_decode + 2 : 0;
    const answer got = run_step(a, st, pool, q, bucket);
    const double e = got.ok ? reference_error(c, st, pool, q.f, got.out, m.attn_scale) : NAN;
    const double limit = c.type == DTYPE_F32 ? 1e-5 : c.type == DTYPE_BF16 ? 6e-3 : 1.5e-3;
    const bool ok = got.ok && e < limit && got.repeatable;
    printf("%-44s items %4d tiles %4d error %.1e %s%s\n", c.name.c_str(), got.plan.n_items,
           got.plan.n_tiles, e, got.repeatable ? "" : "not repeatable ", ok ? "ok" : "WRONG");
    fflush(stdout);
    return ok;
}

/* Deterministic mode: the last rows of a sequence, as one chunk of all its rows, as the end of a
 * later chunk beside other sequences, and alone, also in a captured grid: equal bits. */
static bool run_invariance(dtype type, int dim, int window, int keys) {
    const int hq = 6, hkv = 2;
    const std::vector<std::vector<sequence_case>> batches = {
        {{keys, keys}}, {{1, 70}, {21, 33}, {40, keys}}, {{1, keys}}, {{1, 9}, {1, keys}}};
    std::vector<float> want;
    bool ok = true;
    for (const auto &seqs : batches) {
        const attention_case c{"", type, dim, hq, hkv, 32, window, true, seqs};
        const int rows = seqs.back().rows;
        rng r{77};
        case_step st;
        make_step(c, r, st);
        const model_desc m = model_of(c);
        attention a;
        error err;
        if (attention_init(&a, &m, type, 32, st.s.n_tokens, st.s.n_seqs + 3, 0, true, &err) != OK) {
            return false;
        }
        host_pool pool(a.kv, st.n_blocks);
        queries q(a, (size_t)st.s.n_tokens * hq * dim, r);
        rng same{5}; /* keys of the last sequence and its queries do not depend on the batch */
        const int32_t *block = &st.block[st.block_start[seqs.size() - 1]];
        std::vector<float> x(dim);
        for (int k = 0; k < keys * hkv * 2; k++) {
            for (float &f : x) f = same.normal();
            pool.set(block[k / (hkv * 2) / 32], k / 2 % hkv, k % 2, k / (hkv * 2) % 32, x);
        }
        const queries all(a, (size_t)keys * hq * dim, same);
        const size_t n = (size_t)rows * hq * dim;
        std::copy(all.h.end() - n, all.h.end(), q.h.end() - n);
        const int bucket = st.s.n_decode == st.s.n_seqs ? st.s.n_seqs + 3 : 0;
        const answer got = run_step(a, st, pool, q, bucket);
        if (want.empty()) want = got.out;
        ok = ok && got.ok &&
             memcmp(&want[want.size() - n], &got.out[got.out.size() - n], n * 4) == 0;
    }
    printf("invariance %-4s D%-3d window %d keys %d: %s\n", dtype_get(type)->name, dim, window,
           keys, ok ? "ok" : "WRONG");
    return ok;
}

static std::string label(const char *kind, dtype t, int dim, int hq, int hkv, int page) {
    char s[96];
    snprintf(s, sizeof s, "%s %s D%d %d/%d block %d", kind, dtype_get(t)->name, dim, hq, hkv, page);
    return s;
}

static void add_decode(std::vector<attention_case> &v) {
    const std::vector<sequence_case> odd = {{1, 1}, {1, 17}, {1, 64}, {1, 65}, {1, 333}};
    for (dtype t : {DTYPE_BF16, DTYPE_F16, DTYPE_I8}) {
        for (int dim : {64, 80, 96, 128, 256}) {
            for (int page : {16, 32, 64}) {
                const int hkv = page == 32 ? 2 : 1, hq = hkv * (page == 16 ? 7 : 4);
                v.push_back(
                    {label("decode", t, dim, hq, hkv, page), t, dim, hq, hkv, page, 0, false, odd});
            }
        }
        for (int g : {1, 2, 3, 5, 6, 8, 11}) {
            v.push_back({label("group", t, 64, g * 2, 2, 32), t, 64, g * 2, 2, 32, 0, false, odd});
        }
        v.push_back(
            {label("split", t, 128, 8, 2, 32), t, 128, 8, 2, 32, 0, false, {{1, 1500}, {1, 129}}});
        v.push_back({label("window", t, 128, 4, 1, 16),
                     t,
                     128,
                     4,
                     1,
                     16,
                     100,
                     false,
                     {{1, 1500}, {1, 129}, {1, 100}, {1, 7}}});
        v.push_back({label("mixed", t, 64, 6, 2, 32),
                     t,
                     64,
                     6,
                     2,
                     32,
                     0,
                     false,
                     {{1, 40}, {1, 1}, {5, 5}, {33, 90}}});
    }
}

static void add_prefill(std::vector<attention_case> &v) {
    /* Prefill: chunks with and without a prefix, rows that fill no tile, windows; and the same rows
     * by the deterministic kernel. */
    const std::vector<sequence_case> chunks = {{1, 40}, {2, 2}, {37, 37}, {129, 129}, {33, 350}};
    for (bool deterministic : {false, true}) {
        for (dtype t : {DTYPE_BF16, DTYPE_F16, DTYPE_I8}) {
            for (int dim : {64, 80, 96, 128, 256}) {
                for (int page : {16, 32, 64}) {
                    if (deterministic && page != 32) continue;
                    const int hkv = page == 32 ? 2 : 1, hq = hkv * (page == 16 ? 7 : 3);
                    v.push_back({label(deterministic ? "tiles" : "prefill", t, dim, hq, hkv, page),
                                 t, dim, hq, hkv, page, page == 64 ? 50 : 0, deterministic,
                                 chunks});
                }
            }
            v.push_back({label(deterministic ? "tiles cut" : "prefill cut", t, 128, 4, 1, 32),
                         t,
                         128,
                         4,
                         1,
                         32,
                         0,
                         deterministic,
                         {{20, 2500}, {64, 1900}}});
            v.push_back({label("window long", t, 64, 2, 2, 32),
                         t,
                         64,
                         2,
                         2,
                         32,
                         200,
                         deterministic,
                         {{1, 900}, {300, 700}}});
        }
    }
}

static void add_plain(std::vector<attention_case> &v) {
    const std::vector<sequence_case> odd = {{1, 1}, {1, 17}, {1, 64}, {1, 65}, {1, 333}};
    for (int dim : {2, 16, 48, 64, 250}) {
        v.push_back({label("plain", DTYPE_F32, dim, 6, 2, 16),
                     DTYPE_F32,
                     dim,
                     6,
                     2,
                     16,
                     20,
                     false,
                     {{1, 40}, {1, 1}, {5, 5}, {33, 90}}});
    }
    for (dtype t : {DTYPE_F16, DTYPE_BF16, DTYPE_I8}) {
        v.push_back({label("plain", t, 48, 3, 1, 32), t, 48, 3, 1, 32, 0, false, odd});
    }
}

int main(int argc, char **argv) {
    if (cuda_device_missing()) return 0;
    const char *only = argc > 1 ? argv[1] : "";
    std::vector<attention_case> cases;
    add_decode(cases);
    add_prefill(cases);
    add_plain(cases);
    int wrong = 0, n = 0;
    for (const attention_case &c : cases) {
        if (!strstr(c.name.c_str(), only)) continue;
        n++;
        wrong += !run_case(c);
    }
    if (!*only || !strcmp(only, "invariance")) {
        for (dtype t : {DTYPE_F16, DTYPE_BF16, DTYPE_I8}) {
            for (int dim : {64, 80, 128, 256}) {
                n += 2;
                wrong += !run_invariance(t, dim, 0, 150);
                wrong += !run_invariance(t, dim, dim == 64 ? 700 : 0, 1300);
            }
        }
    }
    printf("attention: %d checks, %d wrong\n", n, wrong);
    return wrong ? 1 : 0;
}
