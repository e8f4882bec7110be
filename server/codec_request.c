#include "server/codec_request.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/limits.h"
#include "base/utf8.h"

static void *arena_take(void *a, size_t bytes) {
    return arena_alloc(a, bytes);
}
static void arena_give(void *a, void *p) {
    (void)a, (void)p; /* all at once: arena_reset */
}

void codec_arena_init(arena *a, size_t wire_bytes) {
    arena_init(a, wire_bytes * LIMIT_ARENA_FACTOR + LIMIT_ARENA_SLACK_BYTES);
}

void *codec_unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t len, arena *a) {
    ProtobufCAllocator allocator = {arena_take, arena_give, a};
    return protobuf_c_message_unpack(d, &allocator, len, data);
}

void codec_check_utf8(const ProtobufCBinaryData *s, const char *field, violations *v) {
    if (!utf8_valid((const char *)s->data, s->len)) violate(v, "must be valid UTF-8", "%s", field);
}

bool codec_id_valid(const char *s, size_t len) {
    if (len < 1 || len > LIMIT_REQUEST_ID_BYTES) return false;
    for (size_t i = 0; i < len; i++) {
        const char c = s[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '.' || c == '_' || c == ':' || c == '-'))
            return false;
    }
    return true;
}

/* Comparisons are false for NaN, so a range test written as "not inside" refuses it too. */
static void check_range(float x, float low, float high, const char *field, violations *v) {
    if (!(x >= low && x <= high)) {
        char text[64];
        snprintf(text, sizeof text, "must be %g..%g", (double)low, (double)high);
        violate(v, text, "%s", field);
    }
}

/* Marks id; false if it was marked before. bits: [n_vocab] in bytes of 8. */
static bool mark_once(uint8_t *bits, uint32_t id) {
    const uint8_t bit = (uint8_t)(1u << (id & 7));
    const bool fresh = (bits[id >> 3] & bit) == 0;
    bits[id >> 3] |= bit;
    return fresh;
}

static status check_bias(const Inferd__V1__Sampling *m, const codec_limits *l, arena *keep,
                         engine_request *out, violations *v) {
    if (m->n_logit_bias == 0) return OK;
    if (m->n_logit_bias > LIMIT_LOGIT_BIAS) {
        violate(v, "at most 1024 entries", "sampling.logit_bias");
        return OK;
    }
    token_bias *bias = arena_calloc(keep, m->n_logit_bias, sizeof *bias);
    uint8_t *seen = arena_calloc(v->arena, ((size_t)l->n_vocab + 7) / 8, 1);
    if (!bias || !seen) return E_NOMEM;
    for (size_t i = 0; i < m->n_logit_bias; i++) {
        const Inferd__V1__LogitBias *b = m->logit_bias[i];
        if (b->token_id >= (uint32_t)l->n_vocab)
            violate(v, "must be below the vocabulary size", "sampling.logit_bias[%zu].token_id", i);
        else if (!mark_once(seen, b->token_id))
            violate(v, "is repeated", "sampling.logit_bias[%zu].token_id", i);
        if (!(fabsf(b->bias) <= LIMIT_LOGIT_BIAS_VALUE))
            violate(v, "must be -100..100", "sampling.logit_bias[%zu].bias", i);
        bias[i] = (token_bias){(int32_t)(b->token_id & INT32_MAX), b->bias};
    }
    out->bias = bias;
    out->n_bias = (int)m->n_logit_bias;
    return OK;
}

static status check_sampling(const Inferd__V1__Sampling *m, const codec_limits *l, arena *keep,
                             engine_request *out, violations *v) {
    if (!m) return OK;
    if (!(m->temperature == 0.0f ||
          (m->temperature >= LIMIT_TEMPERATURE_MIN && m->temperature <= LIMIT_TEMPERATURE_MAX)))
        violate(v, "must be 0 or 0.01..2", "sampling.temperature");
    check_range(m->top_p, 0, 1, "sampling.top_p", v);
    check_range(m->min_p, 0, 1, "sampling.min_p", v);
    check_range(m->repetition_penalty, 0, LIMIT_PENALTY, "sampling.repetition_penalty", v);
    check_range(m->frequency_penalty, -LIMIT_PENALTY, LIMIT_PENALTY, "sampling.frequency_penalty",
                v);
    check_range(m->presence_penalty, -LIMIT_PENALTY, LIMIT_PENALTY, "sampling.presence_penalty", v);
    out->temperature = m->temperature;
    out->top_k = m->top_k > (uint32_t)l->n_vocab ? 0 : (int)m->top_k; /* beyond: off */
    out->top_p = m->top_p;
    out->min_p = m->min_p;
    /* Below this a penalised logit overflows to infinity; at it, it already outweighs all others.
     */
    out->repetition_penalty = m->repetition_penalty > 0 && m->repetition_penalty < 1e-30f
                                  ? 1e-30f
                                  : m->repetition_penalty;
    out->frequency_penalty = m->frequency_penalty;
    out->presence_penalty = m->presence_penalty;
    out->seed = m->seed;
    return check_bias(m, l, keep, out, v);
}

static status check_stop_ids(const Inferd__V1__Stopping *m, const codec_limits *l, arena *keep,
                             engine_request *out, violations *v) {
    if (m->n_stop_token_ids == 0) return OK;
    if (m->n_stop_token_ids > LIMIT_STOP_TOKEN_IDS) {
        violate(v, "at most 64 ids", "stopping.stop_token_ids");
        return OK;
    }
    int32_t *ids = arena_calloc(keep, m->n_stop_token_ids, sizeof *ids);
    if (!ids) return E_NOMEM;
    for (size_t i = 0; i < m->n_stop_token_ids; i++) {
        const uint32_t id = m->stop_token_ids[i];
        if (id >= (uint32_t)l->n_vocab)
            violate(v, "must be below the vocabulary size", "stopping.stop_token_ids[%zu]", i);
        for (size_t j = 0; j < i; j++)
            if (m->stop_token_ids[j] == id) {
                violate(v, "is repeated", "stopping.stop_token_ids[%zu]", i);
                break;
            }
        ids[i] = (int32_t)(id & INT32_MAX);
    }
    out->stop_ids = ids;
    out->n_stop_ids = (int)m->n_stop_token_ids;
    return OK;
}

static void check_stop_strings(const Inferd__V1__Stopping *m, generate_options *o, violations *v) {
    if (m->n_stop > LIMIT_STOP_STRINGS) {
        violate(v, "at most 16 strings", "stopping.stop");
        return;
    }
    for (size_t i = 0; i < m->n_stop; i++) {
        const ProtobufCBinaryData *s = &m->stop[i];
        if (s->len < 1 || s->len > LIMIT_STOP_STRING_BYTES)
            violate(v, "must have 1..256 bytes", "stopping.stop[%zu]", i);
        else if (!utf8_valid((const char *)s->data, s->len))
            violate(v, "must be valid UTF-8", "stopping.stop[%zu]", i);
        o->stops[i] = (stop_string){(const char *)s->data, s->len};
    }
    o->n_stops = (int)m->n_stop;
}

static status check_stopping(const Inferd__V1__Stopping *m, const codec_limits *l, arena *keep,
                             engine_request *out, generate_options *o, violations *v) {
    if (!m) return OK;
    const int limit = l->max_output_tokens > 0 ? l->max_output_tokens : l->context_length;
    if (m->max_tokens > (uint32_t)limit) {
        char text[64];
        snprintf(text, sizeof text, "must be 0..%d", limit);
        violate(v, text, "stopping.max_tokens");
    } else {
        out->max_tokens = (int)m->max_tokens;
    }
    if (m->min_tokens > (uint32_t)limit || (m->max_tokens > 0 && m->min_tokens > m->max_tokens))
        violate(v, "must not be above max_tokens", "stopping.min_tokens");
    else
        out->min_tokens = (int)m->min_tokens;
    check_stop_strings(m, o, v);
    out->ignore_eos = m->ignore_eos;
    o->include_stop = m->include_stop;
    o->time_limit_ms = m->time_limit_ms;
    return check_stop_ids(m, l, keep, out, v);
}

static void check_output(const Inferd__V1__Output *m, engine_request *out, generate_options *o,
                         violations *v) {
    if (!m) return;
    if (m->top_logprobs > LIMIT_TOP_LOGPROBS)
        violate(v, "must be 0..20", "output.top_logprobs");
    else if (m->top_logprobs > 0 && !m->logprobs && !m->prompt_logprobs)
        violate(v, "takes effect only with logprobs or prompt_logprobs", "output.top_logprobs");
    else
        out->n_top = (int)m->top_logprobs;
    out->logprobs = m->logprobs;
    out->prompt_logprobs = m->prompt_logprobs;
    o->keep_special = m->keep_special;
    o->final_only = m->final_only;
}

static void check_constraint(const Inferd__V1__Constraint *m, generate_options *o, violations *v) {
    if (!m) return;
    switch (m->kind_case) {
    case INFERD__V1__CONSTRAINT__KIND_JSON_SCHEMA:
        codec_check_utf8(&m->json_schema, "constraint.json_schema", v);
        o->constraint = "constraint.json_schema";
        break;
    case INFERD__V1__CONSTRAINT__KIND_REGEX:
        codec_check_utf8(&m->regex, "constraint.regex", v);
        o->constraint = "constraint.regex";
        break;
    case INFERD__V1__CONSTRAINT__KIND_GRAMMAR:
        codec_check_utf8(&m->grammar, "constraint.grammar", v);
        o->constraint = "constraint.grammar";
        break;
    case INFERD__V1__CONSTRAINT__KIND_CHOICE:
        for (size_t i = 0; i < m->choice->n_options; i++) {
            char field[64];
            snprintf(field, sizeof field, "constraint.choice.options[%zu]", i);
            codec_check_utf8(&m->choice->options[i], field, v);
        }
        if (m->choice->n_options == 0) violate(v, "must not be empty", "constraint.choice.options");
        o->constraint = "constraint.choice";
        break;
    case INFERD__V1__CONSTRAINT__KIND_JSON_OBJECT:
        o->constraint = "constraint.json_object";
        break;
    default:
        violate(v, "needs a kind", "constraint");
        break;
    }
}

static void check_token_ids(const Inferd__V1__TokenIds *m, const codec_limits *l, violations *v) {
    if (m->n_ids == 0) violate(v, "must not be empty", "token_ids.ids");
    for (size_t i = 0; i < m->n_ids; i++)
        if (m->ids[i] >= (uint32_t)l->n_vocab)
            violate(v, "must be below the vocabulary size", "token_ids.ids[%zu]", i);
}

static status check_input(const Inferd__V1__GenerateRequest *m, const codec_limits *l,
                          violations *v) {
    status s = OK;
    switch (m->input_case) {
    case INFERD__V1__GENERATE_REQUEST__INPUT_TEXT:
        if (m->text.len == 0) violate(v, "must not be empty", "text");
        codec_check_utf8(&m->text, "text", v);
        break;
    case INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS:
        check_token_ids(m->token_ids, l, v);
        break;
    case INFERD__V1__GENERATE_REQUEST__INPUT_CHAT: {
        chat_request unused;
        s = codec_chat(m->chat, l->chat_takes_tools, v->arena, &unused, v);
        break;
    }
    default:
        violate(v, "one of text, token_ids and chat is needed", "input");
        break;
    }
    const bool text = m->input_case == INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
    if (m->plain && !text) violate(v, "takes effect only with text", "plain");
    if (m->no_bos && !text) violate(v, "takes effect only with text", "no_bos");
    return s;
}

status codec_generate(const Inferd__V1__GenerateRequest *m, const codec_limits *l, arena *keep,
                      engine_request *out, generate_options *o, violations *v) {
    *o = (generate_options){.model = (const char *)m->model.data, .model_len = m->model.len};
    if (m->request_id.len > 0 &&
        !codec_id_valid((const char *)m->request_id.data, m->request_id.len))
        violate(v, "must match [A-Za-z0-9._:-]{1,128}", "request_id");
    codec_check_utf8(&m->model, "model", v);
    if (m->priority < -LIMIT_PRIORITY || m->priority > LIMIT_PRIORITY)
        violate(v, "must be -100..100", "priority");
    if (m->cache_salt.len > LIMIT_CACHE_SALT_BYTES)
        violate(v, "at most 64 bytes", "cache_salt");
    else if (m->cache_salt.len > 0)
        memcpy(out->cache_salt, m->cache_salt.data, m->cache_salt.len);
    codec_check_utf8(&m->cache_salt, "cache_salt", v);
    out->cache_salt_bytes =
        m->cache_salt.len <= LIMIT_CACHE_SALT_BYTES ? (int)m->cache_salt.len : 0;
    if (m->choices > (uint32_t)l->max_choices) {
        char text[48];
        snprintf(text, sizeof text, "must be 0..%d", l->max_choices);
        violate(v, text, "choices");
    }
    out->n_choices = m->choices == 0 || m->choices > LIMIT_CHOICES ? 1 : (int)m->choices;
    out->priority = m->priority;
    status s = check_input(m, l, v);
    if (s == OK) s = check_sampling(m->sampling, l, keep, out, v);
    if (s == OK) s = check_stopping(m->stopping, l, keep, out, o, v);
    if (s != OK) return s;
    check_output(m->output, out, o, v);
    check_constraint(m->constraint, o, v);
    while (out->seed == 0) random_bytes(&out->seed, sizeof out->seed);
    return OK;
}

static void check_chat_text(const ProtobufCBinaryData *s, const char *name, size_t i,
                            violations *v) {
    if (!utf8_valid((const char *)s->data, s->len))
        violate(v, "must be valid UTF-8", "chat.messages[%zu].%s", i, name);
    else if (s->len > 0 && memchr(s->data, 0, s->len))
        violate(v, "must not contain NUL", "chat.messages[%zu].%s", i, name);
}

static const char *text_or_empty(const ProtobufCBinaryData *s) {
    return s->len > 0 ? (const char *)s->data : "";
}

status codec_chat(const Inferd__V1__Chat *m, bool takes_tools, arena *a, chat_request *out,
                  violations *v) {
    *out = (chat_request){.add_generation_prompt = !m->no_generation_prompt};
    if (m->tools_json.len > 0) {
        codec_check_utf8(&m->tools_json, "chat.tools_json", v);
        if (!takes_tools)
            violate(v, "the model's chat template has no use for tools", "chat.tools_json");
        out->tools_json = (const char *)m->tools_json.data;
        out->tools_json_len = m->tools_json.len;
    }
    if (m->n_messages == 0 || m->n_messages > LIMIT_CHAT_MESSAGES) {
        violate(v, "1..4096 messages are needed", "chat.messages");
        return OK;
    }
    chat_message *messages = arena_calloc(a, m->n_messages, sizeof *messages);
    if (!messages) return E_NOMEM;
    for (size_t i = 0; i < m->n_messages; i++) {
        const Inferd__V1__Message *x = m->messages[i];
        check_chat_text(&x->role, "role", i, v);
        check_chat_text(&x->content, "content", i, v);
        check_chat_text(&x->name, "name", i, v);
        if (x->role.len == 0) violate(v, "must not be empty", "chat.messages[%zu].role", i);
        messages[i] = (chat_message){.role = text_or_empty(&x->role),
                                     .content = text_or_empty(&x->content),
                                     .name = text_or_empty(&x->name),
                                     .role_len = x->role.len,
                                     .content_len = x->content.len,
                                     .name_len = x->name.len};
    }
    out->messages = messages;
    out->n_messages = (int)m->n_messages;
    return OK;
}
