/* Generate over loopback with a fake engine: content of streams, refusals, slow readers, cancels
 * and deadlines at random moments, shutdown under load. Method: after every test the engine holds
 * nothing, no call is open, and each request that was submitted has ended exactly once. */
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

static void setup_with(int step_us, int slow_reader_s) {
    const server_options o = {.listen = "127.0.0.1:0",
                              .rpc_threads = 2,
                              .max_streams = 256,
                              .max_message_bytes = LIMIT_MESSAGE_BYTES_DEFAULT,
                              .slow_reader_s = slow_reader_s,
                              .max_choices = LIMIT_CHOICES};
    error err;
    ck_assert_msg(server_open(&o, &srv, &err) == OK, "%s", err.text);
    eng = fake_engine_open(server_on_step, srv, step_us);
    const served_model m = {.tokenizer = (const tokenizer *)eng, /* never looked into */
                            .chat = (const chat_template *)eng,
                            .engine = eng,
                            .name = "fake",
                            .context_length = FAKE_CONTEXT,
                            .n_vocab = FAKE_VOCAB};
    ck_assert_int_eq(server_serve(srv, &m), OK);
    channel = loopback_channel(server_address(srv));
}

enum { NEVER_S = 3600 }; /* a reader is slow only where the test means it to be */

static void setup(void) {
    setup_with(300, NEVER_S);
}

static void teardown(void) {
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

static ProtobufCBinaryData bytes(const char *s) {
    return (ProtobufCBinaryData){s ? strlen(s) : 0, (uint8_t *)s};
}

static size_t encode(const ask *a, uint8_t *out, size_t capacity) {
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

static void take(result *r, const Inferd__V1__GenerateResponse *m, const ask *a) {
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

static void run(grpc_channel *ch, const ask *a, result *r) {
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

static void expect_text(const result *r, int choice, int from, int n) {
    ck_assert_uint_eq(r->len[choice], (size_t)n);
    for (int i = 0; i < n; i++) ck_assert_int_eq(r->text[choice][i], fake_letter(from + i, choice));
}

/* --- content --- */

START_TEST(a_stream_is_whole) {
    result r;
    for (int n = 1; n <= 60; n += 7) {
        run(channel, &(ask){.max_tokens = (uint32_t)n, .cancel_after = -1, .logprobs = n % 2}, &r);
        ck_assert_int_eq(r.code, GRPC_STATUS_OK);
        ck_assert_int_eq(r.n_tokens, n);
        ck_assert_int_eq(r.n_finished, 1);
        ck_assert_int_eq(r.n_usage, 1);
        ck_assert_int_eq(r.reason, FINISH_MAX_TOKENS);
        expect_text(&r, 0, 0, n);
    }
}
END_TEST

START_TEST(choices_are_separate) {
    result r;
    run(channel, &(ask){.max_tokens = 20, .choices = 8, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.n_finished, 8);
    ck_assert_int_eq(r.n_tokens, 160);
    for (int c = 0; c < 8; c++) expect_text(&r, c, 0, 20);
    run(channel, &(ask){.max_tokens = 20, .choices = 3, .final_only = true, .cancel_after = -1},
        &r);
    ck_assert_int_eq(r.n_messages, 3);
    for (int c = 0; c < 3; c++) expect_text(&r, c, 0, 20);
}
END_TEST

START_TEST(stop_string_ends_a_choice) {
    result r;
    run(channel, &(ask){.max_tokens = 200, .stop = "hij", .cancel_after = -1}, &r);
    ck_assert_int_eq(r.reason, FINISH_STOP_STRING);
    ck_assert_int_eq(r.n_tokens, 10); /* the tokens whose text was cut are sent, too */
    expect_text(&r, 0, 0, 7);
    run(channel, &(ask){.max_tokens = 200, .stop = "hij", .include_stop = true, .cancel_after = -1},
        &r);
    expect_text(&r, 0, 0, 10);
    /* The stop string completes with the last allowed token: it goes before MAX_TOKENS. */
    run(channel, &(ask){.max_tokens = 10, .stop = "hij", .cancel_after = -1}, &r);
    ck_assert_int_eq(r.reason, FINISH_STOP_STRING);
    /* Only the second alphabet counts. */
    run(channel, &(ask){.max_tokens = 200, .stop = "hij", .min_tokens = 20, .cancel_after = -1},
        &r);
    ck_assert_int_eq(r.n_tokens, 37);
    expect_text(&r, 0, 0, 34);
}
END_TEST

START_TEST(end_of_sequence) {
    result r;
    atomic_store(&eng->eos_at, 5);
    run(channel, &(ask){.cancel_after = -1}, &r);
    ck_assert_int_eq(r.reason, FINISH_STOP_TOKEN);
    ck_assert_int_eq(r.n_tokens, 6);
    expect_text(&r, 0, 0, 5);
    run(channel, &(ask){.cancel_after = -1, .include_stop = true}, &r);
    ck_assert_uint_eq(r.len[0], 10);
    ck_assert_int_eq(memcmp(r.text[0] + 5, "<eos>", 5), 0);
    run(channel, &(ask){.cancel_after = -1, .keep_special = true}, &r);
    ck_assert_uint_eq(r.len[0], 10);
    /* Held back as the head of a stop string, and then it was none. */
    run(channel, &(ask){.cancel_after = -1, .stop = "defgh"}, &r);
    expect_text(&r, 0, 0, 5);
}
END_TEST

/* Requests long enough for a worker, several at once, some cancelled while they are there. */
static void *send_long(void *arg) {
    const int i = *(const int *)arg;
    enum { TEXT_BYTES = 300000 };
    Inferd__V1__GenerateRequest m = INFERD__V1__GENERATE_REQUEST__INIT;
    char *text = malloc(TEXT_BYTES);
    uint8_t *wire = malloc(TEXT_BYTES + 64);
    memset(text, 'x', TEXT_BYTES);
    m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
    m.text = (ProtobufCBinaryData){TEXT_BYTES, (uint8_t *)text};
    const size_t len = protobuf_c_message_pack(&m.base, wire);
    for (int round = 0; round < 10; round++) {
        loopback_call c;
        loopback_start(&c, channel, GENERATE, wire, len, NULL, NULL, 0);
        if ((round + i) % 3 == 0) grpc_call_cancel(c.call, NULL);
        ck_assert_ptr_null(loopback_read(&c, &inferd__v1__generate_response__descriptor));
        const grpc_status_code code = loopback_status(&c);
        ck_assert(code == GRPC_STATUS_INVALID_ARGUMENT || (round + i) % 3 == 0);
        loopback_end(&c);
    }
    free(text);
    free(wire);
    return NULL;
}

START_TEST(long_texts_go_by_a_worker) {
    pthread_t t[6];
    int number[6];
    for (int i = 0; i < 6; i++) {
        number[i] = i;
        pthread_create(&t[i], NULL, send_long, &number[i]);
    }
    for (int i = 0; i < 6; i++) pthread_join(t[i], NULL);
    loopback_call c; /* and one that is good, by Tokenize */
    Inferd__V1__TokenizeRequest m = INFERD__V1__TOKENIZE_REQUEST__INIT;
    enum { TEXT_BYTES = 100000 };
    char *text = calloc(1, TEXT_BYTES);
    uint8_t *wire = malloc(TEXT_BYTES + 64);
    m.input_case = INFERD__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    m.text = (ProtobufCBinaryData){TEXT_BYTES, (uint8_t *)text};
    const size_t len = protobuf_c_message_pack(&m.base, wire);
    loopback_start(&c, channel, "/inferd.v1.Inference/Tokenize", wire, len, NULL, NULL, 0);
    Inferd__V1__TokenizeResponse *got =
        loopback_read(&c, &inferd__v1__tokenize_response__descriptor);
    ck_assert_ptr_nonnull(got);
    ck_assert_uint_eq(got->n_token_ids, TEXT_BYTES);
    inferd__v1__tokenize_response__free_unpacked(got, NULL);
    ck_assert_int_eq(loopback_status(&c), GRPC_STATUS_OK);
    loopback_end(&c);
    free(text);
    free(wire);
}
END_TEST

START_TEST(time_limit_and_deadline) {
    result r;
    run(channel, &(ask){.time_limit_ms = 60, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_OK);
    ck_assert_int_eq(r.reason, FINISH_TIME_LIMIT);
    ck_assert_int_eq(r.n_usage, 1);
    run(channel, &(ask){.timeout_ms = 100, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_DEADLINE_EXCEEDED);
    ck_assert_int_eq(r.n_usage, 0);
}
END_TEST

/* --- refusals --- */

START_TEST(refusals_are_trailers_only) {
    static const struct {
        status from;
        grpc_status_code code;
        const char *pushback; /* NULL: any positive number */
    } cases[] = {{E_FULL, GRPC_STATUS_RESOURCE_EXHAUSTED, NULL},
                 {E_TOO_LARGE, GRPC_STATUS_RESOURCE_EXHAUSTED, "-1"},
                 {E_STATE, GRPC_STATUS_UNAVAILABLE, NULL},
                 {E_DEVICE, GRPC_STATUS_UNAVAILABLE, NULL},
                 {E_NOMEM, GRPC_STATUS_INTERNAL, ""}};
    result r;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        atomic_store(&eng->submit_status, cases[i].from);
        run(channel, &(ask){.id = "same", .cancel_after = -1},
            &r); /* the id is free again each time */
        ck_assert_int_eq(r.code, cases[i].code);
        ck_assert(r.has_details && !r.has_headers);
        if (cases[i].pushback)
            ck_assert_str_eq(r.pushback, cases[i].pushback);
        else
            ck_assert_int_gt(strtol(r.pushback, NULL, 10), 0);
    }
    atomic_store(&eng->submit_status, OK);
    server_stop_admission(srv);
    run(channel, &(ask){.cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_UNAVAILABLE);
    ck_assert(r.has_details);
}
END_TEST

START_TEST(a_hopeless_deadline_is_refused_at_once) {
    result r;
    for (int i = 0; i < 40; i++) run(channel, &(ask){.max_tokens = 10, .cancel_after = -1}, &r);
    atomic_store(&eng->waiting, 5000); /* 5,000 x 10 tokens at 1,000 a second: 50 s of queue */
    run(channel, &(ask){.max_tokens = 1, .timeout_ms = 45000, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_RESOURCE_EXHAUSTED);
    ck_assert_int_ge(strtol(r.pushback, NULL, 10), 20000);
    ck_assert_int_le(strtol(r.pushback, NULL, 10), 30000);
    run(channel, &(ask){.max_tokens = 1, .timeout_ms = 600000, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_OK);
    run(channel, &(ask){.max_tokens = 1, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_OK);
}
END_TEST

START_TEST(bad_requests_are_named) {
    result r;
    run(channel, &(ask){.id = "not valid!", .choices = 9, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_INVALID_ARGUMENT);
    ck_assert(r.has_details);
    loopback_call c;
    loopback_start(&c, channel, GENERATE, "\xff\xff\xff", 3, NULL, NULL, 0);
    ck_assert_ptr_null(loopback_read(&c, &inferd__v1__generate_response__descriptor));
    ck_assert_int_eq(loopback_status(&c), GRPC_STATUS_INVALID_ARGUMENT);
    loopback_end(&c);
    loopback_start(&c, channel, "/inferd.v1.Inference/Nothing", "", 0, NULL, NULL, 0);
    ck_assert_int_eq(loopback_status(&c), GRPC_STATUS_UNIMPLEMENTED);
    loopback_end(&c);
}
END_TEST

static void *hold_id(void *arg) {
    run(channel, &(ask){.id = "held", .cancel_after = -1}, arg); /* until it is aborted */
    return NULL;
}

START_TEST(an_id_lives_once) {
    result held, r;
    pthread_t t;
    pthread_create(&t, NULL, hold_id, &held);
    WAIT_UNTIL(atomic_load(&eng->tokens) > 0);
    run(channel, &(ask){.id = "held", .max_tokens = 1, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_ALREADY_EXISTS);
    Inferd__V1__AbortRequest m = INFERD__V1__ABORT_REQUEST__INIT;
    ProtobufCBinaryData ids[] = {bytes("nobody"), bytes("held")};
    m.n_request_ids = 2;
    m.request_ids = ids;
    uint8_t request[64];
    const size_t len = protobuf_c_message_pack(&m.base, request);
    loopback_call c;
    loopback_start(&c, channel, "/inferd.v1.Inference/Abort", request, len, NULL, NULL, 0);
    Inferd__V1__AbortResponse *a = loopback_read(&c, &inferd__v1__abort_response__descriptor);
    ck_assert_uint_eq(a->n_aborted, 1);
    ck_assert_int_eq(memcmp(a->aborted[0].data, "held", 4), 0);
    inferd__v1__abort_response__free_unpacked(a, NULL);
    ck_assert_int_eq(loopback_status(&c), GRPC_STATUS_OK);
    loopback_end(&c);
    pthread_join(t, NULL);
    ck_assert_int_eq(held.code, GRPC_STATUS_OK);
    ck_assert_int_eq(held.reason, FINISH_ABORTED);
    run(channel, &(ask){.id = "held", .max_tokens = 1, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_OK);
}
END_TEST

/* --- trouble --- */

/* And never reads. */
static void start_unread(loopback_call *c, const ask *a) {
    uint8_t request[512];
    const size_t len = encode(a, request, sizeof request);
    loopback_start(c, channel, GENERATE, request, len, NULL, NULL, 0);
}

/* The engine has made a thousand steps more, and not a token. */
static bool tokens_have_stopped(void) {
    const uint64_t tokens = atomic_load(&eng->tokens), steps = atomic_load(&eng->steps);
    WAIT_UNTIL(atomic_load(&eng->steps) >= steps + 1000);
    return tokens > 0 && atomic_load(&eng->tokens) == tokens;
}

static const ask MUCH = {.logprobs = true, .choices = 8};

START_TEST(slow_reader_is_paused) {
    setup_with(100, NEVER_S);
    loopback_call c;
    start_unread(&c, &MUCH);
    WAIT_UNTIL(tokens_have_stopped());
    result r; /* meanwhile another one is served */
    run(channel, &(ask){.max_tokens = 30, .cancel_after = -1}, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_OK);
    const uint64_t paused_at = atomic_load(&eng->tokens);
    while (atomic_load(&eng->tokens) == paused_at) { /* once it reads, it goes on */
        void *m = loopback_read(&c, &inferd__v1__generate_response__descriptor);
        ck_assert_ptr_nonnull(m);
        inferd__v1__generate_response__free_unpacked(m, NULL);
    }
    grpc_call_cancel(c.call, NULL);
    ck_assert_int_eq(loopback_status(&c), GRPC_STATUS_CANCELLED);
    loopback_end(&c);
    teardown();
}
END_TEST

START_TEST(slow_reader_is_cut) {
    setup_with(100, 1);
    loopback_call c;
    start_unread(&c, &MUCH);
    /* Ended while nobody read a byte. */
    WAIT_UNTIL(atomic_load(&eng->n_ended) == 1 && server_n_generating(srv) == 0);
    void *m; /* core gives a client its status after the messages that had arrived before */
    while ((m = loopback_read(&c, &inferd__v1__generate_response__descriptor)))
        inferd__v1__generate_response__free_unpacked(m, NULL);
    ck_assert_int_eq(loopback_status(&c), GRPC_STATUS_RESOURCE_EXHAUSTED);
    ck_assert_uint_ge(GRPC_SLICE_LENGTH(c.details), 13);
    ck_assert_int_eq(memcmp(GRPC_SLICE_START_PTR(c.details), "SLOW_CONSUMER", 13), 0);
    loopback_end(&c);
    teardown();
}
END_TEST

/* With final_only: what nobody takes is no success, and what is gathered has a limit. */
START_TEST(final_only_is_bounded) {
    result r;
    loopback_call c;
    setup_with(1, 1);
    ask a = {.max_tokens = 4000, .choices = 8, .n_top = 20, .logprobs = true, .final_only = true};
    start_unread(&c, &a);
    _Atomic uint64_t *outcomes = server_metrics(srv)->outcomes;
    WAIT_UNTIL(atomic_load(&outcomes[OUTCOME_FINISHED]) + atomic_load(&outcomes[OUTCOME_FAILED]) >
               0);
    ck_assert_uint_eq(atomic_load(&outcomes[OUTCOME_FINISHED]), 0);
    ck_assert_uint_eq(atomic_load(&outcomes[OUTCOME_FAILED]), 1);
    grpc_call_cancel(c.call, NULL);
    loopback_status(&c);
    loopback_end(&c);
    teardown();
    setup_with(1, NEVER_S);
    a.max_tokens = 0; /* the alphabet has no end */
    a.cancel_after = -1;
    run(channel, &a, &r);
    ck_assert_int_eq(r.code, GRPC_STATUS_RESOURCE_EXHAUSTED);
    ck_assert_ptr_nonnull(strstr(r.reason_text, "final_only"));
    ck_assert_int_eq(r.n_messages, 0);
    teardown();
}
END_TEST

/* Detokenize of n times the longest piece. */
static void ask_text(loopback_call *c, size_t n) {
    Inferd__V1__DetokenizeRequest m = INFERD__V1__DETOKENIZE_REQUEST__INIT;
    m.token_ids = calloc(n, sizeof *m.token_ids);
    m.n_token_ids = n;
    for (size_t i = 0; i < n; i++) m.token_ids[i] = FAKE_LONG;
    uint8_t *wire = malloc(2 * n + 16);
    const size_t len = protobuf_c_message_pack(&m.base, wire);
    loopback_start(c, channel, "/inferd.v1.Inference/Detokenize", wire, len, NULL, NULL, 0);
    free(wire);
    free(m.token_ids);
}

static void expect_refused(loopback_call *c, const char *part) {
    char text[256];
    ck_assert_int_eq(loopback_status(c), GRPC_STATUS_RESOURCE_EXHAUSTED);
    snprintf(text, sizeof text, "%.*s", (int)GRPC_SLICE_LENGTH(c->details),
             (const char *)GRPC_SLICE_START_PTR(c->details));
    ck_assert_msg(strstr(text, part) != NULL, "%s", text);
    loopback_end(c);
}

/* A reply has a largest size, all that wait together have one, and a reader has its time. */
START_TEST(replies_are_bounded) {
    enum { PIECE = 64, LARGE = 30 << 20, N = LIMIT_REPLIES_BYTES / LARGE };
    loopback_call c, unread[N];
    setup_with(300, NEVER_S);
    ask_text(&c, LIMIT_REPLY_BYTES / PIECE + 1);
    expect_refused(&c, "33554432 bytes");
    for (int i = 0; i < N; i++) ask_text(&unread[i], LARGE / PIECE);
    for (int i = 0; i < N; i++) loopback_wait(&unread[i], TAG_HEADERS); /* it is under way */
    ask_text(&c, LARGE / PIECE);
    expect_refused(&c, "wait for their clients");
    for (int i = 0; i < N; i++) {
        grpc_call_cancel(unread[i].call, NULL);
        loopback_status(&unread[i]);
        loopback_end(&unread[i]);
    }
    teardown();
    setup_with(300, 1);
    ask_text(&c, LARGE / PIECE); /* and nobody reads */
    loopback_wait(&c, TAG_HEADERS);
    WAIT_UNTIL(server_n_calls(srv) == 0); /* cut; core tells the client once it reads */
    ck_assert_ptr_null(loopback_read(&c, &inferd__v1__detokenize_response__descriptor));
    expect_refused(&c, "SLOW_CONSUMER");
    teardown();
}
END_TEST

typedef struct client {
    pthread_t thread;
    grpc_channel *channel; /* the server may be gone before the thread has begun */
    unsigned seed;
    int n_calls, n_ok, n_other;
    _Atomic bool *stop;
} client;

/* Every third call is cancelled, and but for final_only has no other end; every fourth has a
 * deadline; so some end well and some do not, however slow all are. */
static void *client_main(void *arg) {
    client *cl = arg;
    for (int i = 0; i < cl->n_calls && !(cl->stop && atomic_load(cl->stop)); i++) {
        ask a = {.max_tokens = 1 + (uint32_t)(rand_r(&cl->seed) % 40),
                 .choices = (uint32_t)(rand_r(&cl->seed) % 4),
                 .stop = rand_r(&cl->seed) % 3 == 0 ? "klm" : NULL,
                 .logprobs = rand_r(&cl->seed) % 2,
                 .final_only = rand_r(&cl->seed) % 8 == 0,
                 .cancel_after = rand_r(&cl->seed) % 3 == 0 ? rand_r(&cl->seed) % 6 : -1,
                 .timeout_ms = rand_r(&cl->seed) % 4 == 0 ? 1 + rand_r(&cl->seed) % 20 : 0};
        if (a.cancel_after >= 0 && !a.final_only && !a.stop) a.max_tokens = 0;
        result r;
        run(cl->channel, &a, &r);
        if (r.code == GRPC_STATUS_OK) {
            cl->n_ok++;
            ck_assert_int_eq(r.n_usage, 1);
            ck_assert_int_eq(r.n_finished, a.choices > 0 ? (int)a.choices : 1);
        } else {
            cl->n_other++;
        }
    }
    grpc_channel_destroy(cl->channel);
    return NULL;
}

enum { N_CLIENTS = 8 };

static void run_clients(client clients[N_CLIENTS], int seed, int n_calls, _Atomic bool *stop) {
    for (int i = 0; i < N_CLIENTS; i++) {
        clients[i] = (client){.channel = loopback_channel(server_address(srv)),
                              .seed = (unsigned)(seed * 100 + i),
                              .n_calls = n_calls,
                              .stop = stop};
        pthread_create(&clients[i].thread, NULL, client_main, &clients[i]);
    }
}

START_TEST(cancels_and_deadlines_at_random) {
    client clients[N_CLIENTS];
    int n_ok = 0, n_other = 0;
    run_clients(clients, _i, 60, NULL);
    for (int i = 0; i < N_CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        n_ok += clients[i].n_ok;
        n_other += clients[i].n_other;
    }
    ck_assert_int_gt(n_ok, 50);
    ck_assert_int_gt(n_other, 50);
}
END_TEST

START_TEST(shutdown_under_load) {
    setup();
    client clients[N_CLIENTS];
    _Atomic bool stop = false;
    run_clients(clients, _i, 100000, &stop);
    WAIT_UNTIL(atomic_load(&eng->n_ended) > (uint64_t)_i * 20); /* and others are under way */
    grpc_channel_destroy(channel);
    channel = NULL;
    server_stop_admission(srv);
    engine_stop_all(eng);
    atomic_store(&stop, true);
    server_close(srv);
    for (int i = 0; i < N_CLIENTS; i++) pthread_join(clients[i].thread, NULL);
    pthread_mutex_lock(&eng->lock);
    const int n_live = eng->n_live;
    pthread_mutex_unlock(&eng->lock);
    ck_assert_int_eq(n_live, 0);
    fake_engine_close(eng);
}
END_TEST

int main(void) {
    log_init(LOG_ERROR, false);
    grpc_init(); /* threads of core do not survive a fork: one process */
    Suite *s = suite_create("call");
    TCase *t = tcase_create("streams");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_stream_is_whole);
    tcase_add_test(t, choices_are_separate);
    tcase_add_test(t, stop_string_ends_a_choice);
    tcase_add_test(t, end_of_sequence);
    tcase_add_test(t, time_limit_and_deadline);
    tcase_add_test(t, long_texts_go_by_a_worker);
    tcase_add_test(t, refusals_are_trailers_only);
    tcase_add_test(t, a_hopeless_deadline_is_refused_at_once);
    tcase_add_test(t, bad_requests_are_named);
    tcase_add_test(t, an_id_lives_once);
    tcase_add_loop_test(t, cancels_and_deadlines_at_random, 0, 3);
    suite_add_tcase(s, t);
    TCase *u = tcase_create("ends");
    tcase_add_test(u, slow_reader_is_paused);
    tcase_add_test(u, slow_reader_is_cut);
    tcase_add_test(u, final_only_is_bounded);
    tcase_add_test(u, replies_are_bounded);
    tcase_add_loop_test(u, shutdown_under_load, 0, 10);
    suite_add_tcase(s, u);
    const int failed = check_run_suite(s, CK_NOFORK);
    grpc_shutdown();
    return failed;
}
