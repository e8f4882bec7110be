/* Generate over loopback with a fake engine: content of streams, refusals. What goes wrong while a
 * call lives: test_call_ends.c. */
#include "tests/server/generate_rig.h"

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

int main(void) {
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
    suite_add_tcase(s, t);
    return run_in_one_process(s);
}
