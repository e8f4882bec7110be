/* inferctl bench: load, and what came of it. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/json.h"
#include "client/load.h"
#include "client/session.h"
#include "inferd/v1/inference.pb-c.h"

typedef struct bench_options {
    uint32_t streams, requests, connections, threads, warmup, shared_prefix;
    double rate, duration_s;
    const char *prompt, *output, *load_file;
    uint64_t seed;
    float temperature;
} bench_options;

/* "128" or "64..512". */
static bool parse_range(const char *text, uint32_t *min, uint32_t *max) {
    char *end;
    const unsigned long a = strtoul(text, &end, 10);
    unsigned long b = a;
    if (end == text || text[0] == '-') return false;
    if (strncmp(end, "..", 2) == 0 && end[2] != '-') {
        const char *second = end + 2;
        b = strtoul(second, &end, 10);
        if (end == second) return false;
    }
    if (*end || a < 1 || b < a || b > 1u << 20) return false;
    *min = (uint32_t)a;
    *max = (uint32_t)b;
    return true;
}

/* [[prompt, output], ...], alone or as the first list of pairs in an object. */
static int read_pairs(const cli *c, const char *path, load_lengths *l) {
    json_error_t err;
    size_t bytes;
    char *text = cli_read_file(path, &bytes);
    if (!text) return CLI_USAGE;
    json_t *file = json_loadb(text, bytes, 0, &err), *list = file, *value;
    free(text);
    if (json_is_object(file)) {
        const char *name;
        list = NULL;
        json_object_foreach(file, name, value) if (!list && json_is_array(value)) list = value;
    }
    const size_t n = json_array_size(list);
    l->pairs = calloc(n + 1, sizeof *l->pairs);
    bool good = n > 0 && l->pairs;
    for (size_t i = 0; good && i < n; i++) {
        json_t *pair = json_array_get(list, i);
        const json_int_t a = json_integer_value(json_array_get(pair, 0)),
                         b = json_integer_value(json_array_get(pair, 1));
        good = json_array_size(pair) == 2 && a >= 1 && b >= 1 && a <= 1 << 20 && b <= 1 << 20;
        if (good) l->pairs[i] = (length_pair){(uint32_t)a, (uint32_t)b};
    }
    json_decref(file);
    l->n_pairs = n;
    if (good) return -1;
    return cli_usage_error(c, "%s: a JSON list of [prompt tokens, output tokens] is expected",
                           path);
}

static int ask_vocab_size(session *s, uint32_t *out) {
    Inferd__V1__ModelInfoRequest r = INFERD__V1__MODEL_INFO_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    const int code = session_unary(s, METHOD_MODEL_INFO, &r.base,
                                   &inferd__v1__model_info_response__descriptor, &m);
    if (code != CLI_OK) return code;
    *out = ((const Inferd__V1__ModelInfoResponse *)(const void *)m)->vocab_size;
    protobuf_c_message_free_unpacked(m, NULL);
    if (*out > 0) return -1;
    cli_say("the server reports an empty vocabulary");
    return CLI_FAILED;
}

/* ------------------------------------------------------------------ report */

static json_t *json_of_times(const histogram *h) {
    json_t *j = json_object();
    (void)json_object_set_new(j, "n", json_integer((json_int_t)h->n));
    (void)json_object_set_new(j, "mean", json_real(histogram_mean_ms(h)));
    (void)json_object_set_new(j, "p50", json_real(histogram_quantile_ms(h, 0.50)));
    (void)json_object_set_new(j, "p90", json_real(histogram_quantile_ms(h, 0.90)));
    (void)json_object_set_new(j, "p99", json_real(histogram_quantile_ms(h, 0.99)));
    (void)json_object_set_new(j, "max", json_real((double)h->max_ns / 1e6));
    return j;
}

static void report_json(const load_plan *p, const load_result *r) {
    json_t *j = json_object(), *errors = json_object();
    (void)json_object_set_new(j, "streams", json_integer(p->rate_per_s > 0 ? 0 : p->n_streams));
    (void)json_object_set_new(j, "rate", json_real(p->rate_per_s));
    (void)json_object_set_new(j, "connections", json_integer(p->n_connections));
    (void)json_object_set_new(j, "wall_s", json_real(r->wall_s));
    (void)json_object_set_new(j, "requests_ok", json_integer((json_int_t)r->ok));
    (void)json_object_set_new(j, "requests_failed", json_integer((json_int_t)r->failed));
    (void)json_object_set_new(j, "requests_cut", json_integer((json_int_t)r->cut));
    (void)json_object_set_new(j, "requests_per_s", json_real((double)r->ok / r->wall_s));
    (void)json_object_set_new(j, "prompt_tokens", json_integer((json_int_t)r->prompt_tokens));
    (void)json_object_set_new(j, "output_tokens", json_integer((json_int_t)r->output_tokens));
    (void)json_object_set_new(j, "output_tokens_per_s",
                              json_real((double)r->output_tokens / r->wall_s));
    (void)json_object_set_new(j, "messages", json_integer((json_int_t)r->messages));
    (void)json_object_set_new(j, "first_token_ms", json_of_times(&r->first_token));
    (void)json_object_set_new(j, "inter_token_ms", json_of_times(&r->inter_token));
    (void)json_object_set_new(j, "request_ms", json_of_times(&r->request));
    for (int i = 1; i < 17; i++)
        if (r->by_code[i] > 0)
            (void)json_object_set_new(errors, rpc_code_name((grpc_status_code)i),
                                      json_integer((json_int_t)r->by_code[i]));
    (void)json_object_set_new(j, "errors", errors);
    json_print_line(j);
}

static void print_times(const char *name, const histogram *h) {
    printf("%-16s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, histogram_mean_ms(h),
           histogram_quantile_ms(h, 0.50), histogram_quantile_ms(h, 0.90),
           histogram_quantile_ms(h, 0.99), (double)h->max_ns / 1e6);
}

static void report_text(const load_result *r) {
    printf("requests         %" PRIu64 " done, %" PRIu64 " failed in %.2f s: %.2f requests/s\n",
           r->ok, r->failed, r->wall_s, (double)r->ok / r->wall_s);
    printf("output           %" PRIu64 " tokens: %.1f tokens/s; %.2f tokens a message\n",
           r->output_tokens, (double)r->output_tokens / r->wall_s,
           r->messages ? (double)r->output_tokens / (double)r->messages : 0.0);
    printf("prompts          %" PRIu64 " tokens\n", r->prompt_tokens);
    printf("milliseconds          mean       p50       p90       p99       max\n");
    print_times("first token", &r->first_token);
    print_times("inter-token", &r->inter_token);
    print_times("request", &r->request);
    if (r->cut > 0)
        printf("cut short        %" PRIu64 " requests gave fewer tokens than asked for\n", r->cut);
    for (int i = 1; i < 17; i++)
        if (r->by_code[i] > 0)
            printf("errors           %" PRIu64 " %s\n", r->by_code[i],
                   rpc_code_name((grpc_status_code)i));
}

/* ------------------------------------------------------------------ run */

typedef struct watcher {
    bool terminal, interrupted;
    double drawn_s;
    uint64_t n_requests;
} watcher;

static void watch(void *ctx, load_progress *p, double elapsed_s) {
    watcher *w = ctx;
    if (session_interrupted()) {
        w->interrupted = true;
        atomic_store(&p->stop, true);
    }
    if (!w->terminal || elapsed_s - w->drawn_s < 0.5) return;
    w->drawn_s = elapsed_s;
    const uint64_t ended = atomic_load(&p->ended), tokens = atomic_load(&p->output_tokens);
    fprintf(stderr, "\r%.0f s: %" PRIu64, elapsed_s, ended);
    if (w->n_requests < UINT64_MAX) fprintf(stderr, "/%" PRIu64, w->n_requests);
    fprintf(stderr, " requests, %.0f tokens/s\033[K", (double)tokens / elapsed_s);
}

static int run_phase(load_plan *p, load_result *out) {
    load_progress progress = {0};
    watcher w = {.terminal = isatty(STDERR_FILENO), .n_requests = p->n_requests};
    load_run(p, out, &progress, watch, &w);
    if (w.terminal && w.drawn_s > 0) fputs("\r\033[K", stderr);
    return w.interrupted ? CLI_INTERRUPTED : -1;
}

static int check_options(const cli *c, const bench_options *o, load_plan *p) {
    if (o->rate > 0 && o->streams > 0)
        return cli_usage_error(c, "--rate and --streams exclude each other");
    if (o->load_file && (o->prompt || o->output))
        return cli_usage_error(c, "--load excludes --prompt-tokens and --output-tokens");
    if (o->streams > 65536 || o->threads > 64 || o->connections > 4096)
        return cli_usage_error(c, "at most 65536 streams, 64 threads, 4096 connections");
    if (!parse_range(o->prompt ? o->prompt : "128", &p->lengths.prompt_min, &p->lengths.prompt_max))
        return cli_usage_error(c, "--prompt-tokens needs N or A..B");
    if (!parse_range(o->output ? o->output : "128", &p->lengths.output_min, &p->lengths.output_max))
        return cli_usage_error(c, "--output-tokens needs N or A..B");
    if (o->load_file) {
        p->lengths.prompt_max = 1;
        const int code = read_pairs(c, o->load_file, &p->lengths);
        if (code >= 0) return code;
    }
    p->n_streams = o->streams ? (int)o->streams : 8;
    p->rate_per_s = o->rate;
    p->n_threads = o->threads ? (int)o->threads : p->n_streams > 64 || o->rate > 64 ? 2 : 1;
    p->n_connections = o->connections ? (int)o->connections : 1 + (p->n_streams - 1) / 64;
    if (p->n_connections < p->n_threads) p->n_connections = p->n_threads;
    p->duration_s = o->duration_s;
    p->n_requests = o->requests ? o->requests : UINT64_MAX;
    if (!o->requests && o->duration_s <= 0)
        p->n_requests = p->lengths.n_pairs ? p->lengths.n_pairs : 8 * (uint64_t)p->n_streams;
    p->timeout_s = c->timeout_s;
    p->shared_prefix = o->shared_prefix;
    p->seed = o->seed;
    p->temperature = o->temperature;
    return -1;
}

static int run_all(cli *c, const bench_options *o, load_plan *p) {
    session s = {0};
    int code = session_open(&s, c);
    if (code < 0) code = ask_vocab_size(&s, &p->vocab_size);
    session_close(&s);
    load_result *r = calloc(1, sizeof *r);
    if (!r) abort();
    if (code < 0 && o->warmup > 0) {
        load_plan warm = *p;
        warm.n_requests = o->warmup;
        warm.duration_s = 0;
        warm.seed = ~p->seed; /* other prompts: the prompt cache is not warmed for the run */
        code = run_phase(&warm, r);
    }
    if (code < 0) code = run_phase(p, r);
    if (code < 0 || (code == CLI_INTERRUPTED && r->started > 0)) {
        if (c->json)
            report_json(p, r);
        else
            report_text(r);
    }
    if (r->first_failure[0] && code != CLI_INTERRUPTED)
        cli_say("first failure: %s", r->first_failure);
    if (code < 0) code = r->ok > 0 && r->failed == 0 ? CLI_OK : CLI_FAILED;
    free(r);
    return code;
}

static int bench_run(cli *c, int argc, char **argv) {
    bench_options o = {.seed = 1};
    const flag flags[] = {
        {"--streams", FLAG_U32, &o.streams, "N", "streams at once, default 8"},
        {"--rate", FLAG_DOUBLE, &o.rate, "R", "instead: R requests a second, Poisson arrivals"},
        {"--requests", FLAG_U32, &o.requests, "N", "in all, default 8 a stream"},
        {"--duration", FLAG_DOUBLE, &o.duration_s, "S", "start none after S seconds"},
        {"--prompt-tokens", FLAG_TEXT, &o.prompt, "N|A..B", "prompt length, default 128"},
        {"--output-tokens", FLAG_TEXT, &o.output, "N|A..B", "output length, default 128"},
        {"--load", FLAG_TEXT, &o.load_file, "FILE", "lengths: JSON list of [prompt, output]"},
        {"--shared-prefix", FLAG_U32, &o.shared_prefix, "N", "first N tokens equal in all prompts"},
        {"--warmup", FLAG_U32, &o.warmup, "N", "requests before that are not counted"},
        {"--temperature", FLAG_FLOAT, &o.temperature, "T", "default 0, greedy"},
        {"--connections", FLAG_U32, &o.connections, "N", "default one for 64 streams"},
        {"--threads", FLAG_U32, &o.threads, "N", "client threads, default 1, from 65 streams 2"},
        {"--seed", FLAG_U64, &o.seed, "N", "of prompts, lengths and arrivals, default 1"},
    };
    int code = cli_parse(c, flags, (int)(sizeof flags / sizeof *flags), argc, argv);
    if (code >= 0) return code;
    if (c->n_args > 0) return cli_usage_error(c, "bench takes no argument");
    load_plan p = {.rpc = &c->rpc};
    code = check_options(c, &o, &p);
    if (code < 0) code = run_all(c, &o, &p);
    free(p.lengths.pairs);
    return code;
}

const command command_bench = {
    .name = "bench",
    .args = "[flags]",
    .summary = "Loads the server and measures requests/s, tokens/s, first-token and inter-token "
               "times.",
    .details = "Prompts are random token ids; end-of-sequence is ignored, so lengths are as asked "
               "for. Inter-token\ntime is the gap between messages that carry tokens. --timeout is "
               "each call's. Refusals are\ncounted as errors unless --retries is given.",
    .examples =
        "  inferctl bench --streams 64 --prompt-tokens 64..512 --output-tokens 128\n"
        "  inferctl bench --rate 20 --duration 60 --warmup 16 --json\n"
        "  inferctl bench --streams 16 --load mixed.json      # [[194, 88], [436, 117], ...]\n",
    .run = bench_run,
};
