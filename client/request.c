#include "client/request.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int out_of_memory(void) {
    cli_say("out of memory");
    return CLI_FAILED;
}

ProtobufCBinaryData request_text(const char *s) {
    return (ProtobufCBinaryData){.len = s ? strlen(s) : 0, .data = (uint8_t *)(void *)s};
}

static int arena_file(arena *a, const char *path, ProtobufCBinaryData *out) {
    size_t bytes;
    char *text = cli_read_file(path, &bytes);
    if (!text) return CLI_USAGE;
    char *copy = arena_strndup(a, text, bytes);
    free(text);
    if (!copy) return out_of_memory();
    *out = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)copy};
    return -1;
}

int request_parse_ids(const cli *c, const char *text, arena *a, uint32_t **ids, size_t *n) {
    const size_t bytes = strlen(text);
    uint32_t *out = arena_calloc(a, bytes / 2 + 1, sizeof *out);
    if (!out) return out_of_memory();
    size_t count = 0;
    for (const char *p = text; *p;) {
        char *end;
        if (strchr(", \t\r\n[]", *p)) {
            p++;
            continue;
        }
        errno = 0;
        const unsigned long long v = strtoull(p, &end, 10);
        if (*p < '0' || *p > '9' || errno || v > UINT32_MAX)
            return cli_usage_error(c, "token ids are whole numbers separated by commas");
        out[count++] = (uint32_t)v;
        p = end;
    }
    *ids = out;
    *n = count;
    return -1;
}

Inferd__V1__Message *request_message(arena *a, const char *role, const char *content,
                                     size_t content_bytes) {
    Inferd__V1__Message *m = arena_alloc(a, sizeof *m);
    if (!m) return NULL;
    inferd__v1__message__init(m);
    m->role = request_text(role);
    m->content = (ProtobufCBinaryData){.len = content_bytes, .data = (uint8_t *)(void *)content};
    return m;
}

/* ------------------------------------------------------------------ chat */

/* [{"role": ..., "content": ..., "name": ...}, ...] */
static int messages_from_file(const cli *c, const char *path, arena *a, Inferd__V1__Message **out,
                              size_t max, size_t *n) {
    ProtobufCBinaryData text;
    int code = arena_file(a, path, &text);
    if (code >= 0) return code;
    json_error_t err;
    json_t *list = json_loadb((const char *)text.data, text.len, JSON_ALLOW_NUL, &err);
    if (!json_is_array(list)) {
        json_decref(list);
        return cli_usage_error(c, "%s: a JSON array of {\"role\", \"content\"} is expected", path);
    }
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        json_t *role = json_object_get(item, "role"), *content = json_object_get(item, "content"),
               *name = json_object_get(item, "name");
        if (!json_is_string(role) || !json_is_string(content) || *n == max) {
            code = cli_usage_error(c, "%s: entry %zu is no {\"role\", \"content\"}", path, i);
            break;
        }
        const size_t bytes = json_string_length(content);
        Inferd__V1__Message *m =
            request_message(a, arena_strndup(a, json_string_value(role), json_string_length(role)),
                            arena_strndup(a, json_string_value(content), bytes), bytes);
        if (m && json_is_string(name))
            m->name =
                request_text(arena_strndup(a, json_string_value(name), json_string_length(name)));
        if (!m) {
            code = out_of_memory();
            break;
        }
        out[(*n)++] = m;
    }
    json_decref(list);
    return code;
}

static int messages_from_flags(const cli *c, const input_options *o, arena *a,
                               Inferd__V1__Message **out, size_t *n) {
    for (int i = 0; i < o->messages.n; i++) {
        const char *text = o->messages.items[i], *colon = strchr(text, ':');
        if (!colon) return cli_usage_error(c, "--message needs ROLE:TEXT");
        const char *role = arena_strndup(a, text, (size_t)(colon - text));
        out[*n] = request_message(a, role, colon + 1, strlen(colon + 1));
        if (!out[(*n)++]) return out_of_memory();
    }
    return -1;
}

int request_build_chat(const cli *c, const input_options *o, arena *a, Inferd__V1__Chat **out) {
    enum { MESSAGES_MAX = 65536 };
    Inferd__V1__Chat *chat = arena_alloc(a, sizeof *chat);
    Inferd__V1__Message **list = arena_calloc(a, MESSAGES_MAX + 2, sizeof(*list));
    if (!chat || !list) return out_of_memory();
    inferd__v1__chat__init(chat);
    size_t n = 0;
    int code = -1;
    if (o->system) {
        list[n] = request_message(a, "system", o->system, strlen(o->system));
        if (!list[n++]) return out_of_memory();
    }
    if (o->messages_file) code = messages_from_file(c, o->messages_file, a, list, MESSAGES_MAX, &n);
    if (code < 0) code = messages_from_flags(c, o, a, list, &n);
    if (code >= 0) return code;
    if (c->n_args > 0 || (o->messages.n == 0 && !o->messages_file)) {
        size_t bytes;
        char *text = cli_read_input(c, 0, &bytes);
        if (!text) return CLI_USAGE;
        const char *copy = arena_strndup(a, text, bytes);
        free(text);
        list[n] = copy ? request_message(a, "user", copy, bytes) : NULL;
        if (!list[n++]) return out_of_memory();
    }
    if (o->tools_file) {
        code = arena_file(a, o->tools_file, &chat->tools_json);
        if (code >= 0) return code;
    }
    chat->messages = list;
    chat->n_messages = n;
    chat->no_generation_prompt = o->no_generation_prompt;
    *out = chat;
    return -1;
}

/* ------------------------------------------------------------------ generate */

static int build_sampling(const cli *c, const generate_options *o, arena *a,
                          Inferd__V1__Sampling **out) {
    Inferd__V1__Sampling *s = arena_alloc(a, sizeof *s);
    const size_t n = (size_t)o->logit_bias.n;
    Inferd__V1__LogitBias **bias = arena_calloc(a, n + 1, sizeof *bias);
    if (!s || !bias) return out_of_memory();
    inferd__v1__sampling__init(s);
    s->temperature = o->temperature;
    s->top_k = o->top_k;
    s->top_p = o->top_p;
    s->min_p = o->min_p;
    s->repetition_penalty = o->repetition_penalty;
    s->frequency_penalty = o->frequency_penalty;
    s->presence_penalty = o->presence_penalty;
    s->seed = o->seed;
    for (size_t i = 0; i < n; i++) {
        char *end;
        const unsigned long id = strtoul(o->logit_bias.items[i], &end, 10);
        const char *value = end + 1;
        if (*end != '=' || id > UINT32_MAX || !*value)
            return cli_usage_error(c, "--logit-bias needs ID=VALUE");
        bias[i] = arena_alloc(a, sizeof **bias);
        if (!bias[i]) return out_of_memory();
        inferd__v1__logit_bias__init(bias[i]);
        bias[i]->token_id = (uint32_t)id;
        bias[i]->bias = strtof(value, &end);
        if (*end) return cli_usage_error(c, "--logit-bias needs ID=VALUE");
    }
    s->logit_bias = bias;
    s->n_logit_bias = n;
    *out = s;
    return -1;
}

static int build_stopping(const cli *c, const generate_options *o, arena *a,
                          Inferd__V1__Stopping **out) {
    Inferd__V1__Stopping *s = arena_alloc(a, sizeof *s);
    const size_t n = (size_t)o->stop.n, n_ids = (size_t)o->stop_token_ids.n;
    ProtobufCBinaryData *stop = arena_calloc(a, n + 1, sizeof *stop);
    uint32_t *all = arena_calloc(a, n_ids + 1, sizeof *all);
    if (!s || !stop || !all) return out_of_memory();
    inferd__v1__stopping__init(s);
    for (size_t i = 0; i < n; i++) stop[i] = request_text(o->stop.items[i]);
    for (size_t i = 0; i < n_ids; i++) {
        uint32_t *one;
        size_t k;
        const int code = request_parse_ids(c, o->stop_token_ids.items[i], a, &one, &k);
        if (code >= 0) return code;
        if (k != 1) return cli_usage_error(c, "--stop-token needs one id (it may be repeated)");
        all[i] = one[0];
    }
    s->stop = stop;
    s->n_stop = n;
    s->stop_token_ids = all;
    s->n_stop_token_ids = n_ids;
    s->max_tokens = o->max_tokens;
    s->min_tokens = o->min_tokens;
    s->ignore_eos = o->ignore_eos;
    s->include_stop = o->include_stop;
    s->time_limit_ms = o->time_limit_ms;
    *out = s;
    return -1;
}

static int build_constraint(const cli *c, const generate_options *o, arena *a,
                            Inferd__V1__Constraint **out) {
    const int kinds = (o->json_schema_file != NULL) + (o->regex != NULL) +
                      (o->grammar_file != NULL) + (o->choice.n > 0) + o->json_object;
    if (kinds == 0) return -1;
    if (kinds > 1) return cli_usage_error(c, "only one kind of constraint can be asked for");
    Inferd__V1__Constraint *k = arena_alloc(a, sizeof *k);
    if (!k) return out_of_memory();
    inferd__v1__constraint__init(k);
    *out = k;
    if (o->json_schema_file) {
        k->kind_case = INFERD__V1__CONSTRAINT__KIND_JSON_SCHEMA;
        return arena_file(a, o->json_schema_file, &k->json_schema);
    }
    if (o->grammar_file) {
        k->kind_case = INFERD__V1__CONSTRAINT__KIND_GRAMMAR;
        return arena_file(a, o->grammar_file, &k->grammar);
    }
    if (o->regex) {
        k->kind_case = INFERD__V1__CONSTRAINT__KIND_REGEX;
        k->regex = request_text(o->regex);
    } else if (o->json_object) {
        k->kind_case = INFERD__V1__CONSTRAINT__KIND_JSON_OBJECT;
        k->json_object = true;
    } else {
        k->kind_case = INFERD__V1__CONSTRAINT__KIND_CHOICE;
        k->choice = arena_alloc(a, sizeof *k->choice);
        if (!k->choice) return out_of_memory();
        inferd__v1__choice__init(k->choice);
        ProtobufCBinaryData *list = arena_calloc(a, (size_t)o->choice.n, sizeof *list);
        if (!list) return out_of_memory();
        for (int i = 0; i < o->choice.n; i++) list[i] = request_text(o->choice.items[i]);
        k->choice->options = list;
        k->choice->n_options = (size_t)o->choice.n;
    }
    return -1;
}

int request_build_parameters(const cli *c, const generate_options *o, arena *a,
                             Inferd__V1__GenerateRequest *r) {
    inferd__v1__generate_request__init(r);
    r->request_id = request_text(o->request_id);
    r->model = request_text(o->model);
    r->cache_salt = request_text(o->cache_salt);
    r->priority = o->priority;
    r->choices = o->choices;
    r->plain = o->input.plain;
    r->no_bos = o->input.no_bos;
    r->output = arena_alloc(a, sizeof *r->output);
    if (!r->output) return out_of_memory();
    inferd__v1__output__init(r->output);
    r->output->logprobs = o->logprobs;
    r->output->top_logprobs = o->top_logprobs;
    r->output->prompt_logprobs = o->prompt_logprobs;
    r->output->keep_special = o->keep_special;
    r->output->final_only = o->final_only;
    int code = build_sampling(c, o, a, &r->sampling);
    if (code < 0) code = build_stopping(c, o, a, &r->stopping);
    if (code < 0) code = build_constraint(c, o, a, &r->constraint);
    return code;
}

static int build_text(const cli *c, arena *a, Inferd__V1__GenerateRequest *r) {
    size_t bytes;
    char *text = cli_read_input(c, 0, &bytes);
    if (!text) return CLI_USAGE;
    char *copy = arena_strndup(a, text, bytes);
    free(text);
    if (!copy) return out_of_memory();
    r->input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TEXT;
    r->text = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)copy};
    return -1;
}

int request_build_generate(const cli *c, const generate_options *o, arena *a,
                           Inferd__V1__GenerateRequest *r) {
    const input_options *in = &o->input;
    int code = request_build_parameters(c, o, a, r);
    if (code >= 0) return code;
    if (c->n_args > 1) return cli_usage_error(c, "one text is expected: put it in quotes");
    const bool is_chat = in->chat || in->system || in->messages.n > 0 || in->messages_file ||
                         in->tools_file || in->no_generation_prompt;
    if (in->token_ids && (is_chat || c->n_args > 0))
        return cli_usage_error(c, "--token-ids excludes a text and a chat");
    if (in->token_ids) {
        r->token_ids = arena_alloc(a, sizeof *r->token_ids);
        if (!r->token_ids) return out_of_memory();
        inferd__v1__token_ids__init(r->token_ids);
        r->input_case = INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
        return request_parse_ids(c, in->token_ids, a, &r->token_ids->ids, &r->token_ids->n_ids);
    }
    if (!is_chat) return build_text(c, a, r);
    r->input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT;
    return request_build_chat(c, in, a, &r->chat);
}
