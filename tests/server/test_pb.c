/* The hand-written protobuf against protobuf-c, and hostile bytes against the reader. */
#include <stdlib.h>
#include <string.h>

#include "inferd/v1/inference.pb-c.h"
#include "server/codec_response.h"
#include "server/reflection.h"
#include "tests/check_main.h"

START_TEST(response_reads_back) {
    out_event token = {.kind = OUT_TOKEN, .token = 300, .logprob = -0.5f, .rank = 2, .n_top = 2};
    token.top[0] = (out_top){7, -0.25f};
    token.top[1] = (out_top){300, -0.5f};
    pb_writer logprobs;
    pb_writer_init(&logprobs);
    codec_put_logprob(&logprobs, &token);
    const int32_t prompt[] = {1, 2}, ids[] = {300, 0, 49151};
    const out_prompt_row rows[] = {{0, 0, 0}, {3, -1.5f, 1}};
    const out_top tops[] = {{0, 0}, {5, -1.0f}};
    const response_prompt p = {"req-1", 2, 1, 99, prompt, rows, tops, 2, 1};
    const response_usage u = {2, 1, 3, 4, 0.5, 1.5, 2.5, 3.5};
    char text[300];
    memset(text, 'x', sizeof text);
    text[5] = '\0'; /* NUL is text like any other */
    const response r = {.prompt = &p,
                        .index = 1,
                        .text = text,
                        .text_len = sizeof text,
                        .ids = ids,
                        .n_ids = 3,
                        .logprobs = logprobs.data,
                        .logprobs_len = logprobs.len,
                        .reason = FINISH_STOP_STRING,
                        .stop = "end",
                        .stop_len = 3,
                        .usage = &u};
    pb_writer w;
    pb_writer_init(&w);
    ck_assert(codec_response_write(&r, &w));
    Inferd__V1__GenerateResponse *m = inferd__v1__generate_response__unpack(NULL, w.len, w.data);
    ck_assert_ptr_nonnull(m);
    ck_assert_uint_eq(m->request_id.len, 5);
    ck_assert_uint_eq(m->prompt->tokens, 2);
    ck_assert_uint_eq(m->prompt->seed, 99);
    ck_assert_uint_eq(m->prompt->n_logprobs, 2);
    ck_assert_uint_eq(m->prompt->logprobs[1]->rank, 3);
    ck_assert_uint_eq(m->prompt->logprobs[1]->top[0]->token_id, 5);
    ck_assert_uint_eq(m->text.len, sizeof text);
    ck_assert_int_eq(memcmp(m->text.data, text, sizeof text), 0);
    ck_assert_uint_eq(m->n_token_ids, 3);
    ck_assert_uint_eq(m->token_ids[2], 49151);
    ck_assert_uint_eq(m->n_logprobs, 1);
    ck_assert_uint_eq(m->logprobs[0]->n_top, 2);
    ck_assert(m->logprobs[0]->top[1]->logprob == -0.5f);
    ck_assert_int_eq(m->finish->reason, INFERD__V1__FINISH_REASON__FINISH_REASON_STOP_STRING);
    ck_assert_uint_eq(m->usage->preemptions, 4);
    ck_assert_double_eq(m->usage->total_ms, 3.5);
    /* Nothing unknown, and byte for byte what protobuf-c writes. */
    ck_assert_uint_eq(m->base.n_unknown_fields, 0);
    ck_assert_uint_eq(protobuf_c_message_get_packed_size(&m->base), w.len);
    inferd__v1__generate_response__free_unpacked(m, NULL);
    pb_writer_deinit(&w);
    pb_writer_deinit(&logprobs);
}
END_TEST

START_TEST(fixed_buffer_fails_without_overrun) {
    size_t full = 64;
    for (size_t capacity = 80; capacity-- > 0;) {
        uint8_t *buffer = malloc(capacity + 1);
        pb_writer w;
        pb_writer_init_fixed(&w, buffer, capacity);
        const size_t m = pb_begin(&w, 1);
        for (int i = 1; i < 10; i++) pb_put_uint(&w, i, (uint64_t)i << 30);
        pb_end(&w, m);
        ck_assert(w.len <= capacity);
        if (capacity == 79) full = w.len; /* roomy: this is what it takes */
        ck_assert_int_eq(w.failed, capacity < full);
        free(buffer);
    }
}
END_TEST

START_TEST(reader_survives_any_bytes) {
    srand((unsigned)_i);
    uint8_t bytes[64];
    const size_t len = (size_t)(rand() % 64);
    for (size_t i = 0; i < len; i++) bytes[i] = (uint8_t)(rand() & (rand() & 1 ? 255 : 31));
    uint8_t *exact = malloc(len + 1); /* ASan sees a read past the end */
    memcpy(exact, bytes, len);
    pb_reader r;
    pb_field f;
    pb_reader_init(&r, exact, len);
    int n = 0;
    while (pb_next(&r, &f) && n < 100) n++;
    ck_assert_int_lt(n, 65);
    pb_writer w;
    pb_writer_init(&w);
    (void)reflection_answer(exact, len, &w);
    pb_writer_deinit(&w);
    free(exact);
}
END_TEST

static bool answer_contains(int field, const char *ask, const char *want) {
    pb_writer q, a;
    pb_writer_init(&q);
    pb_writer_init(&a);
    pb_put_bytes_always(&q, field, ask, strlen(ask));
    ck_assert(reflection_answer(q.data, q.len, &a));
    bool found = false;
    for (size_t i = 0; i + strlen(want) <= a.len; i++)
        found = found || memcmp(a.data + i, want, strlen(want)) == 0;
    pb_writer_deinit(&q);
    pb_writer_deinit(&a);
    return found;
}

START_TEST(reflection_finds_symbols) {
    ck_assert(answer_contains(7, "", "inferd.v1.Inference"));
    ck_assert(answer_contains(7, "", "grpc.reflection.v1alpha.ServerReflection"));
    ck_assert(answer_contains(4, "inferd.v1.Inference.Generate", "inferd/v1/inference.proto"));
    ck_assert(answer_contains(4, "inferd.v1.GenerateRequest.text", "inferd/v1/inference.proto"));
    ck_assert(answer_contains(4, "inferd.v1.FinishReason", "inferd/v1/inference.proto"));
    ck_assert(answer_contains(4, "google.rpc.BadRequest.FieldViolation", "error_details.proto"));
    ck_assert(answer_contains(3, "grpc/health/v1/health.proto", "HealthCheckRequest"));
    ck_assert(answer_contains(4, "inferd.v1.Inference.Nothing", "not found"));
    ck_assert(answer_contains(4, "inferd.v1", "not found"));
    ck_assert(answer_contains(3, "", "not found"));
}
END_TEST

int main(void) {
    Suite *s = suite_create("pb");
    TCase *t = tcase_create("all");
    tcase_add_test(t, response_reads_back);
    tcase_add_test(t, fixed_buffer_fails_without_overrun);
    tcase_add_loop_test(t, reader_survives_any_bytes, 0, 2000);
    tcase_add_test(t, reflection_finds_symbols);
    suite_add_tcase(s, t);
    return check_run_suite(s, CK_NOFORK);
}
