/* From protobuf bytes to checked values. Every rule of the API about fields is here, once; all
 * violations of a request are collected. protobuf-c checks neither UTF-8 nor memory: unpacking
 * draws from a budgeted arena, and text is checked here. Thread: any. */
#ifndef INFERD_SERVER_CODEC_REQUEST_H
#define INFERD_SERVER_CODEC_REQUEST_H

#include "base/arena.h"
#include "engine/chat.h"
#include "engine/engine.h"
#include "inferd/v1/inference.pb-c.h"
#include "server/refuse.h"
#include "server/stop_match.h"

/* What a request is checked against: facts of the served model, and limits. */
typedef struct codec_limits {
    int n_vocab, context_length;
    int max_output_tokens; /* 0: the context */
    int max_choices;
    bool chat_takes_tools;
} codec_limits;

/* A budget for unpacking `wire_bytes`: LIMIT_ARENA_FACTOR times, and slack. */
void codec_arena_init(arena *a, size_t wire_bytes);
/* NULL: malformed, or beyond the arena's budget. The message lives as long as the arena. */
void *codec_unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t len, arena *a);

/* Fields of Generate that are not the engine's. Borrowed from the request message's arena. */
typedef struct generate_options {
    const char *model;
    size_t model_len;
    stop_string stops[LIMIT_STOP_STRINGS];
    int n_stops;
    bool include_stop, keep_special, final_only;
    const char *constraint; /* the kind asked for: not built; NULL: none */
    uint32_t time_limit_ms;
} generate_options;

/* Checks every field but the length of the input, and fills out (its bias and stop_ids: in `keep`,
 * an arena that outlives m; prompt, deadline, tenant and callbacks are left alone) and options.
 * Nothing is valid when v->n > 0 afterwards. E_NOMEM: keep's budget. */
BASE_MUST_USE status codec_generate(const Inferd__V1__GenerateRequest *m, const codec_limits *l,
                                    arena *keep, engine_request *out, generate_options *options,
                                    violations *v);

/* A chat as engine/chat.h takes it; messages in `a`. Adds to v. */
BASE_MUST_USE status codec_chat(const Inferd__V1__Chat *m, bool takes_tools, arena *a,
                                chat_request *out, violations *v);
/* A text field: UTF-8. Adds to v. */
void codec_check_utf8(const ProtobufCBinaryData *s, const char *field, violations *v);
/* [A-Za-z0-9._:-]{1,128} */
bool codec_id_valid(const char *s, size_t len);
#endif
