/* Checks what is written to the KV pool: address functions, RoPE in both pairings with and without
 * head norms, append to every layout, block copies; against the formulas in double, and that
 * nothing else is touched. Usage: cuda_kv_check */
#include "kernels/cuda_attention_case.h"

enum { N_HEADS = 6, N_KV_HEADS = 2, N_ALL = N_HEADS + 2 * N_KV_HEADS, ROWS = 5 };
static const float MSCALE = 1.25f;

struct rope_case {
    dtype type;
    int dim, n_rot;
    bool neox, norm;
    int block_tokens;
};

struct rope_input {
    std::vector<float> x, freq, q_norm, k_norm;
};

/* Head h of a row, normed and rotated. */
static std::vector<double> rotated(const rope_case &c, const rope_input &in, int row, int pos,
                                   int h) {
    std::vector<double> y(c.dim);
    double ss = 0;
    for (int d = 0; d < c.dim; d++) {
        y[d] = (double)in.x[((size_t)row * N_ALL + h) * c.dim + d];
        ss += y[d] * y[d];
    }
    if (h >= N_HEADS + N_KV_HEADS) return y;
    for (int d = 0; d < c.dim && c.norm; d++) {
        y[d] *= (double)(h < N_HEADS ? in.q_norm[d] : in.k_norm[d]) / sqrt(ss / c.dim + 1e-5);
    }
    for (int i = 0; i < c.n_rot / 2; i++) {
        const int u = c.neox ? i : 2 * i, v = c.neox ? i + c.n_rot / 2 : 2 * i + 1;
        const double t = (double)pos * (double)in.freq[i], m = (double)MSCALE;
        const double cs = m * cos(t), sn = m * sin(t), p = y[u], z = y[v];
        y[u] = p * cs - z * sn;
        y[v] = z * cs + p * sn;
    }
    return y;
}

struct rope_output {
    std::vector<float> q32;
    std::vector<uint16_t> q16;
};

/* Largest error, relative to the largest value of its head. */
static double worst_error(const rope_case &c, const rope_input &in, const case_step &st,
                          const attention &a, const rope_output &q, host_pool &pool) {
    double worst = 0;
    for (int row = 0; row < ROWS; row++) {
        const int pos = st.row_pos[row];
        const int block = st.block[st.block_start[st.row_seq[row]] + pos / c.block_tokens];
        for (int h = 0; h < N_ALL; h++) {
            const std::vector<double> y = rotated(c, in, row, pos, h);
            double top = 0;
            for (double v : y) top = fmax(top, fabs(v));
            for (int d = 0; d < c.dim; d++) {
                double z;
                if (h < N_HEADS) {
                    const size_t i = ((size_t)row * N_HEADS + h) * c.dim + d;
                    z = (double)(a.q_type == DTYPE_F32 ? q.q32[i] : from16(a.q_type, q.q16[i]));
                } else {
                    const int v = h >= N_HEADS + N_KV_HEADS;
                    z = (double)pool.get(block, h - N_HEADS - v * N_KV_HEADS, v,
                                         pos % c.block_tokens, d);
                }
                worst = fmax(worst, fabs(z - y[d]) / top);
            }
        }
    }
    return worst;
}

static rope_input make_input(const rope_case &c, rng &r) {
    rope_input in;
    in.x.resize((size_t)ROWS * N_ALL * c.dim);
    for (float &f : in.x) f = r.normal();
    for (int i = 0; i < c.n_rot / 2; i++) {
        in.freq.push_back(powf(10000.0f, -2.0f * (float)i / (float)c.n_rot));
    }
    for (int d = 0; d < c.dim; d++) {
        in.q_norm.push_back(1.0f + 0.1f * r.normal());
        in.k_norm.push_back(1.0f + 0.1f * r.normal());
    }
    return in;
}

/* Runs step_rows and rope_append; pool: what the device wrote over bytes of 0x11. */
static bool run_append(const rope_case &c, const rope_input &in, const case_step &st,
                       const attention &a, rope_output *q, host_pool *pool) {
    device_array<float> dx(in.x), freq(in.freq), qn(in.q_norm), kn(in.k_norm);
    device_array<float> q32((size_t)ROWS * N_HEADS * c.dim);
    device_array<uint16_t> q16((size_t)ROWS * N_HEADS * c.dim);
    device_array<char> dpool(pool->bytes.size());
    dpool.fill(0x11);
    q32.fill(0); /* the one of another type stays as it is */
    q16.fill(0);
    device_array<int32_t> seq_start(st.seq_start), kv_len(st.kv_len), start(st.block_start),
        block(st.block), row_seq(ROWS), row_pos(ROWS);
    device_array<float2> rope((size_t)ROWS * (c.n_rot / 2));
    const step_rows_args rows = {seq_start.p, kv_len.p, st.s.n_seqs, ROWS,      freq.p,
                                 c.n_rot,     MSCALE,   row_seq.p,   row_pos.p, rope.p};
    const step_device view = {seq_start.p, kv_len.p,  start.p, block.p,
                              row_seq.p,   row_pos.p, rope.p};
    rope_append_args args;
    memset(&args, 0, sizeof args);
    args.qkv = dx.p;
    args.qkv_type = DTYPE_F32;
    args.q_norm = c.norm ? qn.p : nullptr;
    args.k_norm = c.norm ? kn.p : nullptr;
    args.norm_eps = 1e-5f;
    args.n_rot = c.n_rot;
    args.neox = c.neox;
    args.q = a.q_type == DTYPE_F32 ? (void *)q32.p : (void *)q16.p;
    args.kv_layer = dpool.p;
    args.step = &view;
    args.n_tokens = ROWS;
    if (cuda_step_rows(&rows, 0) != OK || cuda_rope_append(&a, &args, 0) != OK) return false;
    CUDA_OK(cudaDeviceSynchronize());
    pool->bytes = dpool.get();
    q->q32 = q32.get();
    q->q16 = q16.get();
    return row_seq.get() == st.row_seq && row_pos.get() == st.row_pos;
}

static bool run_rope(const rope_case &c) {
    const attention_case shape{"",      c.type,     c.dim,
                               N_HEADS, N_KV_HEADS, c.block_tokens,
                               0,       false,      {{1, 37}, {1, 1}, {3, 70}}};
    rng r{(uint64_t)(c.dim * 7 + c.n_rot + c.block_tokens)};
    case_step st;
    make_step(shape, r, st);
    const model_desc m = model_of(shape);
    attention a;
    error err;
    if (attention_init(&a, &m, c.type, c.block_tokens, ROWS, 3, 0, false, &err) != OK) {
        printf("rope init: %s\n", err.text);
        return false;
    }
    const rope_input in = make_input(c, r);
    host_pool pool(a.kv, st.n_blocks);
    rope_output q;
    bool ok = run_append(c, in, st, a, &q, &pool);
    const double worst = worst_error(c, in, st, a, q, pool);
    /* One row's bytes a (token, head, K or V), nothing else; a few happen to be 0x11. */
    size_t changed = 0;
    for (char b : pool.bytes) changed += b != 0x11;
    const size_t written = (size_t)ROWS * 2 * N_KV_HEADS *
                           (size_t)(c.dim * a.kv.elem_bytes + (c.type == DTYPE_I8 ? 4 : 0));
    const double limit = c.type == DTYPE_F32    ? 2e-6
                         : c.type == DTYPE_BF16 ? 4e-3
                         : c.type == DTYPE_F16  ? 6e-4
                                                : 4.1e-3;
    ok = ok && worst < limit && changed <= written && changed > written * 9 / 10;
    printf("rope %-4s D%-3d rot %-3d %s%s block %d: error %.1e, %zu of %zu bytes %s\n",
           dtype_get(c.type)->name, c.dim, c.n_rot, c.neox ? "neox" : "pairs",
           c.norm ? " norm" : "", c.block_tokens, worst, changed, written, ok ? "ok" : "WRONG");
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

/* Offset of a chunk by the compile-time rows that the kernels use. */
template <int E> static int chunk_of(int dim, int value, int token, int c) {
    switch (dim) {
    case 64:
        return kv_rows<64, E>::chunk(32, value, token, c);
    case 80:
        return kv_rows<80, E>::chunk(32, value, token, c);
    case 96:
        return kv_rows<96, E>::chunk(32, value, token, c);
    case 128:
        return kv_rows<128, E>::chunk(32, value, token, c);
    default:
        return kv_rows<256, E>::chunk(32, value, token, c);
    }
}

/* The address functions agree with those rows, and are one to one. */
static bool run_layout(dtype t, int dim) {
    kv_layout l;
    error err;
    if (cuda_kv_layout_init(&l, t, dim, 2, 32, &err) != OK) return false;
    bool ok = true;
    std::vector<int> hit(l.head_bytes, 0);
    for (int i = 0; i < 2 * 32; i++) {
        const int v = i / 32, token = i % 32;
        for (int d = 0; d < dim; d++) hit[kv_elem_offset(&l, v, token, d)]++;
        for (int c = 0; c < dim * l.elem_bytes / 16; c++) {
            const int want =
                l.elem_bytes == 1 ? chunk_of<1>(dim, v, token, c) : chunk_of<2>(dim, v, token, c);
            ok = ok && (size_t)want == kv_elem_offset(&l, v, token, c * 16 / l.elem_bytes);
        }
    }
    for (size_t i = 0; i < (size_t)2 * 32 * dim * l.elem_bytes; i += l.elem_bytes) {
        ok = ok && hit[i] == 1;
    }
    printf("layout %-4s D%d: %s\n", dtype_get(t)->name, dim, ok ? "ok" : "WRONG");
    return ok;
}

int main(void) {
    if (cuda_device_missing()) return 0;
    int wrong = !run_copies(), n = 1;
    for (int dim : {64, 80, 96, 128, 256}) {
        n += 2;
        wrong += !run_layout(DTYPE_F16, dim) + !run_layout(DTYPE_I8, dim);
    }
    for (dtype t : {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8}) {
        for (int k = 0; k < 4; k++) {
            const bool neox = (k & 2) != 0;
            n += 3;
            wrong += !run_rope({t, 64, k == 0 ? 40 : k & 1 ? 64 : 48, neox, k == 3, 16});
            wrong += !run_rope({t, 128, 128, neox, (k & 1) != 0, 32});
            wrong += !run_rope({t, k & 1 ? 96 : 80, 80, neox, k == 2, 64});
        }
    }
    printf("KV: %d checks, %d wrong\n", n, wrong);
    return wrong ? 1 : 0;
}
