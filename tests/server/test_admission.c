/* On the way in: the workers for long texts and their queue's limit; error texts that are cut. */
#include <stdio.h>

#include "base/log.h"
#include "base/utf8.h"
#include "server/server.h"
#include "server/worker.h"
#include "tests/check_main.h"
#include "tests/server/fake_engine.h"
#include "tests/server/loopback.h"

#define GENERATE "/inferd.v1.Inference/Generate"
#define TOKENIZE "/inferd.v1.Inference/Tokenize"

static server *srv;
static engine *eng;
static grpc_channel *channel;

/* chat_problem NULL: there is a chat template. */
static void setup(const char *chat_problem) {
    const server_options o = {.listen = "127.0.0.1:0",
                              .rpc_threads = 1, /* it alone would be blocked by a long text */
                              .max_streams = 256,
                              .max_message_bytes = LIMIT_MESSAGE_BYTES_DEFAULT,
                              .slow_reader_s = 3600,
                              .max_choices = 1};
    error err;
    ck_assert_msg(server_open(&o, &srv, &err) == OK, "%s", err.text);
    eng = fake_engine_open(server_on_step, srv, 300);
    served_model m = fake_served_model(eng);
    if (chat_problem) m.chat = NULL;
    m.chat_problem = chat_problem;
    ck_assert_int_eq(server_serve(srv, &m), OK);
    channel = loopback_channel(server_address(srv));
}

static void teardown(void) {
    grpc_channel_destroy(channel);
    server_close(srv);
    fake_engine_close(eng);
}

/* --- the workers' queue --- */

enum { N_WORKERS = 2, N_QUEUED = 64, N_MORE = 5, LONG_BYTES = 2 * WORKER_FROM_BYTES };

static void ask(loopback_call *c, const char *method, size_t n_bytes) {
    char *text = malloc(n_bytes);
    uint8_t *wire = malloc(n_bytes + 64);
    ck_assert(text && wire);
    memset(text, 'x', n_bytes);
    size_t len;
    if (strcmp(method, TOKENIZE) == 0) {
        Inferd__V1__TokenizeRequest m = INFERD__V1__TOKENIZE_REQUEST__INIT;
        m.input_case = INFERD__V1__TOKENIZE_REQUEST__INPUT_TEXT;
        m.text = (ProtobufCBinaryData){n_bytes, (uint8_t *)text};
        len = protobuf_c_message_pack(&m.base, wire);
    } else {
        Inferd__V1__GenerateRequest m = INFERD__V1__GENERATE_REQUEST__INIT;
        Inferd__V1__Stopping stopping = INFERD__V1__STOPPING__INIT;
        m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
        m.text = (ProtobufCBinaryData){n_bytes, (uint8_t *)text};
        m.stopping = &stopping;
        stopping.max_tokens = 1;
        len = protobuf_c_message_pack(&m.base, wire);
    }
    loopback_start(c, channel, method, wire, len, NULL, NULL, 0);
    free(text);
    free(wire);
}

/* Without waiting. */
static bool has_ended(loopback_call *c) {
    const grpc_event ev =
        grpc_completion_queue_next(c->cq, gpr_inf_past(GPR_CLOCK_MONOTONIC), NULL);
    if (ev.type == GRPC_OP_COMPLETE && (intptr_t)ev.tag == TAG_STATUS) c->status_in = true;
    return c->status_in;
}

static int n_ended(loopback_call *calls, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += has_ended(&calls[i]);
    return sum;
}

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static void expect_full(loopback_call *c, bool pushback) {
    char text[256], details[1024];
    ck_assert_int_eq(loopback_status(c), GRPC_STATUS_RESOURCE_EXHAUSTED);
    snprintf(text, sizeof text, "%.*s", (int)GRPC_SLICE_LENGTH(c->details),
             (const char *)GRPC_SLICE_START_PTR(c->details));
    ck_assert_str_eq(text, WORKER_FULL);
    ck_assert(loopback_trailer(c, "grpc-status-details-bin", details, sizeof details));
    ck_assert_uint_eq(c->headers.count, 0); /* trailers only: a stock client's policy repeats it */
    ck_assert(loopback_trailer(c, "grpc-retry-pushback-ms", text, sizeof text));
    if (pushback) ck_assert_int_gt(strtol(text, NULL, 10), 0);
}

/* Both workers are held in a long text and their queue is full: who comes then is refused at once,
 * and the rpc thread goes on with the others. */
START_TEST(a_full_worker_queue_refuses) {
    enum { N = N_WORKERS + N_QUEUED + N_MORE };
    const char *method = _i == 0 ? GENERATE : TOKENIZE;
    static loopback_call calls[N];
    loopback_call other;
    setup(NULL);
    atomic_store(&fake_gate.shut, true);
    for (int i = 0; i < N_WORKERS; i++) ask(&calls[i], method, LONG_BYTES);
    while (atomic_load(&fake_gate.n_inside) < N_WORKERS) nap(); /* so the queue is empty now */
    for (int i = N_WORKERS; i < N; i++) ask(&calls[i], method, LONG_BYTES);
    while (n_ended(calls, N) < N_MORE) {
        ck_assert_int_eq(atomic_load(&fake_gate.n_inside),
                         N_WORKERS); /* else the rpc thread, too */
        nap();
    }
    ask(&other, GENERATE, 5); /* a short one needs no worker */
    void *m;
    while ((m = loopback_read(&other, &inferd__v1__generate_response__descriptor)))
        inferd__v1__generate_response__free_unpacked(m, NULL);
    ck_assert_int_eq(loopback_status(&other), GRPC_STATUS_OK);
    loopback_end(&other);
    ask(&other, TOKENIZE, LONG_BYTES); /* and the other method's long ones are refused, too */
    expect_full(&other, false);
    loopback_end(&other);
    ck_assert_int_eq(atomic_load(&fake_gate.n_inside), N_WORKERS);
    ck_assert_int_eq(n_ended(calls, N), N_MORE);
    for (int i = 0; i < N; i++)
        if (calls[i].status_in) expect_full(&calls[i], _i == 0);
    atomic_store(&fake_gate.shut, false);
    for (int i = 0; i < N; i++) {
        if (calls[i].status_in) {
            loopback_end(&calls[i]);
            continue;
        }
        if (_i == 1) {
            m = loopback_read(&calls[i], &inferd__v1__tokenize_response__descriptor);
            ck_assert_ptr_nonnull(m);
            inferd__v1__tokenize_response__free_unpacked(m, NULL);
        }
        /* Read to its end, and more than the context holds. */
        ck_assert_int_eq(loopback_status(&calls[i]),
                         _i == 0 ? GRPC_STATUS_INVALID_ARGUMENT : GRPC_STATUS_OK);
        loopback_end(&calls[i]);
    }
    teardown();
}
END_TEST

static _Atomic int n_ran;

static void wait_at_gate(void *arg) {
    (void)arg;
    fake_gate_pass(FAKE_HELD_BYTES);
    atomic_fetch_add(&n_ran, 1);
}

START_TEST(the_queue_itself) {
    worker *w;
    ck_assert_int_eq(worker_open(&w), OK);
    atomic_store(&fake_gate.shut, true);
    for (int i = 0; i < N_WORKERS; i++) ck_assert(worker_push(w, wait_at_gate, NULL));
    while (atomic_load(&fake_gate.n_inside) < N_WORKERS) nap();
    for (int i = 0; i < N_QUEUED; i++) ck_assert(worker_push(w, wait_at_gate, NULL));
    for (int i = 0; i < N_MORE; i++) ck_assert(!worker_push(w, wait_at_gate, NULL));
    atomic_store(&fake_gate.shut, false);
    worker_close(w); /* runs what it has taken, and nothing else */
    ck_assert_int_eq(atomic_load(&n_ran), N_WORKERS + N_QUEUED);
}
END_TEST

/* --- texts that do not fit --- */

/* A chat whose refusal says `problem`, which is longer than a status may be. The text and the
 * details, a protobuf with strings, must be readable by a client that checks them. */
static void expect_readable(grpc_status_code code, const char *start) {
    Inferd__V1__GenerateRequest m = INFERD__V1__GENERATE_REQUEST__INIT;
    Inferd__V1__Chat chat = INFERD__V1__CHAT__INIT;
    Inferd__V1__Message one = INFERD__V1__MESSAGE__INIT, *messages = &one;
    uint8_t wire[128];
    char details[4096] = "";
    loopback_call c;
    one.role = (ProtobufCBinaryData){4, (uint8_t *)"user"};
    chat.n_messages = 1;
    chat.messages = &messages;
    m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT;
    m.chat = &chat;
    loopback_start(&c, channel, GENERATE, wire, protobuf_c_message_pack(&m.base, wire), NULL, NULL,
                   0);
    ck_assert_int_eq(loopback_status(&c), code);
    const char *text = (const char *)GRPC_SLICE_START_PTR(c.details);
    const size_t len = GRPC_SLICE_LENGTH(c.details);
    ck_assert_uint_ge(len, 252); /* cut between characters: at most three bytes early */
    ck_assert_uint_le(len, 255);
    ck_assert_int_eq(strncmp(text, start, strlen(start)), 0);
    ck_assert(utf8_valid(text, len));
    ck_assert(loopback_trailer(&c, "grpc-status-details-bin", details, sizeof details));
    /* google.rpc.Status.message is field 2, and the second in the encoding. */
    const char *field = strchr(details, 0x12);
    ck_assert_ptr_nonnull(field);
    ck_assert_uint_eq((unsigned char)field[1], 0x80 | (len & 0x7F));
    ck_assert_int_eq(field[2], 1);
    ck_assert_int_eq(memcmp(field + 3, text, len), 0);
    loopback_end(&c);
}

static void fill(char *out, size_t bytes, int n_before) {
    static const char unit[] = "\xE2\x82\xAC\xC3\xA4\xF0\x9F\xA6\x99";
    size_t n = (size_t)n_before;
    memset(out, 'x', n);
    while (n + sizeof unit <= bytes) n += (size_t)snprintf(out + n, sizeof unit, "%s", unit);
    out[n] = '\0';
}

START_TEST(error_texts_are_cut_between_characters) {
    char text[ERROR_TEXT_MAX];
    fill(text, 400, _i);
    setup(NULL);
    atomic_store(&fake_chat_error, text); /* what a template may say of a request */
    expect_readable(GRPC_STATUS_INVALID_ARGUMENT, "chat: ");
    atomic_store(&fake_chat_error, NULL);
    teardown();
    setup(text); /* what a template is refused for */
    expect_readable(GRPC_STATUS_UNIMPLEMENTED, "chat: ");
    teardown();
}
END_TEST

int main(void) {
    log_init(LOG_ERROR, false);
    TCase *t = tcase_create("admission");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, a_full_worker_queue_refuses, 0, 2);
    tcase_add_test(t, the_queue_itself);
    tcase_add_loop_test(t, error_texts_are_cut_between_characters, 0, 9);
    return check_run("admission", t);
}
