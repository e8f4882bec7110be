/* Calls in trouble, over loopback with a fake engine: slow readers, bounded answers, cancels and
 * deadlines at random moments, shutdown under load. Method: after every test the engine holds
 * nothing, no call is open, and each request that was submitted has ended exactly once. */
#include "tests/server/generate_rig.h"

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
    Suite *s = suite_create("call_ends");
    TCase *t = tcase_create("random");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, cancels_and_deadlines_at_random, 0, 3);
    suite_add_tcase(s, t);
    TCase *u = tcase_create("ends");
    tcase_add_test(u, slow_reader_is_paused);
    tcase_add_test(u, slow_reader_is_cut);
    tcase_add_test(u, final_only_is_bounded);
    tcase_add_test(u, replies_are_bounded);
    tcase_add_loop_test(u, shutdown_under_load, 0, 10);
    suite_add_tcase(s, u);
    return run_in_one_process(s);
}
