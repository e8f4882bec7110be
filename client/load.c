/* Each worker owns its calls; workers share two atomic counters and nothing else. A message is not
 * unpacked but scanned for what is counted: unpacking would cost more than gRPC itself. */
#include "client/load.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "client/session.h"
#include "inferd/v1/inference.pb-c.h"

typedef struct shared {
    const load_plan *plan;
    load_progress *progress;
    _Atomic uint64_t next; /* request to start */
    _Atomic int running;   /* workers */
    int64_t start_ns, stop_starting_ns;
    uint32_t longest_prompt;
} shared;

typedef struct worker worker;
typedef struct stream { /* one call in flight */
    worker *w;
    rpc_call *call;
    struct stream *prev, *next;
    int64_t start_ns, last_ns; /* last_ns: of the last message with tokens, 0: none yet */
    uint32_t asked, got;
} stream;

struct worker {
    shared *s;
    pthread_t thread;
    rpc_loop *loop;
    rpc_channel **channels;
    int n_channels, next_channel, n_streams;
    stream live; /* head of the ring of calls in flight */
    int n_live;
    bool cancelled;
    int64_t next_arrival_ns; /* open loop */
    uint64_t random;
    uint32_t *ids; /* [longest_prompt] */
    uint8_t *packed;
    int64_t end_ns; /* when its last call had ended */
    load_result r;
};

/* ------------------------------------------------------------------ random */

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t random_next(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static uint32_t random_below(uint64_t *state, uint32_t n) {
    return (uint32_t)(((random_next(state) >> 32) * (uint64_t)n) >> 32);
}

length_pair load_lengths_of(const load_plan *p, uint64_t i) {
    const load_lengths *l = &p->lengths;
    if (l->pairs) return l->pairs[i % l->n_pairs];
    uint64_t state = p->seed ^ (i * UINT64_C(0xD1342543DE82EF95) + 1);
    return (length_pair){
        .prompt = l->prompt_min + random_below(&state, l->prompt_max - l->prompt_min + 1),
        .output = l->output_min + random_below(&state, l->output_max - l->output_min + 1)};
}

/* ------------------------------------------------------------------ messages */

static bool read_varint(const uint8_t **p, const uint8_t *end, uint64_t *out) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && *p < end; shift += 7) {
        const uint8_t b = *(*p)++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *out = v;
            return true;
        }
    }
    return false;
}

/* Generated tokens in a serialised GenerateResponse: field 5, packed or not. */
static uint32_t count_tokens(const uint8_t *p, size_t bytes) {
    const uint8_t *end = p + bytes;
    uint32_t n = 0;
    uint64_t tag, v;
    while (p < end && read_varint(&p, end, &tag)) {
        switch (tag & 7) {
        case 0:
            if (!read_varint(&p, end, &v)) return n;
            n += tag >> 3 == 5;
            break;
        case 1:
            if (end - p < 8) return n;
            p += 8;
            break;
        case 2:
            if (!read_varint(&p, end, &v) || v > (uint64_t)(end - p)) return n;
            if (tag >> 3 == 5)
                for (uint64_t i = 0; i < v; i++) n += !(p[i] & 0x80); /* last bytes of varints */
            p += v;
            break;
        case 5:
            if (end - p < 4) return n;
            p += 4;
            break;
        default:
            return n;
        }
    }
    return n;
}

static void on_message(void *ctx, const uint8_t *data, size_t bytes) {
    stream *st = ctx;
    load_result *r = &st->w->r;
    const uint32_t n = count_tokens(data, bytes);
    r->messages++;
    if (n == 0) return;
    const int64_t now = clock_now_ns();
    if (st->last_ns == 0)
        histogram_add(&r->first_token, now - st->start_ns);
    else
        histogram_add(&r->inter_token, now - st->last_ns);
    st->last_ns = now;
    st->got += n;
    r->output_tokens += n;
    atomic_fetch_add_explicit(&st->w->s->progress->output_tokens, n, memory_order_relaxed);
}

/* ------------------------------------------------------------------ calls */

static void start_next(worker *w, int64_t start_ns);

static void on_end(void *ctx, const rpc_result *res) {
    stream *st = ctx;
    worker *w = st->w;
    load_result *r = &w->r;
    st->prev->next = st->next;
    st->next->prev = st->prev;
    w->n_live--;
    r->by_code[(unsigned)res->code < 17 ? (unsigned)res->code : 2]++;
    if (res->code == GRPC_STATUS_OK) {
        r->ok++;
        r->cut += st->got < st->asked;
        histogram_add(&r->request, clock_now_ns() - st->start_ns);
    } else {
        r->failed++;
        if (!r->first_failure[0])
            (void)snprintf(r->first_failure, sizeof r->first_failure, "%s: %s",
                           rpc_code_name(res->code), res->message);
    }
    atomic_fetch_add_explicit(&w->s->progress->ended, 1, memory_order_relaxed);
    free(st);
    if (w->s->plan->rate_per_s <= 0) start_next(w, 0);
}

/* The request into w->packed; returns its length. */
static size_t pack_request(worker *w, uint64_t i, length_pair l) {
    const load_plan *p = w->s->plan;
    uint64_t common = p->seed, own = p->seed ^ ((i + 1) * UINT64_C(0xA24BAED4963EE407));
    for (uint32_t k = 0; k < l.prompt; k++)
        w->ids[k] = random_below(k < p->shared_prefix ? &common : &own, p->vocab_size);
    Inferd__V1__TokenIds ids = INFERD__V1__TOKEN_IDS__INIT;
    ids.ids = w->ids;
    ids.n_ids = l.prompt;
    Inferd__V1__Stopping stopping = INFERD__V1__STOPPING__INIT;
    stopping.max_tokens = l.output;
    stopping.ignore_eos = true;
    Inferd__V1__Sampling sampling = INFERD__V1__SAMPLING__INIT;
    sampling.temperature = p->temperature;
    sampling.seed = i + 1;
    Inferd__V1__GenerateRequest r = INFERD__V1__GENERATE_REQUEST__INIT;
    r.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    r.token_ids = &ids;
    r.stopping = &stopping;
    r.sampling = &sampling;
    return inferd__v1__generate_request__pack(&r, w->packed);
}

/* Starts the next request of the run, if there is one. start_ns: when it was due, 0: now. */
static void start_next(worker *w, int64_t start_ns) {
    shared *s = w->s;
    const int64_t now = clock_now_ns();
    if (w->cancelled || now >= s->stop_starting_ns) return;
    const uint64_t i = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
    if (i >= s->plan->n_requests) return;
    const length_pair l = load_lengths_of(s->plan, i);
    const size_t bytes = pack_request(w, i, l);
    stream *st = calloc(1, sizeof *st);
    if (!st) abort();
    st->w = w;
    st->start_ns = start_ns ? start_ns : now;
    st->asked = l.output;
    st->prev = w->live.prev;
    st->next = &w->live;
    st->prev->next = st->next->prev = st;
    w->n_live++;
    w->r.started++;
    w->r.prompt_tokens += l.prompt;
    const int64_t deadline =
        s->plan->timeout_s > 0 ? clock_now_ns() + (int64_t)(s->plan->timeout_s * 1e9) : TIME_NEVER;
    rpc_channel *ch = w->channels[w->next_channel];
    w->next_channel = (w->next_channel + 1) % w->n_channels;
    st->call = rpc_start(ch, w->loop, METHOD_GENERATE, w->packed, bytes, deadline, false,
                         (rpc_handlers){.on_message = on_message, .on_end = on_end, .ctx = st});
}

/* ------------------------------------------------------------------ workers */

static void cancel_all(worker *w) {
    w->cancelled = true;
    for (stream *st = w->live.next; st != &w->live; st = st->next) rpc_cancel(st->call);
}

/* Open loop: starts what is due; returns when to come again, or TIME_NEVER when an event has to
 * come first. What a server cannot take waits here, and its latency counts from when it was due. */
static int64_t start_arrivals(worker *w) {
    enum { LIVE_MAX = 16384, BURST_MAX = 256 }; /* of all workers; before a look at the events */
    static const double gap_max_s = 1e6;
    shared *s = w->s;
    const double rate = s->plan->rate_per_s / s->plan->n_threads;
    for (int burst = 0; !w->cancelled && w->next_arrival_ns < s->stop_starting_ns &&
                        atomic_load_explicit(&s->next, memory_order_relaxed) < s->plan->n_requests;
         burst++) {
        const int64_t now = clock_now_ns();
        if (w->next_arrival_ns > now) return w->next_arrival_ns;
        if (w->n_live >= LIVE_MAX / s->plan->n_threads) return TIME_NEVER;
        if (burst == BURST_MAX) return now;
        start_next(w, w->next_arrival_ns);
        const double u = (double)(random_next(&w->random) >> 11) * 0x1p-53;
        w->next_arrival_ns += (int64_t)(fmin(-log1p(-u) / rate, gap_max_s) * 1e9);
    }
    return TIME_NEVER;
}

static void *worker_main(void *arg) {
    worker *w = arg;
    shared *s = w->s;
    const bool open_loop = s->plan->rate_per_s > 0;
    for (int i = 0; i < w->n_streams && !open_loop; i++) start_next(w, 0);
    for (;;) {
        const int64_t due = open_loop ? start_arrivals(w) : TIME_NEVER;
        if (w->n_live == 0 && due == TIME_NEVER) break;
        const int64_t soon = clock_now_ns() + 100 * NS_PER_MS;
        (void)rpc_loop_turn(w->loop, due < soon ? due : soon);
        if (!w->cancelled && atomic_load_explicit(&s->progress->stop, memory_order_relaxed))
            cancel_all(w);
    }
    w->end_ns = clock_now_ns();
    atomic_fetch_sub(&s->running, 1);
    return NULL;
}

static void worker_open(worker *w, shared *s, int i) {
    const load_plan *p = s->plan;
    w->s = s;
    w->live.next = w->live.prev = &w->live;
    w->loop = rpc_loop_open();
    w->n_channels = p->n_connections / p->n_threads + (i < p->n_connections % p->n_threads);
    w->n_streams = p->n_streams / p->n_threads + (i < p->n_streams % p->n_threads);
    w->channels = calloc((size_t)w->n_channels, sizeof(*w->channels));
    w->ids = calloc(s->longest_prompt, sizeof *w->ids);
    w->packed = malloc((size_t)s->longest_prompt * 5 + 256);
    if (!w->channels || !w->ids || !w->packed) abort();
    for (int k = 0; k < w->n_channels; k++) {
        error err;
        const status st = rpc_channel_open(p->rpc, &w->channels[k], &err);
        if (st != OK) abort(); /* the same options opened a channel before */
    }
    w->random = p->seed + (uint64_t)i;
    w->next_arrival_ns = s->start_ns;
}

static void worker_close(worker *w, load_result *out) {
    const load_result *r = &w->r;
    out->started += r->started;
    out->ok += r->ok;
    out->failed += r->failed;
    out->cut += r->cut;
    out->prompt_tokens += r->prompt_tokens;
    out->output_tokens += r->output_tokens;
    out->messages += r->messages;
    for (int i = 0; i < 17; i++) out->by_code[i] += r->by_code[i];
    if (!out->first_failure[0])
        memcpy(out->first_failure, r->first_failure, sizeof out->first_failure);
    histogram_merge(&out->first_token, &r->first_token);
    histogram_merge(&out->inter_token, &r->inter_token);
    histogram_merge(&out->request, &r->request);
    for (int k = 0; k < w->n_channels; k++) rpc_channel_close(w->channels[k]);
    rpc_loop_close(w->loop);
    free(w->channels);
    free(w->ids);
    free(w->packed);
}

static uint32_t longest_prompt(const load_plan *p) {
    uint32_t longest = p->lengths.prompt_max;
    for (size_t i = 0; i < p->lengths.n_pairs; i++)
        if (p->lengths.pairs[i].prompt > longest) longest = p->lengths.pairs[i].prompt;
    return longest;
}

void load_run(const load_plan *p, load_result *out, load_progress *progress,
              void (*watch)(void *ctx, load_progress *progress, double elapsed_s), void *ctx) {
    memset(out, 0, sizeof *out);
    shared s = {.plan = p, .progress = progress, .longest_prompt = longest_prompt(p)};
    atomic_store(&s.running, p->n_threads);
    s.start_ns = clock_now_ns();
    s.stop_starting_ns =
        p->duration_s > 0 ? s.start_ns + (int64_t)(p->duration_s * 1e9) : TIME_NEVER;
    worker *workers = calloc((size_t)p->n_threads, sizeof *workers);
    if (!workers) abort();
    for (int i = 0; i < p->n_threads; i++) worker_open(&workers[i], &s, i);
    for (int i = 0; i < p->n_threads; i++)
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0) abort();
    while (atomic_load(&s.running) > 0) {
        const struct timespec pause = {.tv_nsec = 20 * NS_PER_MS};
        (void)nanosleep(&pause, NULL);
        if (watch) watch(ctx, progress, (double)(clock_now_ns() - s.start_ns) / 1e9);
    }
    int64_t end_ns = s.start_ns; /* not now: this thread has slept for up to its pause since */
    for (int i = 0; i < p->n_threads; i++) {
        (void)pthread_join(workers[i].thread, NULL);
        if (workers[i].end_ns > end_ns) end_ns = workers[i].end_ns;
    }
    out->wall_s = (double)(end_ns - s.start_ns) / 1e9;
    for (int i = 0; i < p->n_threads; i++) worker_close(&workers[i], out);
    free(workers);
}
