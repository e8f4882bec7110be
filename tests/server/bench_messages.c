/* What a token costs the server: a fake engine makes tokens at a given pace, clients in a process
 * of their own read them, and the server process's CPU time is divided by what it sent.
 *   bench_messages [streams [connections [step_us [seconds]]]]
 * step_us 0 runs as fast as the engine thread can: then tokens coalesce behind writes in flight. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "server/server.h"
#include "tests/server/fake_engine.h"
#include "tests/server/loopback.h"

enum { STREAMS_MAX = 4096 };

typedef struct reader {
    pthread_t thread;
    grpc_channel *channel;
    uint64_t n_messages, n_tokens;
    int seconds;
} reader;

static void *read_stream(void *arg) {
    reader *r = arg;
    Inferd__V1__GenerateRequest m = INFERD__V1__GENERATE_REQUEST__INIT;
    Inferd__V1__Stopping stopping = INFERD__V1__STOPPING__INIT;
    m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
    m.text = (ProtobufCBinaryData){5, (uint8_t *)"hello"};
    m.stopping = &stopping;
    stopping.time_limit_ms = (uint32_t)r->seconds * 1000;
    uint8_t bytes[128];
    const size_t len = protobuf_c_message_pack(&m.base, bytes);
    loopback_call c;
    loopback_start(&c, r->channel, "/inferd.v1.Inference/Generate", bytes, len, NULL, NULL, 0);
    Inferd__V1__GenerateResponse *got;
    while ((got = loopback_read(&c, &inferd__v1__generate_response__descriptor))) {
        r->n_messages++;
        r->n_tokens += got->n_token_ids;
        inferd__v1__generate_response__free_unpacked(got, NULL);
    }
    loopback_status(&c);
    loopback_end(&c);
    return NULL;
}

/* The child: totals go up the pipe. */
static void run_readers(int in, int out, int n_streams, int n_connections, int seconds) {
    char addr[300];
    uint64_t total[2] = {0, 0};
    if (read(in, addr, sizeof addr) != (ssize_t)sizeof addr) _exit(1);
    grpc_init();
    reader *r = calloc((size_t)n_streams, sizeof *r);
    grpc_channel *channels[STREAMS_MAX];
    for (int i = 0; i < n_connections; i++) channels[i] = loopback_channel(addr);
    for (int i = 0; i < n_streams; i++) {
        r[i].channel = channels[i % n_connections];
        r[i].seconds = seconds;
        if (pthread_create(&r[i].thread, NULL, read_stream, &r[i]) != 0) _exit(1);
    }
    for (int i = 0; i < n_streams; i++) {
        pthread_join(r[i].thread, NULL);
        total[0] += r[i].n_messages;
        total[1] += r[i].n_tokens;
    }
    _exit(write(out, total, sizeof total) == (ssize_t)sizeof total ? 0 : 1);
}

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

int main(int argc, char *argv[]) {
    const int n_streams = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 256;
    const int n_connections = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 8;
    const int step_us = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 20000;
    const int seconds = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 5;
    if (n_streams < 1 || n_streams > STREAMS_MAX || n_connections < 1 ||
        n_connections > n_streams || seconds < 1)
        return 2;
    int down[2], up[2];
    if (pipe(down) != 0 || pipe(up) != 0) return 1;
    const pid_t child = fork(); /* before core has threads */
    if (child == 0) run_readers(down[0], up[1], n_streams, n_connections, seconds);

    log_init(LOG_ERROR, false);
    const server_options o = {.listen = "127.0.0.1:0",
                              .max_streams = n_streams,
                              .max_message_bytes = LIMIT_MESSAGE_BYTES_DEFAULT,
                              .slow_reader_s = 30,
                              .max_choices = 8};
    server *s;
    error err;
    if (server_open(&o, &s, &err) != OK) return 1;
    engine *e = fake_engine_open(server_on_step, s, step_us);
    served_model m = fake_served_model(e);
    m.context_length *= 1000;
    if (server_serve(s, &m) != OK) return 1;
    char addr[300] = "";
    snprintf(addr, sizeof addr, "%s", server_address(s));
    const double before = cpu_s();
    uint64_t total[2] = {0, 0};
    if (write(down[1], addr, sizeof addr) != (ssize_t)sizeof addr ||
        read(up[0], total, sizeof total) != (ssize_t)sizeof total)
        return 1;
    const double spent = cpu_s() - before;
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    printf("streams %d connections %d step_us %d: %llu messages, %llu tokens, %.2f us CPU/message, "
           "%.2f us CPU/token, %.2f of a core, max RSS %ld KiB\n",
           n_streams, n_connections, step_us, (unsigned long long)total[0],
           (unsigned long long)total[1], spent * 1e6 / (double)total[0],
           spent * 1e6 / (double)total[1], spent / seconds, u.ru_maxrss);
    waitpid(child, NULL, 0);
    server_close(s);
    fake_engine_close(e);
    return 0;
}
