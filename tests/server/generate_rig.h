/* A server with a fake engine, and Generate calls to it over loopback. After every test (teardown)
 * no call is open and the engine holds nothing. Included by one source of a program. */
#ifndef INFERD_TESTS_SERVER_GENERATE_RIG_H
#define INFERD_TESTS_SERVER_GENERATE_RIG_H

#include <stdio.h>

#include "base/log.h"
#include "server/server.h"
#include "tests/check_main.h"
#include "tests/server/fake_engine.h"
#include "tests/server/loopback.h"
#include "tests/wait.h"

#define GENERATE "/inferd.v1.Inference/Generate"

static server *srv;
static engine *eng;
static grpc_channel *channel;

static inline void setup_with(int step_us, int slow_reader_s) {
    const server_options o = {.listen = "127.0.0.1:0",
                              .rpc_threads = 2,
                              .max_streams = 256,
                              .max_message_bytes = LIMIT_MESSAGE_BYTES_DEFAULT,
                              .slow_reader_s = slow_reader_s,
                              .max_choices = LIMIT_CHOICES};
    error err;
    ck_assert_msg(server_open(&o, &srv, &err) == OK, "%s", err.text);
    eng = fake_engine_open(server_on_step, srv, step_us);
    const served_model m = fake_served_model(eng);
    ck_assert_int_eq(server_serve(srv, &m), OK);
    channel = loopback_channel(server_address(srv));
}

enum { NEVER_S = 3600 }; /* a reader is slow only where the test means it to be */

static inline void setup(void) {
    setup_with(300, NEVER_S);
}

static inline void teardown(void) {
    if (channel) grpc_channel_destroy(channel);
    channel = NULL;
    WAIT_UNTIL(server_n_generating(srv) == 0);
    pthread_mutex_lock(&eng->lock);
    ck_assert_int_eq(eng->n_live, 0);
    pthread_mutex_unlock(&eng->lock);
    server_close(srv);
    fake_engine_close(eng);
}

/* --- requests --- */

typedef struct ask {
    const char *id, *stop;
    uint32_t max_tokens, choices, time_limit_ms, min_tokens, n_top;
    bool final_only, include_stop, logprobs, keep_special;
    int timeout_ms, cancel_after; /* messages; -1: never */
} ask;

typedef struct result {
    grpc_status_code code;
    int n_messages, n_tokens, n_finished, n_usage, reason;
    char text[LIMIT_CHOICES][4096];
    size_t len[LIMIT_CHOICES];
    char reason_text[256], pushback[16];
    bool has_headers, has_details;
} result;

static inline ProtobufCBinaryData bytes(const char *s) {
    return (ProtobufCBinaryData){s ? strlen(s) : 0, (uint8_t *)s};
}

static inline size_t encode(const ask *a, uint8_t *out, size_t capacity) {
    Inferd__V1__GenerateRequest m = INFERD__V1__GENERATE_REQUEST__INIT;
    Inferd__V1__Stopping stopping = INFERD__V1__STOPPING__INIT;
    Inferd__V1__Output output = INFERD__V1__OUTPUT__INIT;
    ProtobufCBinaryData stop = bytes(a->stop);
    m.request_id = bytes(a->id);
    m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
    m.text = bytes("hello");
    m.choices = a->choices;
    m.stopping = &stopping;
    stopping.max_tokens = a->max_tokens;
    stopping.min_tokens = a->min_tokens;
    stopping.time_limit_ms = a->time_limit_ms;
    stopping.include_stop = a->include_stop;
    stopping.n_stop = a->stop != NULL;
    stopping.stop = &stop;
    m.output = &output;
    output.final_only = a->final_only;
    output.logprobs = a->logprobs;
    output.top_logprobs = a->n_top;
    output.keep_special = a->keep_special;
    ck_assert_uint_le(protobuf_c_message_get_packed_size(&m.base), capacity);
    return protobuf_c_message_pack(&m.base, out);
}

static inline void take(result *r, const Inferd__V1__GenerateResponse *m, const ask *a) {
    ck_assert_uint_lt(m->index, LIMIT_CHOICES);
    ck_assert_int_eq(m->prompt != NULL, r->n_messages == 0); /* first message only */
    ck_assert_int_eq(r->n_usage, 0);                         /* nothing after the usage */
    r->n_messages++;
    r->n_tokens += (int)m->n_token_ids;
    if (a->logprobs) ck_assert_uint_eq(m->n_logprobs, m->n_token_ids);
    const size_t at = r->len[m->index];
    /* Of endless ones the head is kept. */
    if (m->text.len > 0 && at + m->text.len <= sizeof r->text[0])
        memcpy(r->text[m->index] + at, m->text.data, m->text.len);
    r->len[m->index] += m->text.len;
    if (m->finish) {
        r->n_finished++;
        r->reason = (int)m->finish->reason;
    }
    if (m->usage) {
        r->n_usage++;
        ck_assert_uint_eq(m->usage->completion_tokens, (unsigned)r->n_tokens);
        ck_assert_uint_eq(m->usage->prompt_tokens, 6);
    }
}

static inline void run(grpc_channel *ch, const ask *a, result *r) {
    uint8_t request[512];
    const size_t len = encode(a, request, sizeof request);
    loopback_call c;
    memset(r, 0, sizeof *r);
    loopback_start(&c, ch, GENERATE, request, len, NULL, NULL, a->timeout_ms);
    if (a->cancel_after == 0) grpc_call_cancel(c.call, NULL);
    Inferd__V1__GenerateResponse *m;
    while ((m = loopback_read(&c, &inferd__v1__generate_response__descriptor))) {
        take(r, m, a);
        inferd__v1__generate_response__free_unpacked(m, NULL);
        if (r->n_messages == a->cancel_after) grpc_call_cancel(c.call, NULL);
    }
    r->code = loopback_status(&c);
    const size_t n = GRPC_SLICE_LENGTH(c.details);
    snprintf(r->reason_text, sizeof r->reason_text, "%.*s", (int)n,
             (const char *)GRPC_SLICE_START_PTR(c.details));
    char details[4096];
    r->has_details = loopback_trailer(&c, "grpc-status-details-bin", details, sizeof details);
    loopback_trailer(&c, "grpc-retry-pushback-ms", r->pushback, sizeof r->pushback);
    r->has_headers = c.headers.count > 0;
    loopback_end(&c);
}

static inline void expect_text(const result *r, int choice, int from, int n) {
    ck_assert_uint_eq(r->len[choice], (size_t)n);
    for (int i = 0; i < n; i++) ck_assert_int_eq(r->text[choice][i], fake_letter(from + i, choice));
}

/* The suite of a program: threads of core do not survive a fork, so all is one process. */
static inline int run_in_one_process(Suite *s) {
    log_init(LOG_ERROR, false);
    grpc_init();
    const int failed = check_run_suite(s, CK_NOFORK);
    grpc_shutdown();
    return failed;
}
#endif
