/* What thousands of waiting streams cost those that run: a client of a real server, on which
 * `active` long streams run from the beginning to the end while `idle` further ones wait in the
 * queue, come and go; the gaps between messages of the active ones are told apart by phase.
 *   bench_streams ADDRESS PID [active [idle [connections [seconds [rounds]]]]]
 * PID: the server's, for its memory. The server must let `active` run and `idle` wait
 * (tests/fleet/streams.py starts one). One thread: the client shares the machine. */
#include <grpc/support/alloc.h>
#include <grpc/support/string_util.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/server/loopback.h"

enum { GAPS_MAX = 1 << 22, CONNECTIONS_MAX = 256, ACTIVE_TOKENS = 60000, SETTLE_MS = 1500 };

typedef struct stream {
    grpc_call *call;
    grpc_byte_buffer *request, *received;
    grpc_metadata_array headers, trailers;
    grpc_status_code code;
    grpc_slice details;
    int64_t last_ns;
    int refs; /* batches in flight */
    bool is_active;
} stream;

typedef struct tag { /* what a batch gives back */
    stream *s;
    bool is_read;
} tag;

typedef struct bench {
    grpc_completion_queue *cq;
    grpc_channel *channels[CONNECTIONS_MAX];
    int n_connections, n_open;
    bool counting, cancelling;
    double *gaps_ms; /* of the phase */
    size_t n_gaps;
    uint64_t n_failed;
} bench;

static void start(stream *s, grpc_op *ops, size_t n, bool is_read) {
    tag *t = malloc(sizeof *t);
    if (!t) abort();
    *t = (tag){s, is_read};
    s->refs++;
    if (grpc_call_start_batch(s->call, ops, n, t, NULL) != GRPC_CALL_OK) abort();
}

static void read_next(stream *s) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->received};
    start(s, &op, 1, true);
}

static stream *open_stream(bench *b, int i, bool is_active) {
    stream *s = calloc(1, sizeof *s);
    if (!s) abort();
    s->is_active = is_active;
    grpc_metadata_array_init(&s->headers);
    grpc_metadata_array_init(&s->trailers);
    uint32_t ids[8];
    for (uint32_t k = 0; k < 8; k++) ids[k] = 32 + (k * 7 + (uint32_t)i) % 90;
    Inferd__V1__TokenIds prompt = INFERD__V1__TOKEN_IDS__INIT;
    prompt.n_ids = 8;
    prompt.ids = ids;
    Inferd__V1__Stopping stopping = INFERD__V1__STOPPING__INIT;
    stopping.max_tokens = is_active ? ACTIVE_TOKENS : 8;
    stopping.ignore_eos = true;
    Inferd__V1__GenerateRequest m = INFERD__V1__GENERATE_REQUEST__INIT;
    m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    m.token_ids = &prompt;
    m.stopping = &stopping;
    uint8_t bytes[256];
    grpc_slice slice =
        grpc_slice_from_copied_buffer((const char *)bytes, protobuf_c_message_pack(&m.base, bytes));
    s->request = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    s->call =
        grpc_channel_create_call(b->channels[i % b->n_connections], NULL, 0, b->cq,
                                 grpc_slice_from_static_string("/inferd.v1.Inference/Generate"),
                                 NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    loopback_ops ops =
        loopback_ops_of(s->request, &s->headers, &s->trailers, &s->code, &s->details);
    start(s, ops.send, 3, false);
    start(s, &ops.headers, 1, false);
    start(s, &ops.status, 1, false);
    read_next(s);
    b->n_open++;
    return s;
}

static void unref(bench *b, stream *s) {
    if (--s->refs > 0) return;
    const bool cancelled_by_us = !s->is_active && b->cancelling;
    if (!cancelled_by_us) { /* nobody else has reason to end */
        char *text = grpc_slice_to_c_string(s->details);
        if (b->n_failed++ < 3)
            fprintf(stderr, "%s stream ended: status %d %s, %s\n", s->is_active ? "active" : "idle",
                    (int)s->code, text, s->last_ns > 0 ? "with output" : "without output");
        gpr_free(text);
    }
    grpc_slice_unref(s->details);
    grpc_metadata_array_destroy(&s->headers);
    grpc_metadata_array_destroy(&s->trailers);
    grpc_byte_buffer_destroy(s->request);
    grpc_call_unref(s->call);
    free(s);
    b->n_open--;
}

static void on_message(bench *b, stream *s) {
    grpc_byte_buffer_destroy(s->received);
    s->received = NULL;
    const int64_t now = clock_now_ns();
    if (s->is_active && s->last_ns > 0 && b->counting && b->n_gaps < GAPS_MAX)
        b->gaps_ms[b->n_gaps++] = (double)(now - s->last_ns) * 1e-6;
    s->last_ns = now;
    read_next(s);
}

/* Handles what comes until then; until n_open falls to at_most, if that is earlier. */
static void run(bench *b, int ms, int at_most) {
    const gpr_timespec until =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(ms, GPR_TIMESPAN));
    while (b->n_open > at_most) {
        const grpc_event ev = grpc_completion_queue_next(b->cq, until, NULL);
        if (ev.type != GRPC_OP_COMPLETE) return;
        tag *t = ev.tag;
        if (t->is_read && t->s->received) on_message(b, t->s);
        unref(b, t->s);
        free(t);
        if (gpr_time_cmp(gpr_now(GPR_CLOCK_MONOTONIC), until) > 0) return;
    }
}

static uint32_t n_waiting(bench *b, uint32_t *running) {
    loopback_call c;
    loopback_start(&c, b->channels[0], "/inferd.v1.Inference/EngineStatus", "", 0, NULL, NULL, 0);
    Inferd__V1__EngineStatusResponse *r =
        loopback_read(&c, &inferd__v1__engine_status_response__descriptor);
    const uint32_t waiting = r ? r->waiting : 0;
    *running = r ? r->running : 0;
    if (r) inferd__v1__engine_status_response__free_unpacked(r, NULL);
    loopback_status(&c);
    loopback_end(&c);
    return waiting;
}

static double resident_kib(const char *pid) {
    char path[64];
    unsigned long long pages = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%.20s/statm", pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%llu %llu", &pages, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1024;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A phase: its gaps, sorted; returns the p99. */
static double measure(bench *b, const char *name, int seconds) {
    b->n_gaps = 0;
    b->counting = true;
    run(b, seconds * 1000, 0);
    b->counting = false;
    qsort(b->gaps_ms, b->n_gaps, sizeof *b->gaps_ms, compare);
    const size_t n = b->n_gaps;
    if (n == 0) return 0;
    printf("%-22s gaps ms: p50 %7.2f  p90 %7.2f  p99 %7.2f  max %7.2f  (%zu messages, %.0f/s)\n",
           name, b->gaps_ms[n / 2], b->gaps_ms[n * 9 / 10], b->gaps_ms[n * 99 / 100],
           b->gaps_ms[n - 1], n, (double)n / seconds);
    fflush(stdout);
    return b->gaps_ms[n * 99 / 100];
}

static bool wait_for(bench *b, uint32_t running, uint32_t waiting) {
    uint32_t now_running = 0, now_waiting = 0;
    for (int i = 0; i < 300; i++) {
        run(b, 100, 0);
        now_waiting = n_waiting(b, &now_running);
        if (now_waiting == waiting && now_running == running) return true;
    }
    fprintf(stderr, "not %u running and %u waiting but %u and %u; %d open, %llu failed\n", running,
            waiting, now_running, now_waiting, b->n_open, (unsigned long long)b->n_failed);
    return false;
}

static int number(int argc, char *argv[], int i, int otherwise) {
    return argc > i ? (int)strtol(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char *argv[]) {
    if (argc < 3) return 2;
    const int n_active = number(argc, argv, 3, 128), n_idle = number(argc, argv, 4, 4096);
    const int seconds = number(argc, argv, 6, 5), rounds = number(argc, argv, 7, 3);
    static bench b;
    b.n_connections = number(argc, argv, 5, 16);
    if (b.n_connections < 1 || b.n_connections > CONNECTIONS_MAX || n_active < 1) return 2;
    grpc_init();
    b.cq = grpc_completion_queue_create_for_next(NULL);
    b.gaps_ms = malloc(GAPS_MAX * sizeof *b.gaps_ms);
    stream **idle = calloc((size_t)n_idle + 1, sizeof(stream *));
    if (!b.gaps_ms || !idle) return 1;
    for (int i = 0; i < b.n_connections; i++) b.channels[i] = loopback_channel(argv[1]);
    for (int i = 0; i < n_active; i++) open_stream(&b, i, true);
    if (!wait_for(&b, (uint32_t)n_active, 0)) return 1;
    run(&b, SETTLE_MS, 0);
    double alone = 0, beside = 0;
    for (int round = 0; round < rounds; round++) {
        alone += measure(&b, "active alone", seconds);
        const double before_kib = resident_kib(argv[2]);
        for (int i = 0; i < n_idle; i++) idle[i] = open_stream(&b, i, false);
        if (!wait_for(&b, (uint32_t)n_active, (uint32_t)n_idle)) return 1;
        printf("%-22s memory: %.1f KiB a stream (resident %.0f -> %.0f KiB)\n", "idle ones wait",
               (resident_kib(argv[2]) - before_kib) / (n_idle > 0 ? n_idle : 1), before_kib,
               resident_kib(argv[2]));
        run(&b, SETTLE_MS, 0);
        beside += measure(&b, "beside the idle ones", seconds);
        b.cancelling = true;
        for (int i = 0; i < n_idle; i++) grpc_call_cancel(idle[i]->call, NULL);
        run(&b, 60000, n_active);
        b.cancelling = false;
        if (!wait_for(&b, (uint32_t)n_active, 0)) return 1;
        run(&b, SETTLE_MS, 0);
    }
    printf("p99 beside / alone: %.2f; failed streams: %llu; open at the end: %d\n", beside / alone,
           (unsigned long long)b.n_failed, b.n_open);
    return b.n_failed > 0 || b.n_open != n_active;
}
