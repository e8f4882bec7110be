/* The engine's speed without gRPC: decode over batch x prompt length, prefill sizes, and a mixed
 * load from a file, on any backend. Random prompts, none alike, so nothing comes from the prefix
 * cache. Decode figures count only steps in which the whole batch decodes and nothing else runs.
 *
 *   bench_engine --model M.gguf [--backend cpu|cuda|auto] [--threads N] [--deterministic]
 *     [--batch 1,8,32] [--prompt 512] [--output 128]    decode: every batch with every prompt
 *     [--prefill 512,2048]                              one prompt at a time, one token out
 *     [--mixed load.json]        {"requests_in_out": [[prompt, output], ...]}, all at once; prints
 *                                where the steps' time went and the gaps between tokens
 *     [--max-sequences N]        default: the largest batch; 256 for a mixed load
 *     [--max-step-tokens 2048] [--context N]
 *     [--kv-type f16|bf16|f32|i8] [--kv-blocks N] [--kv-block-tokens 32] [--kv-bytes N]
 *     [--bandwidth GB/s]         prints what share of it weights and KV alone would take
 *     [--json out.json] */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/gguf.h"
#include "tests/bench/step_table.h"

enum { LIST_MAX = 32, STEPS_MAX = 1 << 20, MIXED_SEQUENCES = 256 };

typedef struct list {
    int n, v[LIST_MAX];
} list;

typedef struct args {
    const char *model, *backend, *mixed, *json;
    list batch, prompt, prefill;
    int output, context;
    double bandwidth_gbs;
    backend_options device;
    engine_options engine;
} args;

/* What the steps of one case took; the engine thread writes, main reads when all has ended. */
typedef struct tally {
    int batch; /* only steps with this many decodes and no prefill go into ns[] */
    int n;
    int64_t *ns;      /* [STEPS_MAX] */
    step_table table; /* of the mixed load */
} tally;

struct bench;
typedef struct stream {
    struct bench *bench;
    engine_request request;
    int n_tokens;
    int64_t last_ns; /* when its last token came */
} stream;

typedef struct bench {
    args a;
    engine *engine;
    const model_desc *desc;
    tally tally;
    pthread_mutex_t lock; /* guards n_left */
    pthread_cond_t done;
    int n_left;
    long n_failed, n_tokens;
    stream *stream; /* [n_streams] of the case that runs */
    int n_streams;
    bool gate; /* each waits after its first token until all have one: then all decode */
    int n_at_gate;
    json_t *report;
} bench;

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench_engine: %s: %s\n", what, why);
    exit(2);
}

static long number(const char *key, const char *text) {
    char *end;
    errno = 0;
    const long v = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || v < 0) die(key, "needs a number");
    return v;
}

static list numbers(const char *key, const char *text) {
    list l = {0};
    for (const char *at = text; *at != '\0';) {
        char *end;
        const long v = strtol(at, &end, 10);
        if (end == at || v < 1 || v > INT32_MAX || l.n == LIST_MAX)
            die(key, "needs numbers: 1,8,32");
        l.v[l.n++] = (int)v;
        at = *end == ',' ? end + 1 : end;
        if (*end != ',' && *end != '\0') die(key, "needs numbers: 1,8,32");
    }
    return l;
}

static int kv_type(const char *name) {
    static const struct {
        const char *name;
        int type;
    } types[] = {{"f32", DTYPE_F32}, {"f16", DTYPE_F16}, {"bf16", DTYPE_BF16}, {"i8", DTYPE_I8}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(name, types[i].name) == 0) return types[i].type;
    die("--kv-type", "needs f16, bf16, f32 or i8");
    return -1;
}

static void set_arg(args *a, const char *k, const char *v) {
    if (!strcmp(k, "--model"))
        a->model = v;
    else if (!strcmp(k, "--backend"))
        a->backend = v;
    else if (!strcmp(k, "--threads"))
        a->device.threads = (int)number(k, v);
    else if (!strcmp(k, "--device"))
        a->device.device = (int)number(k, v);
    else if (!strcmp(k, "--batch"))
        a->batch = numbers(k, v);
    else if (!strcmp(k, "--prompt"))
        a->prompt = numbers(k, v);
    else if (!strcmp(k, "--output"))
        a->output = (int)number(k, v);
    else if (!strcmp(k, "--prefill"))
        a->prefill = numbers(k, v);
    else if (!strcmp(k, "--mixed"))
        a->mixed = v;
    else if (!strcmp(k, "--max-sequences"))
        a->engine.max_sequences = (int)number(k, v);
    else if (!strcmp(k, "--max-step-tokens"))
        a->engine.max_step_tokens = (int)number(k, v);
    else if (!strcmp(k, "--context"))
        a->context = (int)number(k, v);
    else if (!strcmp(k, "--kv-type"))
        a->engine.kv_type = kv_type(v);
    else if (!strcmp(k, "--kv-blocks"))
        a->engine.kv_blocks = (int)number(k, v);
    else if (!strcmp(k, "--kv-block-tokens"))
        a->engine.kv_block_tokens = (int)number(k, v);
    else if (!strcmp(k, "--kv-bytes"))
        a->engine.kv_memory_bytes = (size_t)number(k, v);
    else if (!strcmp(k, "--bandwidth"))
        a->bandwidth_gbs = (double)number(k, v);
    else if (!strcmp(k, "--json"))
        a->json = v;
    else
        die(k, "unknown option");
}

static args parse(int argc, char **argv) {
    args a = {.backend = "auto", .output = 128, .engine = {.kv_type = -1}};
    a.engine.queue_max_requests = 1 << 16;
    a.engine.queue_max_tokens = 1u << 30;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--deterministic"))
            a.device.deterministic = true;
        else if (i + 1 == argc)
            die(argv[i], "needs a value");
        else
            set_arg(&a, argv[i], argv[i + 1]), i++;
    }
    if (a.model == NULL) die("--model", "is needed");
    if (a.prompt.n == 0) a.prompt = (list){.n = 1, .v = {512}};
    if (a.output < 1) die("--output", "needs at least 1");
    if (a.engine.max_sequences == 0 && a.mixed != NULL) a.engine.max_sequences = MIXED_SEQUENCES;
    for (int i = 0; i < a.batch.n; i++)
        if (a.batch.v[i] > a.engine.max_sequences) a.engine.max_sequences = a.batch.v[i];
    return a;
}

static void on_step(void *ctx, const step_report *r) {
    tally *t = &((bench *)ctx)->tally;
    step_table_add(&t->table, r);
    if (r->n_prefill_tokens == 0 && r->n_decode_tokens == t->batch && t->n < STEPS_MAX)
        t->ns[t->n++] = r->step_ns;
}

static void open_gate(bench *b) {
    for (int i = 0; i < b->n_streams; i++) atomic_store(&b->stream[i].request.paused, false);
    engine_wake(b->engine);
}

static void on_event(void *ctx, const engine_event *e) {
    stream *s = ctx;
    bench *b = s->bench;
    if (e->kind == EVENT_TOKEN) {
        const int64_t now = clock_now_ns();
        if (s->n_tokens > 0) step_table_gap(&b->tally.table, now - s->last_ns);
        s->last_ns = now;
        b->n_tokens++;
        if (s->n_tokens++ == 0 && b->gate) {
            atomic_store(&s->request.paused, true);
            if (++b->n_at_gate == b->n_streams) open_gate(b);
        }
    }
    if (e->kind != EVENT_ENDED) return;
    pthread_mutex_lock(&b->lock);
    b->n_failed += e->end != END_FINISHED;
    if (--b->n_left == 0) pthread_cond_signal(&b->done);
    pthread_mutex_unlock(&b->lock);
}

static uint64_t next_random(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    return *x ^= *x << 17;
}

static stream *make_streams(bench *b, int n, const int *io, int32_t **tokens) {
    static uint64_t seed = 88172645463325252u;
    stream *s = calloc((size_t)n, sizeof *s);
    size_t total = 0, at = 0;
    for (int i = 0; i < n; i++) total += (size_t)io[2 * i];
    *tokens = malloc(total * sizeof **tokens);
    if (s == NULL || *tokens == NULL) die("memory", "out of it");
    for (size_t i = 0; i < total; i++)
        (*tokens)[i] = (int32_t)(next_random(&seed) % (uint64_t)b->desc->n_vocab);
    for (int i = 0; i < n; i++) {
        s[i].bench = b;
        s[i].request = (engine_request){.prompt = *tokens + at,
                                        .n_prompt = io[2 * i],
                                        .max_tokens = io[2 * i + 1],
                                        .n_choices = 1,
                                        .ignore_eos = true,
                                        .deadline_ns = TIME_NEVER,
                                        .time_limit_ns = TIME_NEVER,
                                        .on_event = on_event,
                                        .ctx = &s[i]};
        at += (size_t)io[2 * i];
    }
    return s;
}

/* Runs n requests of lengths io[2 * i], io[2 * i + 1] at once; returns the wall time. */
static int64_t run(bench *b, int n, const int *io, bool gate) {
    int32_t *tokens;
    b->stream = make_streams(b, n, io, &tokens);
    b->n_left = b->n_streams = n;
    b->n_failed = b->n_tokens = b->n_at_gate = 0;
    b->gate = gate && io[1] > 1;
    const int64_t began = clock_now_ns();
    for (int i = 0; i < n; i++) {
        const status s = engine_submit(b->engine, &b->stream[i].request);
        if (s != OK) die("submit", status_name(s));
    }
    pthread_mutex_lock(&b->lock);
    while (b->n_left > 0) pthread_cond_wait(&b->done, &b->lock);
    pthread_mutex_unlock(&b->lock);
    const int64_t ns = clock_now_ns() - began;
    if (b->n_failed > 0) die("run", "a request failed");
    free(tokens);
    free(b->stream);
    return ns;
}

static int by_value(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double ms(int64_t ns) {
    return (double)ns / 1e6;
}

static int *same(int n, int prompt, int output) {
    int *io = malloc(2 * (size_t)n * sizeof *io);
    if (io == NULL) die("memory", "out of it");
    for (int i = 0; i < n; i++) io[2 * i] = prompt, io[2 * i + 1] = output;
    return io;
}

/* Bytes a decode step must read at least: all weights and the KV of what it attends to. */
static double step_bytes(const bench *b, int batch, int context) {
    const backend_memory *m = engine_memory(b->engine);
    const int bt =
        b->a.engine.kv_block_tokens > 0 ? b->a.engine.kv_block_tokens : LIMIT_KV_BLOCK_TOKENS;
    const double a_token = (double)m->kv_bytes / ((double)m->kv_blocks * bt);
    return (double)m->weights_bytes + a_token * batch * context;
}

static void bench_decode(bench *b, int batch, int prompt) {
    tally *t = &b->tally;
    int *io = same(batch, prompt, b->a.output);
    *t = (tally){.batch = batch, .ns = t->ns};
    const int64_t wall = run(b, batch, io, true);
    free(io);
    int64_t sum = 0;
    for (int i = 0; i < t->n; i++) sum += t->ns[i];
    if (t->n == 0) {
        printf("%6d %7d   no step had the whole batch decoding: raise --output or the pool\n",
               batch, prompt);
        return;
    }
    qsort(t->ns, (size_t)t->n, sizeof *t->ns, by_value);
    const double step_ms = ms(sum) / t->n, rate = 1e3 * batch / step_ms;
    const double gbs = step_bytes(b, batch, prompt + b->a.output / 2) / (step_ms * 1e6);
    const double share = b->a.bandwidth_gbs > 0 ? 100 * gbs / b->a.bandwidth_gbs : 0;
    printf("%6d %7d %12.1f %10.3f %8.3f %8.3f %10.1f %8.0f %6.1f\n", batch, prompt, rate, step_ms,
           ms(t->ns[t->n / 2]), ms(t->ns[t->n * 99 / 100]),
           1e9 * (double)b->n_tokens / (double)wall, gbs, share);
    json_array_append_new(b->report,
                          json_pack("{s:s,s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:f}", "case", "decode",
                                    "batch", batch, "prompt", prompt, "tokens_per_s", rate,
                                    "step_ms", step_ms, "p50_ms", ms(t->ns[t->n / 2]), "p99_ms",
                                    ms(t->ns[t->n * 99 / 100]), "total_tokens_per_s",
                                    1e9 * (double)b->n_tokens / (double)wall, "gb_per_s", gbs));
}

static void bench_prefill(bench *b, int prompt) {
    tally *t = &b->tally;
    int *io = same(1, prompt, 1);
    int64_t best = INT64_MAX, sum = 0;
    const int rounds = prompt >= 4096 ? 3 : 5;
    for (int i = 0; i < rounds; i++) {
        *t = (tally){.batch = -1, .ns = t->ns};
        const int64_t wall = run(b, 1, io, false);
        sum += wall;
        if (wall < best) best = wall;
    }
    free(io);
    const double mean_ms = ms(sum) / rounds;
    printf("prefill %7d tokens %10.1f tok/s mean %9.3f ms, best %10.1f tok/s\n", prompt,
           1e3 * prompt / mean_ms, mean_ms, 1e9 * prompt / (double)best);
    json_array_append_new(b->report, json_pack("{s:s,s:i,s:f,s:f,s:f}", "case", "prefill", "prompt",
                                               prompt, "tokens_per_s", 1e3 * prompt / mean_ms,
                                               "mean_ms", mean_ms, "best_ms", ms(best)));
}

static void bench_mixed(bench *b) {
    json_error_t why;
    json_t *file = json_load_file(b->a.mixed, 0, &why);
    const json_t *pairs = file != NULL ? json_object_get(file, "requests_in_out") : NULL;
    const int n = (int)json_array_size(pairs);
    if (n == 0) die(b->a.mixed, file == NULL ? why.text : "has no requests_in_out");
    int *io = same(n, 0, 0);
    long in = 0;
    for (int i = 0; i < n; i++) {
        const json_t *pair = json_array_get(pairs, (size_t)i);
        for (int k = 0; k < 2; k++)
            io[2 * i + k] = (int)json_integer_value(json_array_get(pair, (size_t)k));
        in += io[2 * i];
    }
    b->tally = (tally){.batch = -1, .ns = b->tally.ns};
    const int64_t wall = run(b, n, io, false);
    engine_stats s;
    engine_read_stats(b->engine, &s);
    const double rate = 1e9 * (double)b->n_tokens / (double)wall;
    printf("mixed: %d requests, %ld tokens in, %ld out, %.2f s, %.1f output tok/s, "
           "%llu preemptions so far\n",
           n, in, b->n_tokens, ms(wall) / 1e3, rate, (unsigned long long)s.preemptions);
    step_table_print(&b->tally.table);
    json_array_append_new(b->report, json_pack("{s:s,s:i,s:i,s:f,s:f}", "case", "mixed", "requests",
                                               n, "output_tokens", (int)b->n_tokens, "seconds",
                                               ms(wall) / 1e3, "tokens_per_s", rate));
    free(io);
    json_decref(file);
}

static void open_engine(bench *b) {
    error err;
    gguf *g;
    weights *w;
    backend *device;
    if (gguf_open(b->a.model, &g, &err) != OK) die(b->a.model, err.text);
    if (weights_open(g, b->a.context, &w, &err) != OK) die(b->a.model, err.text);
    b->desc = weights_desc(w);
    if (backend_open(b->a.backend, &b->a.device, &device, &err) != OK) die(b->a.backend, err.text);
    b->a.engine.on_step = on_step;
    b->a.engine.on_step_ctx = b;
    const int64_t began = clock_now_ns();
    if (engine_open(device, b->desc, &b->a.engine, NULL, NULL, &b->engine, &err) != OK)
        die("engine", err.text);
    if (engine_start(b->engine, &err) != OK) die("engine", err.text);
    const backend_memory *m = engine_memory(b->engine);
    printf("%s, %s, %s\n", b->a.model, weights_info(w)->quantization,
           device->ops->device_name(device));
    printf("open %.2f s; weights %.1f MB, KV %.1f MB (%d blocks, %s), workspace %.1f MB\n",
           ms(clock_now_ns() - began) / 1e3, (double)m->weights_bytes / 1e6,
           (double)m->kv_bytes / 1e6, m->kv_blocks, dtype_get((int)m->kv_type)->name,
           (double)m->workspace_bytes / 1e6);
    fflush(stdout);
}

int main(int argc, char **argv) {
    bench b = {.a = parse(argc, argv), .report = json_array()};
    b.tally.ns = malloc(STEPS_MAX * sizeof *b.tally.ns);
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.done, NULL);
    if (b.tally.ns == NULL || b.report == NULL) die("memory", "out of it");
    open_engine(&b);
    const int warm[] = {64, 8, 64, 8};
    b.tally.batch = -1;
    run(&b, 2, warm,
        false); /* touches every code path once, and gives the scheduler its first costs */

    if (b.a.batch.n > 0)
        printf("%6s %7s %12s %10s %8s %8s %10s %8s %6s\n", "batch", "prompt", "tok/s decode",
               "ms/step", "p50", "p99", "tok/s all", "GB/s", "%peak");
    for (int i = 0; i < b.a.batch.n; i++)
        for (int k = 0; k < b.a.prompt.n; k++) {
            bench_decode(&b, b.a.batch.v[i], b.a.prompt.v[k]);
            fflush(stdout);
        }
    for (int i = 0; i < b.a.prefill.n; i++) bench_prefill(&b, b.a.prefill.v[i]);
    if (b.a.mixed != NULL) bench_mixed(&b);
    if (b.a.json != NULL && json_dump_file(b.report, b.a.json, JSON_INDENT(1)) != 0)
        die(b.a.json, "cannot be written");
    engine_close(b.engine);
    json_decref(b.report);
    free(b.tally.ns);
    return 0;
}
