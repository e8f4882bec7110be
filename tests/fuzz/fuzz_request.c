/* Protobuf bytes -> unpacking in a budget -> validation, as a Generate and as a Tokenize call. */
#include "fuzz.h"
#include "server/codec_request.h"

static void generate(const uint8_t *data, size_t size, arena *a) {
    const codec_limits limits = {
        .n_vocab = 1000, .context_length = 512, .max_choices = 8, .chat_takes_tools = true};
    const Inferd__V1__GenerateRequest *m =
        codec_unpack(&inferd__v1__generate_request__descriptor, data, size, a);
    if (m == NULL) return;
    engine_request request = {0};
    generate_options options = {0};
    violations v = {.arena = a};
    arena keep;
    arena_init(&keep, 1u << 20);
    status s = codec_generate(m, &limits, &keep, &request, &options, &v);
    assert(s == OK || s == E_NOMEM);
    assert(v.n >= 0 && v.n <= LIMIT_VIOLATIONS);
    if (s == OK && v.n == 0) {
        assert(request.n_choices >= 1 && request.n_choices <= LIMIT_CHOICES);
        assert(request.n_bias >= 0 && request.n_bias <= LIMIT_LOGIT_BIAS);
        assert(request.n_stop_ids >= 0 && request.n_stop_ids <= LIMIT_STOP_TOKEN_IDS);
        assert(request.temperature >= 0 && request.temperature <= LIMIT_TEMPERATURE_MAX);
        assert(options.n_stops >= 0 && options.n_stops <= LIMIT_STOP_STRINGS);
        for (int i = 0; i < request.n_bias; i++)
            assert(request.bias[i].token >= 0 && request.bias[i].token < limits.n_vocab);
    }
    if (s == OK && m->input_case == INFERD__V1__GENERATE_REQUEST__INPUT_CHAT) {
        chat_request chat;
        s = codec_chat(m->chat, true, a, &chat, &v);
        assert(s == OK || s == E_NOMEM);
    }
    arena_reset(&keep);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = fuzz_copy(data, size);
    const ProtobufCMessageDescriptor *const others[] = {&inferd__v1__tokenize_request__descriptor,
                                                        &inferd__v1__detokenize_request__descriptor,
                                                        &inferd__v1__abort_request__descriptor};
    arena a;
    codec_arena_init(&a, size);
    generate(copy, size, &a);
    assert(a.used_bytes <= a.budget_bytes);
    arena_reset(&a);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        codec_arena_init(&a, size);
        (void)codec_unpack(others[i], copy, size, &a);
        assert(a.used_bytes <= a.budget_bytes);
        arena_reset(&a);
    }
    free(copy);
    return 0;
}
