/* Times whole steps of the CUDA backend through kernels/backend.h, with made-up weights of real
 * shapes: decode batches at a context, greedy, two steps in flight; then prefill.
 *
 *   bench_cuda_step MODEL [-b 1,8,32] [-c 512] [-p 512,2048] [-n STEPS] [-d] [-t] [-k f16|i8]
 *   MODEL: 8b-q4_k_m 8b-q8_0 8b-f16 7b-q4_k_m 0.5b-q4_k_m 0.5b-f16
 *
 * A line a case: model, batch, context, us a step, tokens/s, bytes a step over time. Weights are
 * random blocks of one pool mapped again and again: the device copies are all there and all read.
 */
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"

static double now_us() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static uint32_t seed = 1;
static uint32_t next_random() {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static uint16_t half_bits(float v) { /* normal range only */
    uint32_t u;
    memcpy(&u, &v, 4);
    return (uint16_t)(((u >> 23) - 112) << 10 | ((u >> 13) & 0x3ff));
}

/* Random blocks with scales that keep weights near 0.02. */
static void fill_pool(dtype t, uint8_t *p, size_t bytes) {
    const dtype_info *info = dtype_get((int)t);
    for (size_t i = 0; i + 4 <= bytes; i += 2) {
        const uint32_t r = next_random();
        p[i] = (uint8_t)r;
        p[i + 1] = (uint8_t)(r >> 8);
    }
    auto put = [](uint8_t *at, float v) {
        const uint16_t h = half_bits(v);
        memcpy(at, &h, 2);
    };
    const size_t size = (size_t)info->block_bytes;
    for (size_t i = 0; i + size <= bytes; i += size) {
        const float f = 0.5f + (float)(next_random() & 0xffff) / 65536.0f;
        uint8_t *b = p + i;
        const float w = ((float)(next_random() & 0xffff) / 32768.0f - 1.0f) * 0.04f;
        switch (t) {
        case DTYPE_F16:
            put(b, 0.002f + 0.03f * f);
            b[1] = (uint8_t)(b[1] | (w < 0 ? 0x80 : 0));
            break;
        case DTYPE_Q4_K:
            put(b, f * 1e-4f);
            put(b + 2, f * 7e-4f);
            break;
        case DTYPE_Q5_K:
            put(b, f * 5e-5f);
            put(b + 2, f * 7e-4f);
            break;
        case DTYPE_Q6_K:
            put(b + 208, f * 2e-5f + 6.2e-5f);
            break;
        case DTYPE_Q8_0:
            put(b, f * 3e-4f);
            break;
        case DTYPE_Q5_0:
            put(b, f * 2e-3f);
            break;
        default:
            put(b, f * 3e-3f);
        }
    }
}

/* A view of `bytes` made of one 16 MiB pool mapped end to end. */
static const void *pool_of(dtype t, size_t bytes) {
    enum { POOL = 16 << 20 };
    static const void *made[64];
    static size_t made_bytes[64];
    if (made[t] != nullptr && made_bytes[t] >= bytes) return made[t];
    const dtype_info *info = dtype_get((int)t);
    const size_t whole =
        (size_t)POOL * (size_t)info->block_bytes; /* blocks stay aligned at seams */
    const size_t page = 4096, unit = (size_t)info->block_bytes * page; /* both a page and a block */
    const size_t part = (POOL / unit + 1) * unit;
    (void)whole;
    const int fd = memfd_create("pool", 0);
    if (fd < 0 || ftruncate(fd, (off_t)part) != 0) exit(1);
    const size_t n = (((size_t)1 << 31) + part - 1) / part;
    uint8_t *base =
        (uint8_t *)mmap(nullptr, n * part, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < n; i++) {
        if (mmap(base + i * part, part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
            MAP_FAILED) {
            exit(1);
        }
    }
    fill_pool(t, base, part);
    made[t] = base;
    made_bytes[t] = n * part;
    return base;
}

struct shape {
    const char *name;
    int layers, embd, ff, heads, kv_heads, dim, vocab;
    bool qkv_bias, neox;
    float base;
};
static const shape SHAPES[] = {
    {"8b", 32, 4096, 14336, 32, 8, 128, 128256, false, false, 500000.0f},
    {"7b", 28, 3584, 18944, 28, 4, 128, 152064, true, true, 1000000.0f},
    {"0.5b", 24, 896, 4864, 14, 2, 64, 151936, true, true, 1000000.0f},
};

struct model {
    model_desc d;
    std::vector<layer_desc> layers;
    std::vector<float> freq, vec;
    double bytes; /* read by a step */
};

static dtype type_of(const char *quant, int n_in, bool more) {
    if (strcmp(quant, "f16") == 0) return DTYPE_F16;
    if (strcmp(quant, "q8_0") == 0) return DTYPE_Q8_0;
    if (n_in % 256 != 0) return more ? DTYPE_Q8_0 : DTYPE_Q5_0;
    return more ? DTYPE_Q6_K : DTYPE_Q4_K;
}

static bool make_model(model *m, const char *name) {
    const char *dash = strchr(name, '-');
    const shape *s = nullptr;
    for (const shape &c : SHAPES) {
        if (dash != nullptr && strncmp(name, c.name, (size_t)(dash - name)) == 0) s = &c;
    }
    if (s == nullptr) return false;
    const char *quant = dash + 1;
    m->bytes = 0;
    m->vec.assign((size_t)s->vocab, 1.0f);
    auto mat = [&](const char *n, int out, int in, bool more) {
        const dtype t = type_of(quant, in, more);
        const size_t bytes = (size_t)out * dtype_row_bytes(t, in);
        m->bytes += (double)bytes;
        return tensor_view{n, pool_of(t, bytes), t, in, out};
    };
    auto vec = [&](const char *n, int len) {
        return tensor_view{n, m->vec.data(), DTYPE_F32, len, 1};
    };
    const int nq = s->heads * s->dim, nkv = s->kv_heads * s->dim, l = s->layers;
    m->layers.assign((size_t)l, layer_desc{});
    for (int i = 0; i < l; i++) {
        layer_desc &y = m->layers[(size_t)i];
        const bool more = i < l / 8 || i >= 7 * l / 8 || (i - l / 8) % 3 == 2;
        y.attn_norm = vec("attn_norm", s->embd);
        y.q = mat("q", nq, s->embd, false);
        y.k = mat("k", nkv, s->embd, false);
        y.v = mat("v", nkv, s->embd, more);
        if (s->qkv_bias) {
            y.q_bias = vec("q.bias", nq);
            y.k_bias = vec("k.bias", nkv);
            y.v_bias = vec("v.bias", nkv);
        }
        y.o = mat("o", s->embd, nq, false);
        y.ffn_norm = vec("ffn_norm", s->embd);
        y.gate = mat("gate", s->ff, s->embd, false);
        y.up = mat("up", s->ff, s->embd, false);
        y.down = mat("down", s->embd, s->ff, more);
    }
    m->freq.resize((size_t)s->dim / 2);
    for (int i = 0; i < s->dim / 2; i++)
        m->freq[(size_t)i] = powf(s->base, -2.0f * (float)i / (float)s->dim);
    model_desc &d = m->d;
    memset(&d, 0, sizeof d);
    d.architecture = "llama";
    d.n_layers = l;
    d.n_embd = s->embd;
    d.n_ff = s->ff;
    d.n_heads = s->heads;
    d.n_kv_heads = s->kv_heads;
    d.head_dim = d.n_rot = s->dim;
    d.n_vocab = s->vocab;
    d.context_length = 16384;
    d.norm_eps = 1e-5f;
    d.attn_scale = 1.0f / sqrtf((float)s->dim);
    d.rope_neox = s->neox;
    d.rope_freq = m->freq.data();
    d.rope_mscale = 1.0f;
    d.output = mat("output", s->vocab, s->embd, true);
    d.token_embd = d.output;
    d.output_norm = vec("output_norm", s->embd);
    d.layers = m->layers.data();
    return true;
}

static status forward(backend *b, int n_layers, const step *s) {
    const backend_ops *op = b->ops;
    status st = op->begin_step(b, s);
    if (st != OK) return st;
    if (op->replay != nullptr && op->replay(b)) return op->end_step(b);
    st = op->embed(b);
    for (int i = 0; i < n_layers && st == OK; i++) {
        st = op->qkv(b, i);
        if (st == OK) st = op->attention(b, i);
        if (st == OK) st = op->attn_output(b, i);
        if (st == OK) st = op->gate_up(b, i);
        if (st == OK) st = op->down(b, i);
    }
    if (st == OK) st = op->head(b);
    if (st == OK) st = op->sample(b);
    return st == OK ? op->end_step(b) : st;
}

struct batch {
    std::vector<int32_t> token, start, len, block_start, block;
    std::vector<sample_row> sample;
    step s;
};

/* n_seqs sequences, each with `rows` new tokens that end at length kv. */
static void make_batch(batch *t, int n_seqs, int rows, int kv, int bt, bool follow) {
    const int per = (kv + bt - 1) / bt;
    t->token.clear();
    t->start.assign(1, 0);
    t->len.assign((size_t)n_seqs, kv);
    t->block_start.assign(1, 0);
    t->block.clear();
    t->sample.assign((size_t)n_seqs, sample_row{});
    for (int i = 0; i < n_seqs; i++) {
        for (int r = 0; r < rows; r++) {
            t->token.push_back(follow ? STEP_TOKEN_FROM_PREVIOUS(i) : (int)(next_random() % 30000));
        }
        t->start.push_back((i + 1) * rows);
        for (int k = 0; k < per; k++)
            t->block.push_back((i * 7919 + k * 31 + i * per) % (n_seqs * per));
        t->block_start.push_back((i + 1) * per);
        t->sample[(size_t)i].row = (i + 1) * rows - 1;
        t->sample[(size_t)i].target = -1;
    }
    for (int i = 0; i < n_seqs * per; i++) t->block[(size_t)i] = i; /* distinct */
    memset(&t->s, 0, sizeof t->s);
    t->s.n_tokens = n_seqs * rows;
    t->s.n_seqs = t->s.n_samples = n_seqs;
    t->s.n_decode = rows == 1 ? n_seqs : 0;
    t->s.n_blocks = n_seqs * per;
    t->s.token = t->token.data();
    t->s.seq_start = t->start.data();
    t->s.kv_len = t->len.data();
    t->s.block_start = t->block_start.data();
    t->s.block = t->block.data();
    t->s.sample = t->sample.data();
}

static void check(status s, const char *what) {
    if (s == OK) return;
    printf("%s: %s (%s)\n", what, status_name(s), cudaGetErrorString(cudaGetLastError()));
    fflush(stdout);
    exit(1);
}

static void decode_case(backend *b, const model &m, const char *name, int n, int context,
                        int steps) {
    batch t;
    std::vector<sampled> out((size_t)n);
    make_batch(&t, n, 1, context, 32, false);
    check(forward(b, m.d.n_layers, &t.s), "step");
    check(b->ops->wait_step(b, out.data()), "wait");
    make_batch(&t, n, 1, context, 32, true);
    check(forward(b, m.d.n_layers, &t.s), "step");
    double t0 = 0, host = 0;
    for (int i = 0; i < steps; i++) {
        if (i == 3) t0 = now_us();
        const double h = now_us();
        check(forward(b, m.d.n_layers, &t.s), "step");
        if (i >= 3) host += now_us() - h;
        check(b->ops->wait_step(b, out.data()), "wait");
    }
    const double us = (now_us() - t0) / (steps - 3);
    check(b->ops->wait_step(b, out.data()), "wait");
    const double kv = 2.0 * 2.0 * m.d.n_layers * m.d.n_kv_heads * m.d.head_dim * context * n;
    printf("%-12s decode B=%-3d ctx %-5d %9.1f us a step = %8.0f tok/s, %4.0f GB/s, host %.0f us, "
           "token %d\n",
           name, n, context, us, n * 1e6 / us, (m.bytes + kv) / us * 1e-3, host / (steps - 3),
           out[0].token);
    fflush(stdout);
}

static void prefill_case(backend *b, const model &m, const char *name, int n) {
    batch t;
    sampled out[1];
    make_batch(&t, 1, n, n, 32, false);
    double best = 1e30;
    for (int i = 0; i < 6; i++) {
        const double t0 = now_us();
        check(forward(b, m.d.n_layers, &t.s), "step");
        check(b->ops->wait_step(b, out), "wait");
        const double us = now_us() - t0;
        if (i > 0 && us < best) best = us;
    }
    printf("%-12s prefill %-5d %9.1f us = %8.0f tok/s, token %d\n", name, n, best, n * 1e6 / best,
           out[0].token);
    fflush(stdout);
}

/* Microseconds a call of every operation alone, as graphs over all layers' weights: what a step of
 * n rows is made of. Uses the state that decode_case has left. */
static void operation_table(backend *base, int n) {
    cuda_backend *b = (cuda_backend *)base;
    typedef status layer_op(cuda_backend *, int);
    static const struct {
        const char *name;
        layer_op *op;
    } OPS[] = {{"qkv", cuda_op_qkv},
               {"attention", cuda_op_attention},
               {"attn_output", cuda_op_attn_output},
               {"gate_up", cuda_op_gate_up},
               {"down", cuda_op_down},
               {"head", nullptr},
               {"embed", nullptr}};
    cudaEvent_t e0, e1;
    check(cudaEventCreate(&e0) == cudaSuccess && cudaEventCreate(&e1) == cudaSuccess ? OK
                                                                                     : E_DEVICE,
          "events");
    double sum = 0;
    printf("   alone, us a call:");
    for (const auto &o : OPS) {
        const int calls = o.op != nullptr ? b->shape.n_layers : 4;
        cudaGraph_t g;
        cudaGraphExec_t ge;
        (void)cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal);
        for (int i = 0; i < calls; i++) {
            if (o.op != nullptr)
                check(o.op(b, i), o.name);
            else
                check(o.name[0] == 'h' ? cuda_op_head(b) : cuda_op_embed(b), o.name);
        }
        check(cudaStreamEndCapture(b->stream, &g) == cudaSuccess ? OK : E_DEVICE, o.name);
        check(cudaGraphInstantiate(&ge, g, 0) == cudaSuccess ? OK : E_DEVICE, o.name);
        const int reps = 10;
        for (int i = 0; i < reps + 2; i++) {
            if (i == 2) (void)cudaEventRecord(e0, b->stream);
            (void)cudaGraphLaunch(ge, b->stream);
        }
        (void)cudaEventRecord(e1, b->stream);
        check(cudaEventSynchronize(e1) == cudaSuccess ? OK : E_DEVICE, o.name);
        float ms = 0;
        (void)cudaEventElapsedTime(&ms, e0, e1);
        const double us = ms * 1e3 / reps / calls;
        sum += us * (o.op != nullptr ? calls : 1);
        printf(" %s %.2f", o.name, us);
        (void)cudaGraphExecDestroy(ge);
        (void)cudaGraphDestroy(g);
    }
    printf(" | a step of %d rows: %.0f\n", n, sum);
    fflush(stdout);
}

static std::vector<int> numbers(const char *s) {
    std::vector<int> v;
    while (*s != 0) {
        char *end;
        v.push_back((int)strtol(s, &end, 10));
        s = *end == ',' ? end + 1 : end;
        if (end == s && *s != 0) break;
    }
    return v;
}

static int usage() {
    fprintf(stderr, "usage: bench_cuda_step MODEL [-b N,..] [-c N,..] [-p N,..] [-n N] [-d] [-t] "
                    "[-k f16|i8]\n");
    return 2;
}

int main(int argc, char **argv) {
    std::vector<int> batches = {1, 8, 32, 64}, prompts = {2048}, contexts = {512};
    int steps = 40, kv_type = -1;
    bool table = false;
    backend_options o = {};
    for (int i = 2; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "-d") == 0)
            o.deterministic = true;
        else if (strcmp(argv[i], "-t") == 0)
            table = true;
        else if (strcmp(argv[i], "-b") == 0)
            batches = numbers(v), i++;
        else if (strcmp(argv[i], "-c") == 0)
            contexts = numbers(v), i++;
        else if (strcmp(argv[i], "-p") == 0)
            prompts = numbers(v), i++;
        else if (strcmp(argv[i], "-n") == 0)
            steps = (int)strtol(v, nullptr, 10), i++;
        else if (strcmp(argv[i], "-k") == 0)
            kv_type = strcmp(v, "i8") == 0 ? DTYPE_I8 : DTYPE_F16, i++;
        else
            return usage();
    }
    model m;
    error err = {};
    backend *b = nullptr;
    if (argc < 2 || !make_model(&m, argv[1])) return usage();
    check(cuda_backend_open(&o, &b, &err), err.text);
    double t0 = now_us();
    status s = b->ops->load(b, &m.d, nullptr, nullptr, &err);
    check(s, err.text);
    printf("%s on %s: load %.0f ms", argv[1], b->ops->device_name(b), (now_us() - t0) * 1e-3);
    int most = 2048, seqs = 1;
    for (int p : prompts) most = p > most ? p : most;
    for (int n : batches) seqs = n > seqs ? n : seqs;
    backend_limits w = {};
    w.n_tokens_max = most;
    w.n_seqs_max = w.n_samples_max = seqs;
    w.n_copies_max = seqs;
    w.kv_block_tokens = 32;
    w.kv_type = kv_type;
    backend_memory got;
    t0 = now_us();
    s = b->ops->reserve(b, &w, &got, &err);
    check(s, err.text);
    printf(", reserve %.0f ms; weights %.2f GB, workspace %.2f GB, KV %.2f GB = %d blocks\n",
           (now_us() - t0) * 1e-3, (double)got.weights_bytes * 1e-9,
           (double)got.workspace_bytes * 1e-9, (double)got.kv_bytes * 1e-9, got.kv_blocks);
    for (int c : contexts) {
        for (int n : batches) {
            decode_case(b, m, argv[1], n, c, steps);
            if (table) operation_table(b, n);
        }
    }
    for (int p : prompts) {
        if (p > 0) prefill_case(b, m, argv[1], p);
    }
    b->ops->close(b);
    return 0;
}
