/* Every field of Generate against every bad value: the violation names the field, all of them are
 * found at once, and nothing valid is refused. And protobuf made to hurt: bad UTF-8, NUL, nesting,
 * amplification. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/codec_request.h"
#include "tests/check_main.h"

static const codec_limits LIMITS = {
    .n_vocab = 1000, .context_length = 512, .max_choices = 8, .max_output_tokens = 0};

typedef struct request { /* a message with all its parts in place */
    Inferd__V1__GenerateRequest m;
    Inferd__V1__Sampling sampling;
    Inferd__V1__Stopping stopping;
    Inferd__V1__Output output;
    Inferd__V1__LogitBias bias[2], *bias_at[2];
    ProtobufCBinaryData stop[20];
    uint32_t ids[70];
    Inferd__V1__TokenIds token_ids;
    Inferd__V1__Constraint constraint;
    Inferd__V1__Chat chat;
    Inferd__V1__Message message, *message_at[1];
} request;

static ProtobufCBinaryData bytes(const char *s) {
    return (ProtobufCBinaryData){strlen(s), (uint8_t *)s};
}

static void request_init(request *r) {
    memset(r, 0, sizeof *r);
    inferd__v1__generate_request__init(&r->m);
    inferd__v1__sampling__init(&r->sampling);
    inferd__v1__stopping__init(&r->stopping);
    inferd__v1__output__init(&r->output);
    inferd__v1__token_ids__init(&r->token_ids);
    inferd__v1__constraint__init(&r->constraint);
    inferd__v1__chat__init(&r->chat);
    inferd__v1__message__init(&r->message);
    for (int i = 0; i < 2; i++) {
        inferd__v1__logit_bias__init(&r->bias[i]);
        r->bias[i].token_id = (uint32_t)i;
        r->bias_at[i] = &r->bias[i];
    }
    for (int i = 0; i < 20; i++) r->stop[i] = bytes("stop");
    for (int i = 0; i < 70; i++) r->ids[i] = (uint32_t)i;
    r->message.role = bytes("user");
    r->message_at[0] = &r->message;
    r->m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
    r->m.text = bytes("hello");
    r->m.sampling = &r->sampling;
    r->m.stopping = &r->stopping;
    r->m.output = &r->output;
}

typedef struct checked {
    arena a, keep;
    violations v;
    engine_request out;
    generate_options options;
} checked;

/* Over the wire, as a client would send it. */
static void check(const request *r, checked *c) {
    const size_t len = protobuf_c_message_get_packed_size(&r->m.base);
    uint8_t *wire = malloc(len + 1);
    protobuf_c_message_pack(&r->m.base, wire);
    memset(c, 0, sizeof *c);
    codec_arena_init(&c->a, len);
    arena_init(&c->keep, 1 << 16);
    c->v.arena = &c->a;
    const Inferd__V1__GenerateRequest *m =
        codec_unpack(&inferd__v1__generate_request__descriptor, wire, len, &c->a);
    ck_assert_ptr_nonnull(m);
    ck_assert_int_eq(codec_generate(m, &LIMITS, &c->keep, &c->out, &c->options, &c->v), OK);
    free(wire);
}

static void checked_free(checked *c) {
    arena_reset(&c->a);
    arena_reset(&c->keep);
}

static void expect(const request *r, const char *field, const char *what) {
    checked c;
    check(r, &c);
    bool found = false;
    for (int i = 0; i < c.v.n; i++) found = found || strcmp(c.v.v[i].field, field) == 0;
    ck_assert_msg(found && c.v.n == 1, "%s: %d violations, first %s", what, c.v.n,
                  c.v.n > 0 ? c.v.v[0].field : "none");
    checked_free(&c);
}

static void expect_good(const request *r, const char *what) {
    checked c;
    check(r, &c);
    ck_assert_msg(c.v.n == 0, "%s: %s %s", what, c.v.n ? c.v.v[0].field : "",
                  c.v.n ? c.v.v[0].description : "");
    checked_free(&c);
}

#define BAD(field, ...)                                                                            \
    do {                                                                                           \
        request r;                                                                                 \
        request_init(&r);                                                                          \
        __VA_ARGS__;                                                                               \
        expect(&r, field, #__VA_ARGS__);                                                           \
    } while (0)
#define GOOD(...)                                                                                  \
    do {                                                                                           \
        request r;                                                                                 \
        request_init(&r);                                                                          \
        __VA_ARGS__;                                                                               \
        expect_good(&r, #__VA_ARGS__);                                                             \
    } while (0)

START_TEST(sampling_ranges) {
    static const float NEVER[] = {NAN, INFINITY, -INFINITY, -3e38f, 3e38f};
    for (int i = 0; i < 5; i++) {
        BAD("sampling.temperature", r.sampling.temperature = NEVER[i]);
        BAD("sampling.top_p", r.sampling.top_p = NEVER[i]);
        BAD("sampling.min_p", r.sampling.min_p = NEVER[i]);
        BAD("sampling.repetition_penalty", r.sampling.repetition_penalty = NEVER[i]);
        BAD("sampling.frequency_penalty", r.sampling.frequency_penalty = NEVER[i]);
        BAD("sampling.presence_penalty", r.sampling.presence_penalty = NEVER[i]);
        BAD("sampling.logit_bias[1].bias", r.sampling.logit_bias = r.bias_at,
            r.sampling.n_logit_bias = 2, r.bias[1].bias = NEVER[i]);
    }
    BAD("sampling.temperature", r.sampling.temperature = 0.005f);
    BAD("sampling.temperature", r.sampling.temperature = 2.01f);
    BAD("sampling.temperature", r.sampling.temperature = -0.1f);
    BAD("sampling.top_p", r.sampling.top_p = 1.01f);
    BAD("sampling.min_p", r.sampling.min_p = -0.01f);
    BAD("sampling.repetition_penalty", r.sampling.repetition_penalty = 2.1f);
    BAD("sampling.frequency_penalty", r.sampling.frequency_penalty = -2.1f);
    BAD("sampling.logit_bias[0].bias", r.sampling.logit_bias = r.bias_at,
        r.sampling.n_logit_bias = 1, r.bias[0].bias = 100.5f);
    BAD("sampling.logit_bias[1].token_id", r.sampling.logit_bias = r.bias_at,
        r.sampling.n_logit_bias = 2, r.bias[1].token_id = 1000);
    BAD("sampling.logit_bias[1].token_id", r.sampling.logit_bias = r.bias_at,
        r.sampling.n_logit_bias = 2, r.bias[1].token_id = 0);
    GOOD(r.sampling.temperature = 0.01f, r.sampling.top_p = 1, r.sampling.min_p = 1,
         r.sampling.repetition_penalty = 2, r.sampling.frequency_penalty = -2,
         r.sampling.presence_penalty = 2, r.sampling.top_k = UINT32_MAX);
}
END_TEST

START_TEST(stopping_ranges) {
    BAD("stopping.max_tokens", r.stopping.max_tokens = 513);
    BAD("stopping.max_tokens", r.stopping.max_tokens = UINT32_MAX);
    BAD("stopping.min_tokens", r.stopping.min_tokens = 6, r.stopping.max_tokens = 5);
    BAD("stopping.min_tokens", r.stopping.min_tokens = UINT32_MAX);
    BAD("stopping.stop", r.stopping.stop = r.stop, r.stopping.n_stop = 17);
    BAD("stopping.stop[1]", r.stopping.stop = r.stop, r.stopping.n_stop = 2, r.stop[1] = bytes(""));
    BAD("stopping.stop[0]", r.stopping.stop = r.stop, r.stopping.n_stop = 1,
        r.stop[0] = bytes("\xff"));
    BAD("stopping.stop_token_ids", r.stopping.stop_token_ids = r.ids,
        r.stopping.n_stop_token_ids = 65);
    BAD("stopping.stop_token_ids[2]", r.stopping.stop_token_ids = r.ids,
        r.stopping.n_stop_token_ids = 3, r.ids[2] = 1000);
    BAD("stopping.stop_token_ids[2]", r.stopping.stop_token_ids = r.ids,
        r.stopping.n_stop_token_ids = 3, r.ids[2] = 0);
    char long_stop[258];
    memset(long_stop, 'x', 257);
    long_stop[257] = '\0';
    BAD("stopping.stop[0]", r.stopping.stop = r.stop, r.stopping.n_stop = 1,
        r.stop[0] = bytes(long_stop));
    long_stop[256] = '\0';
    GOOD(r.stopping.stop = r.stop, r.stopping.n_stop = 16, r.stop[0] = bytes(long_stop),
         r.stopping.max_tokens = 512, r.stopping.min_tokens = 512,
         r.stopping.time_limit_ms = UINT32_MAX);
}
END_TEST

START_TEST(the_rest) {
    BAD("input", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT__NOT_SET);
    BAD("text", r.m.text = bytes(""));
    BAD("text", r.m.text = bytes("ab\xc0\xaf"));
    BAD("text", r.m.text = bytes("\xed\xa0\x80"));
    BAD("token_ids.ids", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS,
        r.m.token_ids = &r.token_ids);
    BAD("token_ids.ids[1]", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS,
        r.m.token_ids = &r.token_ids, r.token_ids.ids = r.ids, r.token_ids.n_ids = 2,
        r.ids[1] = 1000);
    BAD("plain", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS,
        r.m.token_ids = &r.token_ids, r.token_ids.ids = r.ids, r.token_ids.n_ids = 2,
        r.m.plain = true);
    BAD("chat.messages", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT,
        r.m.chat = &r.chat);
    BAD("chat.messages[0].content", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT,
        r.m.chat = &r.chat, r.chat.messages = r.message_at, r.chat.n_messages = 1,
        r.message.content = ((ProtobufCBinaryData){3, (uint8_t *)"a\0b"}));
    BAD("chat.messages[0].role", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT,
        r.m.chat = &r.chat, r.chat.messages = r.message_at, r.chat.n_messages = 1,
        r.message.role = bytes(""));
    BAD("chat.tools_json", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT,
        r.m.chat = &r.chat, r.chat.messages = r.message_at, r.chat.n_messages = 1,
        r.chat.tools_json = bytes("[]"));
    BAD("no_bos", r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT, r.m.chat = &r.chat,
        r.chat.messages = r.message_at, r.chat.n_messages = 1, r.m.no_bos = true);
    BAD("priority", r.m.priority = 101);
    BAD("priority", r.m.priority = -101);
    BAD("choices", r.m.choices = 9);
    BAD("request_id", r.m.request_id = bytes("with space"));
    BAD("model", r.m.model = bytes("\xff"));
    char salt[66];
    memset(salt, 's', 65);
    salt[65] = '\0';
    BAD("cache_salt", r.m.cache_salt = bytes(salt));
    BAD("output.top_logprobs", r.output.top_logprobs = 21, r.output.logprobs = true);
    BAD("output.top_logprobs", r.output.top_logprobs = 1);
    BAD("constraint", r.m.constraint = &r.constraint);
    GOOD(r.m.priority = -100, r.m.choices = 8, r.m.cache_salt = bytes("salt"), r.m.plain = true,
         r.m.no_bos = true, r.m.request_id = bytes("aZ0._:-"));
}
END_TEST

START_TEST(all_violations_at_once) {
    request r;
    checked c;
    request_init(&r);
    r.m.text = bytes("");
    r.m.priority = 1000;
    r.sampling.temperature = NAN;
    r.stopping.max_tokens = 9999;
    r.output.top_logprobs = 99;
    check(&r, &c);
    ck_assert_int_eq(c.v.n, 5);
    checked_free(&c);
    /* Very many: the list is cut, and says so. */
    request_init(&r);
    r.m.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    r.m.token_ids = &r.token_ids;
    r.token_ids.ids = r.ids;
    r.token_ids.n_ids = 70;
    for (int i = 0; i < 70; i++) r.ids[i] = 5000;
    check(&r, &c);
    ck_assert_int_eq(c.v.n, LIMIT_VIOLATIONS);
    ck_assert_int_eq(c.v.n_more, 70 - LIMIT_VIOLATIONS);
    pb_writer w;
    pb_writer_init(&w);
    refuse_details(&(refusal){.kind = REFUSE_INVALID, .bad = &c.v}, &w);
    ck_assert(!w.failed && w.len < 6000); /* base64 of it fits into 8 KiB of metadata */
    pb_writer_deinit(&w);
    checked_free(&c);
}
END_TEST

START_TEST(nul_is_text) {
    request r;
    checked c;
    request_init(&r);
    r.m.text = (ProtobufCBinaryData){5, (uint8_t *)"ab\0cd"};
    r.stopping.stop = r.stop;
    r.stopping.n_stop = 1;
    r.stop[0] = (ProtobufCBinaryData){3, (uint8_t *)"x\0y"};
    check(&r, &c);
    ck_assert_int_eq(c.v.n, 0);
    ck_assert_uint_eq(c.options.stops[0].len, 3);
    ck_assert_uint_ne(c.out.seed, 0); /* drawn */
    checked_free(&c);
}
END_TEST

START_TEST(wire_attacks_are_bounded) {
    enum { BYTES = 1 << 20 };
    uint8_t *wire = malloc(BYTES);
    arena a;
    /* Empty submessages: sampling { logit_bias {} logit_bias {} ... } costs 40 times its bytes. */
    const size_t body = BYTES - 8;
    wire[0] = 6 << 3 | 2;
    size_t n = 1;
    for (size_t v = body / 2 * 2; v > 0; v >>= 7)
        wire[n++] = (uint8_t)((v & 127) | (v > 127 ? 128 : 0));
    for (size_t i = 0; i < body / 2; i++) {
        wire[n++] = 9 << 3 | 2;
        wire[n++] = 0;
    }
    codec_arena_init(&a, n);
    ck_assert_ptr_null(codec_unpack(&inferd__v1__generate_request__descriptor, wire, n, &a));
    ck_assert_uint_le(a.used_bytes, n * LIMIT_ARENA_FACTOR + LIMIT_ARENA_SLACK_BYTES);
    arena_reset(&a);
    /* Nesting: every byte opens a submessage; no type of ours contains itself. */
    memset(wire, 5 << 3 | 2, BYTES);
    codec_arena_init(&a, 10000);
    (void)codec_unpack(&inferd__v1__generate_request__descriptor, wire, 10000, &a);
    arena_reset(&a);
    free(wire);
}
END_TEST

START_TEST(random_bytes_do_no_harm) {
    srand((unsigned)_i);
    uint8_t *wire = malloc(256);
    for (int round = 0; round < 50; round++) {
        const size_t len = (size_t)(rand() % 256);
        for (size_t i = 0; i < len; i++)
            wire[i] = (uint8_t)(rand() % 4 ? (rand() % 16) << 3 | 2 : rand() % 256);
        checked c = {.v = {.n = 0}};
        codec_arena_init(&c.a, len);
        arena_init(&c.keep, 1 << 16);
        c.v.arena = &c.a;
        const Inferd__V1__GenerateRequest *m =
            codec_unpack(&inferd__v1__generate_request__descriptor, wire, len, &c.a);
        if (m) (void)!codec_generate(m, &LIMITS, &c.keep, &c.out, &c.options, &c.v);
        checked_free(&c);
    }
    free(wire);
}
END_TEST

int main(void) {
    Suite *s = suite_create("codec");
    TCase *t = tcase_create("all");
    tcase_add_test(t, sampling_ranges);
    tcase_add_test(t, stopping_ranges);
    tcase_add_test(t, the_rest);
    tcase_add_test(t, all_violations_at_once);
    tcase_add_test(t, nul_is_text);
    tcase_add_test(t, wire_attacks_are_bounded);
    tcase_add_loop_test(t, random_bytes_do_no_harm, 0, 200);
    suite_add_tcase(s, t);
    return check_run_suite(s, CK_NOFORK);
}
