/* Tokenize, Detokenize, ModelInfo, EngineStatus, Abort: unpack, check, answer. */
#include "server/unary.h"

#include <grpc/byte_buffer.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "server/codec_request.h"
#include "server/generate.h"

typedef struct unary {
    call *c;
    arena a; /* of the request message */
    violations v;
    refusal r;
    pb_writer more; /* fields of the answer that its message lacks; empty: none */
} unary;

/* NULL: u->r says why not. */
static void *begin(unary *u, call *c, const ProtobufCMessageDescriptor *d, bool needs_model) {
    const void *data;
    size_t len;
    *u = (unary){.c = c, .r = {.kind = needs_model ? server_gate(c->srv, false) : REFUSE_NONE}};
    pb_writer_init(&u->more);
    if (u->r.kind != REFUSE_NONE) return NULL;
    if (!call_read_request(c, &data, &len)) {
        u->r = (refusal){.kind = REFUSE_INVALID, .message = "a request message is missing"};
        return NULL;
    }
    codec_arena_init(&u->a, len);
    u->v.arena = &u->a;
    void *m = codec_unpack(d, data, len, &u->a);
    if (!m)
        violate(&u->v, "malformed, or needs more memory than a message of its size may", "request");
    return m;
}

static void refuse_size(unary *u) {
    u->r.kind = REFUSE_TOO_LARGE;
    refuse_say(&u->r, "the reply would be larger than %u bytes", LIMIT_REPLY_BYTES);
}

/* A long request is a worker's: it has no batch but its answer's, so the worker may give that. */
static void hand_over(call *c, void (*run)(void *arg)) {
    call_watch(c);
    if (!c->payload || grpc_byte_buffer_length(c->payload) < WORKER_FROM_BYTES)
        run(c);
    else if (!worker_push(c->srv->worker, run, c))
        call_refuse(c, &(refusal){.kind = REFUSE_QUEUE_FULL, .message = WORKER_FULL});
}

/* Answers with message, or with what is wrong. NULL message: out of memory, if nothing else. */
static void end(unary *u, const ProtobufCMessage *message) {
    call *c = u->c;
    const size_t packed = message ? protobuf_c_message_get_packed_size(message) : 0;
    if (packed + u->more.len > LIMIT_REPLY_BYTES) refuse_size(u);
    if (u->r.kind == REFUSE_NONE && u->v.n > 0) u->r = refuse_invalid(&u->v);
    if (u->r.kind == REFUSE_NONE && !message)
        u->r = (refusal){.kind = REFUSE_INTERNAL, .message = "out of memory"};
    if (u->r.kind != REFUSE_NONE) {
        call_refuse(c, &u->r);
    } else {
        grpc_slice s = grpc_slice_malloc(packed + u->more.len);
        protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(s));
        if (u->more.len > 0) memcpy(GRPC_SLICE_START_PTR(s) + packed, u->more.data, u->more.len);
        grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);
        grpc_slice_unref(s);
        call_reply(c, b);
    }
    if (u->a.budget_bytes > 0) arena_reset(&u->a);
    pb_writer_deinit(&u->more);
}

static bool check_model(unary *u, const ProtobufCBinaryData *name) {
    const char *served = u->c->srv->model.name;
    if (name->len == 0) return true;
    if (name->len == strlen(served) && memcmp(name->data, served, name->len) == 0) return true;
    codec_check_utf8(name, "model", &u->v);
    if (u->v.n > 0) return false;
    u->r.kind = REFUSE_MODEL_NOT_FOUND;
    return false;
}

static ProtobufCBinaryData bytes_of(const char *s) {
    return (ProtobufCBinaryData){.len = strlen(s), .data = (uint8_t *)s}; /* read by pack only */
}

/* --- Tokenize --- */

typedef struct tokenized {
    token_list list;
    chat_text chat; /* valid with has_chat */
    bool has_chat;
} tokenized;

static status encode_chat(unary *u, const Inferd__V1__TokenizeRequest *m, unsigned flags,
                          tokenized *t) {
    const served_model *model = &u->c->srv->model;
    if (!model->chat) {
        u->r = (refusal){.kind = REFUSE_UNIMPLEMENTED, .message = "the model's chat template"};
        return OK;
    }
    chat_request q;
    error err = {.code = OK};
    status e = codec_chat(m->chat, chat_template_supports_tools(model->chat), &u->a, &q, &u->v);
    if (e != OK || u->v.n > 0) return e;
    e = chat_render(model->chat, &q, &t->chat, &err);
    if (e == E_INVAL || e == E_TOO_LARGE) {
        violate(&u->v, err.text, "chat");
        return OK;
    }
    if (e != OK) return e;
    t->has_chat = true;
    return tokenizer_encode(model->tokenizer, t->chat.parts, t->chat.n_parts, flags, &t->list);
}

static status encode_text(unary *u, const Inferd__V1__TokenizeRequest *m, unsigned flags,
                          tokenized *t) {
    codec_check_utf8(&m->text, "text", &u->v);
    if (u->v.n > 0) return OK;
    const text_part part = {m->text.len > 0 ? (const char *)m->text.data : "", m->text.len,
                            m->plain};
    return tokenizer_encode(u->c->srv->model.tokenizer, &part, 1, flags, &t->list);
}

/* By hand: a struct a piece would take five times the memory of the answer. */
static status put_pieces(unary *u, const token_list *l) {
    const tokenizer *t = u->c->srv->model.tokenizer;
    for (size_t i = 0; i < l->n && u->more.len <= LIMIT_REPLY_BYTES; i++) {
        size_t len;
        const char *s = tokenizer_piece(t, l->id[i], true, &len);
        const size_t mark = pb_begin(&u->more, 2); /* TokenizeResponse.pieces */
        pb_put_bytes(&u->more, 1, s, len);
        pb_put_uint(&u->more, 2, l->start[i]);
        pb_put_uint(&u->more, 3, l->end[i]);
        pb_end(&u->more, mark);
    }
    if (u->more.failed) return E_NOMEM;
    return u->more.len <= LIMIT_REPLY_BYTES ? OK : E_TOO_LARGE;
}

static void tokenize(void *arg) {
    call *c = arg;
    unary u;
    tokenized t = {.list = {0}};
    Inferd__V1__TokenizeResponse out = INFERD__V1__TOKENIZE_RESPONSE__INIT;
    status e = OK;
    const Inferd__V1__TokenizeRequest *m =
        begin(&u, c, &inferd__v1__tokenize_request__descriptor, true);
    if (m && check_model(&u, &m->model)) {
        const unsigned flags = m->add_special ? TOKENIZE_ADD_SPECIAL : 0;
        t.list.with_offsets = m->pieces;
        if (m->input_case == INFERD__V1__TOKENIZE_REQUEST__INPUT_TEXT) {
            e = encode_text(&u, m, flags, &t);
        } else if (m->input_case == INFERD__V1__TOKENIZE_REQUEST__INPUT_CHAT) {
            if (m->plain) violate(&u.v, "takes effect only with text", "plain");
            e = encode_chat(&u, m, flags, &t);
        } else {
            violate(&u.v, "one of text and chat is needed", "input");
        }
        if (e == OK && m->pieces && u.v.n == 0) e = put_pieces(&u, &t.list);
        out.n_token_ids = t.list.n;
        out.token_ids = (uint32_t *)t.list.id; /* ids are not negative */
        if (t.has_chat)
            out.text =
                (ProtobufCBinaryData){.len = t.chat.text_len, .data = (uint8_t *)t.chat.text};
    }
    if (e == E_TOO_LARGE) refuse_size(&u);
    end(&u, e == OK ? &out.base : NULL);
    if (t.has_chat) chat_text_free(&t.chat);
    token_list_free(&t.list);
}

void unary_tokenize(call *c) {
    hand_over(c, tokenize);
}

/* --- Detokenize --- */

static status decode(const tokenizer *t, const Inferd__V1__DetokenizeRequest *m, text_buffer *out) {
    detokenizer d;
    detokenizer_init(&d, t, m->keep_special, tokenizer_strips_leading_space(t));
    status e = OK;
    for (size_t i = 0; i < m->n_token_ids && e == OK; i++) {
        e = detokenizer_push(&d, (int32_t)m->token_ids[i], out);
        if (out->len > LIMIT_REPLY_BYTES) return E_TOO_LARGE;
    }
    return e == OK ? detokenizer_finish(&d, out) : e;
}

static void detokenize(void *arg) {
    call *c = arg;
    unary u;
    text_buffer text = {0};
    status e = OK;
    Inferd__V1__DetokenizeResponse out = INFERD__V1__DETOKENIZE_RESPONSE__INIT;
    const Inferd__V1__DetokenizeRequest *m =
        begin(&u, c, &inferd__v1__detokenize_request__descriptor, true);
    if (m && check_model(&u, &m->model)) {
        for (size_t i = 0; i < m->n_token_ids; i++)
            if (m->token_ids[i] >= (uint32_t)c->srv->model.n_vocab)
                violate(&u.v, "must be below the vocabulary size", "token_ids[%zu]", i);
        if (u.v.n == 0) e = decode(c->srv->model.tokenizer, m, &text);
        out.text = (ProtobufCBinaryData){.len = text.len, .data = (uint8_t *)text.s};
    }
    if (e == E_TOO_LARGE) refuse_size(&u);
    end(&u, e == OK ? &out.base : NULL);
    text_buffer_free(&text);
}

void unary_detokenize(call *c) {
    hand_over(c, detokenize);
}

/* --- ModelInfo, EngineStatus --- */

static void fill_model(const server *s, Inferd__V1__ModelInfoResponse *o) {
    const served_model *m = &s->model;
    engine_stats stats;
    engine_read_stats(m->engine, &stats);
    o->name = bytes_of(m->name);
    o->architecture = bytes_of(m->architecture);
    o->parameters = m->n_parameters;
    o->quantization = bytes_of(m->quantization);
    o->file_bytes = m->file_bytes;
    o->sha256 = bytes_of(m->sha256);
    o->context_length = (uint32_t)m->context_length;
    o->trained_context_length = (uint32_t)m->trained_context_length;
    o->vocab_size = (uint32_t)m->n_vocab;
    o->embedding_length = (uint32_t)m->n_embd;
    o->layers = (uint32_t)m->n_layers;
    o->heads = (uint32_t)m->n_heads;
    o->kv_heads = (uint32_t)m->n_kv_heads;
    o->head_dim = (uint32_t)m->head_dim;
    o->rope_freq_base = (float)m->rope_freq_base;
    o->tokenizer = bytes_of(m->tokenizer_name);
    const int32_t bos = tokenizer_bos(m->tokenizer);
    o->bos_token_id = bos >= 0 ? (uint32_t)bos : 0;
    o->add_bos = tokenizer_add_bos(m->tokenizer);
    const int32_t *eog;
    o->n_eos_token_ids = (size_t)tokenizer_eog_ids(m->tokenizer, &eog);
    o->eos_token_ids = (uint32_t *)eog; /* ids are not negative; pack only reads */
    o->chat_template =
        (ProtobufCBinaryData){.len = m->chat_source_len, .data = (uint8_t *)m->chat_source};
    o->max_output_tokens =
        (uint32_t)(s->options.max_output_tokens > 0 ? s->options.max_output_tokens
                                                    : m->context_length);
    o->max_sequences = (uint32_t)m->max_sequences;
    o->kv_block_tokens = (uint32_t)m->kv_block_tokens;
    o->kv_blocks = stats.kv_blocks_total;
    o->kv_type = bytes_of(m->kv_type);
    o->backend = bytes_of(m->backend);
    o->device = bytes_of(m->device);
    o->version = bytes_of(INFERD_VERSION);
}

void unary_model_info(call *c) {
    unary u;
    call_watch(c);
    Inferd__V1__ModelInfoResponse out = INFERD__V1__MODEL_INFO_RESPONSE__INIT;
    const Inferd__V1__ModelInfoRequest *m =
        begin(&u, c, &inferd__v1__model_info_request__descriptor, true);
    if (m && check_model(&u, &m->model)) fill_model(c->srv, &out);
    end(&u, &out.base);
}

static uint64_t count(const server *s, outcome o) {
    return atomic_load_explicit(&s->metrics.outcomes[o], memory_order_relaxed);
}

static void fill_status(const server *s, Inferd__V1__EngineStatusResponse *o) {
    o->state = (Inferd__V1__EngineState)server_state(s);
    o->uptime_s = server_uptime_s(s);
    o->load_progress = atomic_load(&s->load_progress);
    o->requests_finished = count(s, OUTCOME_FINISHED);
    o->requests_cancelled = count(s, OUTCOME_CANCELLED);
    o->requests_failed = count(s, OUTCOME_FAILED);
    o->requests_rejected = count(s, OUTCOME_REJECTED);
    served_model model;
    if (!server_model(s, &model)) return;
    engine_stats st;
    server_read_stats(s, &st);
    o->running = st.running;
    o->waiting = st.waiting;
    o->waiting_tokens = st.waiting_tokens;
    o->kv_blocks_total = st.kv_blocks_total;
    o->kv_blocks_free = st.kv_blocks_free;
    o->kv_blocks_cached = st.kv_blocks_cached;
    const backend_memory *memory = engine_memory(model.engine);
    o->weights_bytes = memory->weights_bytes;
    o->kv_bytes = memory->kv_bytes;
    o->workspace_bytes = memory->workspace_bytes;
    o->steps = st.steps;
    o->prompt_tokens = st.prompt_tokens;
    o->generated_tokens = st.generated_tokens;
    o->cached_prompt_tokens = st.cached_prompt_tokens;
    o->preemptions = st.preemptions;
    o->last_step_age_s = server_last_step_age_s(s);
}

void unary_engine_status(call *c) {
    unary u;
    call_watch(c);
    Inferd__V1__EngineStatusResponse out = INFERD__V1__ENGINE_STATUS_RESPONSE__INIT;
    if (begin(&u, c, &inferd__v1__engine_status_request__descriptor, false))
        fill_status(c->srv, &out);
    end(&u, &out.base);
}

/* --- Abort --- */

void unary_abort(call *c) {
    unary u;
    call_watch(c);
    Inferd__V1__AbortResponse out = INFERD__V1__ABORT_RESPONSE__INIT;
    const Inferd__V1__AbortRequest *m = begin(&u, c, &inferd__v1__abort_request__descriptor, true);
    if (m && m->n_request_ids > LIMIT_ABORT_IDS) violate(&u.v, "at most 1024 ids", "request_ids");
    for (size_t i = 0; m && u.v.n == 0 && i < m->n_request_ids; i++)
        if (!codec_id_valid((const char *)m->request_ids[i].data, m->request_ids[i].len))
            violate(&u.v, "must match [A-Za-z0-9._:-]{1,128}", "request_ids[%zu]", i);
    if (m && u.v.n == 0) {
        out.aborted = arena_calloc(&u.a, m->n_request_ids + 1, sizeof *out.aborted);
        for (size_t i = 0; out.aborted && i < m->n_request_ids; i++) {
            char id[LIMIT_REQUEST_ID_BYTES + 1];
            memcpy(id, m->request_ids[i].data, m->request_ids[i].len);
            id[m->request_ids[i].len] = '\0';
            if (ids_abort(c->srv->ids, c->who.id, id))
                out.aborted[out.n_aborted++] = m->request_ids[i];
        }
        if (out.n_aborted > 0) engine_wake(c->srv->model.engine);
        if (!out.aborted) u.r = (refusal){.kind = REFUSE_INTERNAL, .message = "out of memory"};
    }
    end(&u, &out.base);
}
