/* Checks kernels/cuda attention against a plain double-precision host version: every layout, odd
 * shapes, groups 1..8 and beyond, windows, stale NaNs behind a sequence's end, split plans, RoPE in
 * both pairings, append, block copies. Usage: cuda_attention_check [substring of a case name] */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

#include <string>

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda_check.h"

struct sequence_case {
    int rows, keys; /* rows of this step, keys after it */
};

struct attention_case {
    std::string name;
    dtype type;
    int dim, n_heads, n_kv_heads, block_tokens, window;
    bool deterministic;
    std::vector<sequence_case> seqs; /* decode rows (1 row) first */
};

static uint16_t to16(dtype t, float x) {
    uint16_t u;
    if (t == DTYPE_BF16) {
        const __nv_bfloat16 b = __float2bfloat16(x);
        memcpy(&u, &b, 2);
    } else {
        const __half h = __float2half(x);
        memcpy(&u, &h, 2);
    }
    return u;
}
static float from16(dtype t, uint16_t u) {
    if (t == DTYPE_BF16) {
        __nv_bfloat16 b;
        memcpy(&b, &u, 2);
        return __bfloat162float(b);
    }
    __half h;
    memcpy(&h, &u, 2);
    return __half2float(h);
}

/* A pool on the host, written and read through the layout's address functions. */
struct host_pool {
    kv_layout l;
    std::vector<char> bytes;
    host_pool(const kv_layout &layout, int n_blocks)
        : l(layout), bytes((size_t)n_blocks * layout.block_bytes, 0) {}
    char *head(int block, int kv_head) { return bytes.data() + kv_head_offset(&l, block, kv_head); }
    void set(int block, int kv_head, int value, int token, const std::vector<float> &x) {
        char *h = head(block, kv_head);
        float top = 0.0f;
        for (float v : x) top = fmaxf(top, fabsf(v));
        const float scale = top > 0 ? top / 127.0f : 1.0f;
        if (l.type == DTYPE_I8) memcpy(h + kv_scale_offset(&l, value, token), &scale, 4);
        for (int d = 0; d < l.head_dim; d++) {
            char *p = h + kv_elem_offset(&l, value, token, d);
            if (l.type == DTYPE_F32)
                memcpy(p, &x[d], 4);
            else if (l.type == DTYPE_I8)
                *(int8_t *)p = (int8_t)lrintf(x[d] / scale);
            else {
                const uint16_t u = to16(l.type, x[d]);
                memcpy(p, &u, 2);
            }
        }
    }
    float get(int block, int kv_head, int value, int token, int d) {
        char *h = head(block, kv_head), *p = h + kv_elem_offset(&l, value, token, d);
        if (l.type == DTYPE_F32) {
            float f;
            memcpy(&f, p, 4);
            return f;
        }
        if (l.type == DTYPE_I8) {
            float scale;
            memcpy(&scale, h + kv_scale_offset(&l, value, token), 4);
            return (float)*(int8_t *)p * scale;
        }
        uint16_t u;
        memcpy(&u, p, 2);
        return from16(l.type, u);
    }
};

/* The step of a case: block tables over shuffled blocks. */
struct case_step {
    step s;
    std::vector<int32_t> seq_start, kv_len, block_start, block, row_seq, row_pos;
    int n_blocks;
};

static void make_step(const attention_case &c, rng &r, case_step &out) {
    memset(&out.s, 0, sizeof out.s);
    int rows = 0, blocks = 0;
    for (size_t i = 0; i < c.seqs.size(); i++) {
        const sequence_case &q = c.seqs[i];
        out.seq_start.push_back(rows);
        out.kv_len.push_back(q.keys);
        out.block_start.push_back(blocks);
        for (int j = 0; j < q.rows; j++) {
            out.row_seq.push_back((int)i);
            out.row_pos.push_back(q.keys - q.rows + j);
        }
        rows += q.rows;
        blocks += (q.keys + c.block_tokens - 1) / c.block_tokens;
        if (q.rows == 1 && out.s.n_decode == (int)i) out.s.n_decode++;
    }
    out.seq_start.push_back(rows);
    out.block_start.push_back(blocks);
    out.n_blocks = blocks + 2; /* two that nobody owns */
    std::vector<int32_t> ids(out.n_blocks);
    for (int i = 0; i < out.n_blocks; i++) ids[i] = i;
    for (int i = out.n_blocks - 1; i > 0; i--) std::swap(ids[i], ids[r.below(i + 1)]);
    out.block.assign(ids.begin(), ids.begin() + blocks);
    out.s.n_tokens = rows;
    out.s.n_seqs = (int)c.seqs.size();
    out.s.n_blocks = blocks;
    out.s.seq_start = out.seq_start.data();
    out.s.kv_len = out.kv_len.data();
    out.s.block_start = out.block_start.data();
    out.s.block = out.block.data();
}

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

static bool run_case(const attention_case &c) {
    rng r{(uint64_t)c.dim * 1000003u + (uint64_t)c.n_heads * 101u + (uint64_t)c.seqs.size()};
    case_step st;
    make_step(c, r, st);
    model_desc m;
    memset(&m, 0, sizeof m);
    m.n_heads = c.n_heads;
    m.n_kv_heads = c.n_kv_heads;
    m.head_dim = c.dim;
    m.attn_scale = 1.0f / sqrtf((float)c.dim);
    m.sliding_window = c.window;
    attention a;
    error err;
    if (attention_init(&a, &m, c.type, c.block_tokens, st.s.n_tokens, st.s.n_seqs + 2, 0,
                       c.deterministic, &err) != OK) {
        printf("%-44s init: %s\n", c.name.c_str(), err.text);
        return false;
    }
    host_pool pool(a.kv, st.n_blocks);
    fill_pool(c, st, pool, r);
    const size_t n = (size_t)st.s.n_tokens * c.n_heads * c.dim;
    std::vector<float> q(n);
    std::vector<uint16_t> q16(n);
    for (size_t i = 0; i < n; i++) {
        q[i] = r.normal();
        if (a.q_type != DTYPE_F32) {
            q16[i] = to16(a.q_type, q[i]);
            q[i] = from16(a.q_type, q16[i]);
        }
    }
    device_array<char> dpool(pool.bytes), work(attention_workspace_bytes(&a));
    work.fill(0);
    device_array<float> dq32(q), out(n);
    device_array<uint16_t> dq16(q16);
    out.fill(0xff);
    device_array<int32_t> ds(st.seq_start), dk(st.kv_len), dbs(st.block_start), db(st.block),
        drs(st.row_seq), drp(st.row_pos);
    const step_device sd = {ds.p, dk.p, dbs.p, db.p, drs.p, drp.p, nullptr};
    std::vector<char> buffer(attention_plan_bytes(&a));
    attention_plan plan;
    /* Every other case as a captured graph would have it, with room for two more rows. */
    const int pass_bucket = c.seqs.size() & 1 ? st.s.n_decode + 2 : 0;
    if (attention_plan_make(&a, &st.s, pass_bucket, buffer.data(), &plan) != OK) {
        printf("%-44s plan refused\n", c.name.c_str());
        return false;
    }
    buffer.resize(plan.bytes); /* what the plan says it needs is all that is uploaded */
    device_array<char> dplan(buffer);
    attention_args args;
    memset(&args, 0, sizeof args);
    args.q = a.q_type == DTYPE_F32 ? (void *)dq32.p : (void *)dq16.p;
    args.kv_layer = dpool.p;
    args.out = out.p;
    args.out_type = DTYPE_F32;
    args.step = &sd;
    args.n_tokens = st.s.n_tokens;
    args.plan = dplan.p;
    args.workspace = work.p;
    std::vector<float> first, second;
    for (int pass = 0; pass < 2; pass++) { /* twice: counters must be back at rest */
        const status s = cuda_attention(&a, &plan, &args, 0);
        if (s != OK) {
            printf("%-44s launch: %s\n", c.name.c_str(), status_name(s));
            return false;
        }
        CUDA_OK(cudaDeviceSynchronize());
        (pass ? second : first) = out.get();
    }
    const double e = reference_error(c, st, pool, q, first, m.attn_scale);
    const double limit = c.type == DTYPE_F32 ? 1e-5 : c.type == DTYPE_BF16 ? 6e-3 : 1.5e-3;
    const bool same = memcmp(first.data(), second.data(), n * 4) == 0;
    const bool ok = e < limit && same;
    printf("%-44s items %4d tiles %4d error %.1e %s%s\n", c.name.c_str(), plan.n_items,
           plan.n_tiles, e, same ? "" : "not repeatable ", ok ? "ok" : "WRONG");
    fflush(stdout);
    return ok;
}

/* RoPE and append against the formulas, and the pool's other bytes untouched. */
static bool run_rope(dtype type, int dim, int n_rot, bool neox, bool norm, int block_tokens) {
    const int n_heads = 6, n_kv_heads = 2, rows = 5, n_all = n_heads + 2 * n_kv_heads;
    attention_case c{
        "", type, dim, n_heads, n_kv_heads, block_tokens, 0, false, {{1, 37}, {1, 1}, {3, 70}}};
    rng r{(uint64_t)(dim * 7 + n_rot + block_tokens)};
    case_step st;
    make_step(c, r, st);
    model_desc m;
    memset(&m, 0, sizeof m);
    m.n_heads = n_heads;
    m.n_kv_heads = n_kv_heads;
    m.head_dim = dim;
    attention a;
    error err;
    if (attention_init(&a, &m, type, block_tokens, rows, 3, 0, false, &err) != OK) {
        printf("rope init: %s\n", err.text);
        return false;
    }
    std::vector<float> x((size_t)rows * n_all * dim), freq(n_rot / 2), qn(dim), kn(dim);
    for (float &f : x) f = r.normal();
    for (int i = 0; i < n_rot / 2; i++) freq[i] = powf(10000.0f, -2.0f * (float)i / (float)n_rot);
    for (float &f : qn) f = 1.0f + 0.1f * r.normal();
    for (float &f : kn) f = 1.0f + 0.1f * r.normal();
    device_array<float> dx(x), dfreq(freq), dqn(qn), dkn(kn), dq32((size_t)rows * n_heads * dim);
    device_array<uint16_t> dq16((size_t)rows * n_heads * dim);
    device_array<char> pool((size_t)st.n_blocks * a.kv.block_bytes);
    pool.fill(0x11);
    device_array<int32_t> ds(st.seq_start), dk(st.kv_len), dbs(st.block_start), db(st.block),
        drs(rows), drp(rows);
    device_array<float2> rope((size_t)rows * (n_rot / 2));
    const step_rows_args ra = {ds.p, dk.p, 3, rows, dfreq.p, n_rot, 1.25f, drs.p, drp.p, rope.p};
    const step_device sd = {ds.p, dk.p, dbs.p, db.p, drs.p, drp.p, rope.p};
    rope_append_args args;
    memset(&args, 0, sizeof args);
    args.qkv = dx.p;
    args.qkv_type = DTYPE_F32;
    if (norm) args.q_norm = dqn.p, args.k_norm = dkn.p;
    args.norm_eps = 1e-5f;
    args.n_rot = n_rot;
    args.neox = neox;
    args.q = a.q_type == DTYPE_F32 ? (void *)dq32.p : (void *)dq16.p;
    args.kv_layer = pool.p;
    args.step = &sd;
    args.n_tokens = rows;
    if (cuda_step_rows(&ra, 0) != OK || cuda_rope_append(&a, &args, 0) != OK) return false;
    CUDA_OK(cudaDeviceSynchronize());
    bool ok = drs.get() == st.row_seq && drp.get() == st.row_pos;
    host_pool got(a.kv, st.n_blocks);
    got.bytes = pool.get();
    const std::vector<uint16_t> q16 = dq16.get();
    const std::vector<float> q32 = dq32.get();
    double worst = 0;
    for (int row = 0; row < rows; row++) {
        for (int h = 0; h < n_all; h++) {
            std::vector<double> y(dim);
            double ss = 0;
            for (int d = 0; d < dim; d++) {
                y[d] = (double)x[((size_t)row * n_all + h) * dim + d];
                ss += y[d] * y[d];
            }
            if (norm && h < n_heads + n_kv_heads) {
                for (int d = 0; d < dim; d++) {
                    y[d] *= (double)(h < n_heads ? qn[d] : kn[d]) / sqrt(ss / dim + 1e-5);
                }
            }
            for (int i = 0; i < n_rot / 2 && h < n_heads + n_kv_heads; i++) {
                const int u = neox ? i : 2 * i, v = neox ? i + n_rot / 2 : 2 * i + 1;
                const double t = (double)st.row_pos[row] * (double)freq[i];
                const double cs = 1.25 * cos(t), sn = 1.25 * sin(t), p = y[u], z = y[v];
                y[u] = p * cs - z * sn;
                y[v] = z * cs + p * sn;
            }
            double top = 0;
            for (double v : y) top = fmax(top, fabs(v));
            const int pos = st.row_pos[row];
            const int block = st.block[st.block_start[st.row_seq[row]] + pos / block_tokens];
            for (int d = 0; d < dim; d++) {
                double z;
                const size_t i = ((size_t)row * n_heads + h) * dim + d;
                if (h < n_heads) {
                    z = (double)(a.q_type == DTYPE_F32 ? q32[i] : from16(a.q_type, q16[i]));
                } else {
                    const int v = h >= n_heads + n_kv_heads;
                    z = (double)got.get(block, h - n_heads - v * n_kv_heads, v, pos % block_tokens,
                                        d);
                }
                worst = fmax(worst, fabs(z - y[d]) / top);
            }
        }
    }
    /* One row's bytes written a (token, head, K or V), nothing else. */
    size_t changed = 0;
    for (char b : got.bytes) changed += b != 0x11;
    const size_t written = (size_t)rows * 2 * n_kv_heads *
                           (size_t)(dim * a.kv.elem_bytes + (type == DTYPE_I8 ? 4 : 0));
    const double limit = type == DTYPE_F32    ? 2e-6
                         : type == DTYPE_BF16 ? 4e-3
                         : type == DTYPE_F16  ? 6e-4
                                              : 4.1e-3;
    ok = ok && worst < limit && changed <= written && changed > written * 9 / 10;
    printf("rope %-4s D%-3d rot %-3d %s%s block %d: error %.1e, %zu of %zu bytes %s\n",
           dtype_get(type)->name, dim, n_rot, neox ? "neox" : "pairs", norm ? " norm" : "",
           block_tokens, worst, changed, written, ok ? "ok" : "WRONG");
    return ok;
}

static bool run_copies(void) {
    enum { LAYERS = 3, BLOCKS = 7 };
    const size_t bytes = 5008; /* a multiple of 16 that fills no grid evenly */
    std::vector<char> host((size_t)LAYERS * BLOCKS * bytes);
    rng r{11};
    for (char &b : host) b = (char)r.next();
    device_array<char> pool(host);
    const std::vector<block_copy> copies = {{0, 5}, {6, 1}, {0, 2}};
    device_array<block_copy> dc(copies);
    bool ok = cuda_copy_blocks(pool.p, LAYERS, BLOCKS, bytes, dc.p, 3, 0) == OK;
    CUDA_OK(cudaDeviceSynchronize());
    for (int l = 0; l < LAYERS; l++) {
        for (const block_copy &c : copies) {
            memcpy(&host[((size_t)l * BLOCKS + c.to) * bytes],
                   &host[((size_t)l * BLOCKS + c.from) * bytes], bytes);
        }
    }
    ok = ok && pool.get() == host;
    printf("copies: %s\n", ok ? "ok" : "WRONG");
    return ok;
}

/* The address functions agree with the compile-time rows that the kernels use, and are one to one.
 */
static bool run_layout(void) {
    bool ok = true;
    error err;
    for (int dim : {64, 80, 96, 128, 256}) {
        for (dtype t : {DTYPE_F16, DTYPE_I8}) {
            kv_layout l;
            if (cuda_kv_layout_init(&l, t, dim, 2, 32, &err) != OK) return false;
            std::vector<int> hit(l.head_bytes, 0);
            for (int v = 0; v < 2; v++) {
                for (int tok = 0; tok < 32; tok++) {
                    for (int d = 0; d < dim; d++) hit[kv_elem_offset(&l, v, tok, d)]++;
                    for (int c = 0; c < dim * l.elem_bytes / 16; c++) {
                        int want = -1;
#define ROWS(D)                                                                                    \
    if (dim == D) {                                                                                \
        want = t == DTYPE_I8 ? kv_rows<D, 1>::chunk(32, v, tok, c)                                 \
                             : kv_rows<D, 2>::chunk(32, v, tok, c);                                \
    }
                        ROWS(64)
                        ROWS(80) ROWS(96) ROWS(128) ROWS(256)
#undef ROWS
                            const int d = c * 16 / l.elem_bytes;
                        ok = ok && (size_t)want == kv_elem_offset(&l, v, tok, d);
                    }
                }
            }
            for (size_t i = 0; i < (size_t)2 * 32 * dim * l.elem_bytes; i += l.elem_bytes) {
                ok = ok && hit[i] == 1;
            }
        }
    }
    printf("layout: %s\n", ok ? "ok" : "WRONG");
    return ok;
}

static std::string label(const char *kind, dtype t, int dim, int hq, int hkv, int page) {
    char s[96];
    snprintf(s, sizeof s, "%s %s D%d %d/%d block %d", kind, dtype_get(t)->name, dim, hq, hkv, page);
    return s;
}

static std::vector<attention_case> cases(void) {
    std::vector<attention_case> v;
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
    return v;
}

int main(int argc, char **argv) {
    if (cuda_device_missing()) return 0;
    const char *only = argc > 1 ? argv[1] : "";
    int wrong = 0, n = 0;
    for (const attention_case &c : cases()) {
        if (!strstr(c.name.c_str(), only)) continue;
        n++;
        wrong += !run_case(c);
    }
    if (!*only) {
        n += 2;
        wrong += !run_layout();
        wrong += !run_copies();
        for (dtype t : {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8}) {
            for (int k = 0; k < 4; k++) {
                n += 3;
                wrong += !run_rope(t, 64, k == 0 ? 40 : k & 1 ? 64 : 48, k & 2, k == 3, 16);
                wrong += !run_rope(t, 128, 128, k & 2, k & 1, 32);
                wrong += !run_rope(t, k & 1 ? 96 : 80, 80, k & 2, k == 2, 64);
            }
        }
    }
    printf("attention: %d checks, %d wrong\n", n, wrong);
    return wrong ? 1 : 0;
}
