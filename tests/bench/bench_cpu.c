/* Times the CPU backend alone, through its door: prefill of 128 and 512 tokens, decode of 1 to 32
 * sequences, and where the time goes.
 *
 *   bench_cpu MODEL.gguf [--threads N] [--kv-type F32|F16|BF16|I8] [--depth TOKENS] [--runs N]
 *             [--only prefill|decode] [--streams N]
 *
 * Prints a table and, last, one line of JSON. A figure is the best of --runs (default 3), since a
 * shared machine only ever adds time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "engine/gguf.h"
#include "engine/weights.h"
#include "kernels/backend.h"

enum { BLOCK = 32, ROWS_MAX = 512, SEQS_MAX = 32, DECODE_STEPS = 32 };
enum {
    OP_BEGIN,
    OP_EMBED,
    OP_QKV,
    OP_ATTENTION,
    OP_O,
    OP_GATE_UP,
    OP_DOWN,
    OP_HEAD,
    OP_SAMPLE,
    N_OPS
};
static const char *const OP_NAMES[N_OPS] = {"begin",   "embed", "qkv",  "attention", "attn_output",
                                            "gate_up", "down",  "head", "sample"};

typedef struct bench {
    backend *b;
    bool one_thread;
    int n_layers, n_vocab, blocks_seq; /* blocks of one sequence */
    int64_t op_ns[N_OPS];
    int32_t token[ROWS_MAX], seq_start[SEQS_MAX + 1], kv_len[SEQS_MAX], block_start[SEQS_MAX + 1];
    int32_t *block;
    sample_row sample[SEQS_MAX];
    sampled result[SEQS_MAX];
} bench;

/* CPU time of the whole process: on a busy machine, and with one thread, the steadier figure. */
static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void must(status s, const error *e) {
    if (s == OK) return;
    fprintf(stderr, "bench_cpu: %s %s\n", status_name(s), e != NULL ? e->text : "");
    exit(1);
}

/* With one thread its CPU time, which other processes do not add to. */
static int64_t op_clock_ns(const bench *x) {
    return x->one_thread ? (int64_t)(cpu_seconds() * 1e9) : clock_now_ns();
}

static void timed(bench *x, int op, status s, int64_t *at) {
    must(s, NULL);
    const int64_t now = op_clock_ns(x);
    x->op_ns[op] += now - *at;
    *at = now;
}

/* engine/model.c:model_forward with a clock between the ops. */
static void forward(bench *x, const step *s) {
    const struct backend_ops *op = x->b->ops;
    int64_t at = op_clock_ns(x);
    timed(x, OP_BEGIN, op->begin_step(x->b, s), &at);
    timed(x, OP_EMBED, op->embed(x->b), &at);
    for (int layer = 0; layer < x->n_layers; layer++) {
        timed(x, OP_QKV, op->qkv(x->b, layer), &at);
        timed(x, OP_ATTENTION, op->attention(x->b, layer), &at);
        timed(x, OP_O, op->attn_output(x->b, layer), &at);
        timed(x, OP_GATE_UP, op->gate_up(x->b, layer), &at);
        timed(x, OP_DOWN, op->down(x->b, layer), &at);
    }
    timed(x, OP_HEAD, op->head(x->b), &at);
    timed(x, OP_SAMPLE, op->sample(x->b), &at);
    must(op->end_step(x->b), NULL);
    must(op->wait_step(x->b, x->result), NULL);
}

/* n_rows tokens for each of n_seqs sequences, which then hold `length` tokens; greedy. */
static double step_seconds(bench *x, int n_seqs, int n_rows, int length) {
    x->seq_start[0] = x->block_start[0] = 0;
    for (int i = 0; i < n_seqs; i++) {
        x->seq_start[i + 1] = (i + 1) * n_rows;
        x->kv_len[i] = length;
        x->block_start[i + 1] = (i + 1) * x->blocks_seq;
        x->sample[i] = (sample_row){.row = (i + 1) * n_rows - 1, .target = -1};
        for (int r = 0; r < n_rows; r++)
            x->token[i * n_rows + r] =
                (int32_t)((1u + (unsigned)(length + r) * 7919u) % (unsigned)x->n_vocab);
    }
    const step s = {.n_tokens = n_seqs * n_rows,
                    .n_seqs = n_seqs,
                    .n_samples = n_seqs,
                    .n_decode = n_rows == 1 ? n_seqs : 0,
                    .n_blocks = n_seqs * x->blocks_seq,
                    .token = x->token,
                    .seq_start = x->seq_start,
                    .kv_len = x->kv_len,
                    .block_start = x->block_start,
                    .block = x->block,
                    .sample = x->sample};
    const int64_t t0 = clock_now_ns();
    forward(x, &s);
    return (double)(clock_now_ns() - t0) / 1e9;
}

static void print_ops(bench *x, const char *what, double n) {
    printf("  %-14s", what);
    for (int i = 0; i < N_OPS; i++) printf(" %s %.0f", OP_NAMES[i], (double)x->op_ns[i] / 1e3 / n);
    printf(" us\n");
    memset(x->op_ns, 0, sizeof x->op_ns);
}

static double prefill(bench *x, int n, int runs) {
    double best = 1e9, best_cpu = 1e9;
    memset(x->op_ns, 0, sizeof x->op_ns);
    for (int i = 0; i < runs; i++) {
        const double c0 = cpu_seconds(), s = step_seconds(x, 1, n, n), c = cpu_seconds() - c0;
        best = s < best ? s : best;
        best_cpu = c < best_cpu ? c : best_cpu;
    }
    printf("prefill %4d: %8.1f tok/s, CPU %.2f ms a step\n", n, n / best, best_cpu * 1e3);
    print_ops(x, "a step", runs);
    return n / best;
}

static double decode(bench *x, int n_seqs, int depth, int runs) {
    double best = 1e9, best_cpu = 1e9;
    memset(x->op_ns, 0, sizeof x->op_ns);
    for (int i = 0; i < runs; i++) {
        const double c0 = cpu_seconds();
        double s = 0;
        for (int k = 1; k <= DECODE_STEPS; k++) s += step_seconds(x, n_seqs, 1, depth + k);
        const double c = cpu_seconds() - c0;
        best = s < best ? s : best;
        best_cpu = c < best_cpu ? c : best_cpu;
    }
    printf("decode x%3d: %8.1f tok/s, %.2f ms a step, CPU %.2f ms\n", n_seqs,
           n_seqs * DECODE_STEPS / best, best / DECODE_STEPS * 1e3, best_cpu / DECODE_STEPS * 1e3);
    print_ops(x, "a step", (double)runs * DECODE_STEPS);
    return n_seqs * DECODE_STEPS / best;
}

typedef struct options {
    const char *model, *only;
    int threads, kv_type, depth, runs, streams; /* 0: all */
} options;

static options parse(int argc, char **argv) {
    options o = {.model = argc > 1 ? argv[1] : NULL, .kv_type = -1, .depth = 0, .runs = 3};
    for (int i = 2; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        if (strcmp(argv[i], "--threads") == 0) o.threads = (int)strtol(v, NULL, 10);
        if (strcmp(argv[i], "--depth") == 0) o.depth = (int)strtol(v, NULL, 10);
        if (strcmp(argv[i], "--runs") == 0) o.runs = (int)strtol(v, NULL, 10);
        if (strcmp(argv[i], "--only") == 0) o.only = v;
        if (strcmp(argv[i], "--streams") == 0) o.streams = (int)strtol(v, NULL, 10);
        for (int t = 0; t < 64 && strcmp(argv[i], "--kv-type") == 0; t++) {
            if (dtype_get(t) != NULL && strcmp(dtype_get(t)->name, v) == 0) o.kv_type = t;
        }
    }
    return o;
}

int main(int argc, char **argv) {
    const options o = parse(argc, argv);
    if (o.model == NULL) {
        fprintf(stderr, "usage: bench_cpu MODEL.gguf [--threads N] [--kv-type T] [--depth N] "
                        "[--runs N] [--only prefill|decode] [--streams N]\n");
        return 2;
    }
    error e = {.text = ""};
    gguf *g = NULL;
    weights *w = NULL;
    bench x = {0};
    int64_t t0 = clock_now_ns();
    must(gguf_open(o.model, &g, &e), &e);
    must(weights_open(g, 0, &w, &e), &e);
    const model_desc *m = weights_desc(w);
    must(cpu_backend_open(&(backend_options){.threads = o.threads}, &x.b, &e), &e);
    must(x.b->ops->load(x.b, m, NULL, NULL, &e), &e);
    x.one_thread = o.threads == 1;
    x.n_layers = m->n_layers;
    x.n_vocab = m->n_vocab;
    const int tokens = ROWS_MAX > o.depth + DECODE_STEPS ? ROWS_MAX : o.depth + DECODE_STEPS;
    x.blocks_seq = (tokens + BLOCK - 1) / BLOCK;
    backend_memory mem;
    must(x.b->ops->reserve(x.b,
                           &(backend_limits){.n_tokens_max = ROWS_MAX,
                                             .n_seqs_max = SEQS_MAX,
                                             .n_samples_max = SEQS_MAX,
                                             .kv_block_tokens = BLOCK,
                                             .kv_blocks = SEQS_MAX * x.blocks_seq,
                                             .kv_type = o.kv_type},
                           &mem, &e),
         &e);
    printf("%s; load %.0f ms, CPU %.0f ms; weights %.1f MB, KV %s\n", x.b->ops->device_name(x.b),
           (double)(clock_now_ns() - t0) / 1e6, cpu_seconds() * 1e3,
           (double)mem.weights_bytes / 1e6, dtype_get((int)mem.kv_type)->name);
    x.block = malloc((size_t)SEQS_MAX * (size_t)x.blocks_seq * sizeof *x.block);
    if (x.block == NULL) return 1;
    for (int i = 0; i < SEQS_MAX * x.blocks_seq; i++) x.block[i] = i;

    double p[2] = {0}, d[6] = {0};
    step_seconds(&x, 1, 64, 64); /* warm */
    if (o.only == NULL || strcmp(o.only, "prefill") == 0) {
        p[0] = prefill(&x, 128, o.runs);
        p[1] = prefill(&x, 512, o.runs);
    }
    for (int i = 0; i < 6 && (o.only == NULL || strcmp(o.only, "decode") == 0); i++)
        if (o.streams == 0 || o.streams == 1 << i) d[i] = decode(&x, 1 << i, o.depth, o.runs);
    printf("{\"device\":\"%s\",\"prefill\":{\"128\":%.1f,\"512\":%.1f},\"depth\":%d,\"decode\":{"
           "\"1\":%.1f,\"2\":%.1f,\"4\":%.1f,\"8\":%.1f,\"16\":%.1f,\"32\":%.1f}}\n",
           x.b->ops->device_name(x.b), p[0], p[1], o.depth, d[0], d[1], d[2], d[3], d[4], d[5]);
    free(x.block);
    x.b->ops->close(x.b);
    weights_close(w);
    gguf_close(g);
    return 0;
}
