#include "server/generate.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "server/stream.h"

/* Ending a call ourselves this long before its deadline lets the details reach the client: after
 * the deadline core ends it, without them. */
enum { DEADLINE_LEAD_MS = 3, DEADLINE_LEAD_FROM_MS = 30, STREAM_ARENA_BYTES = 64 << 10 };

static codec_limits limits_of(const server *s) {
    return (codec_limits){.n_vocab = s->model.n_vocab,
                          .context_length = s->model.context_length,
                          .max_output_tokens = s->options.max_output_tokens,
                          .max_choices = s->options.max_choices,
                          .chat_takes_tools =
                              s->model.chat && chat_template_supports_tools(s->model.chat)};
}

static void refuse(call *c, const refusal *r, const char *id) {
    atomic_fetch_add_explicit(&c->srv->metrics.outcomes[outcome_of(r->kind, false, false)], 1,
                              memory_order_relaxed);
    const refuse_row *row = refuse_get(r->kind);
    log_event(LOG_INFO, "refused", LOG_STR("req", id), LOG_STR("tenant", c->who.name),
              LOG_INT("rpc.grpc.status_code", row->code),
              LOG_STR("reason", row->reason ? row->reason : "INVALID_ARGUMENT"),
              LOG_INT("violations", r->bad ? r->bad->n + r->bad->n_more : 0));
    call_refuse(c, r);
}

/* --- input -> prompt ids --- */

static status take_ids(const Inferd__V1__TokenIds *m, stream *s) {
    s->prompt = malloc(m->n_ids * sizeof *s->prompt);
    if (!s->prompt) return E_NOMEM;
    for (size_t i = 0; i < m->n_ids; i++) s->prompt[i] = (int32_t)m->ids[i];
    s->request.n_prompt = (int)m->n_ids; /* a message of 2 GiB at most: fits */
    return OK;
}

static status encode(const tokenizer *t, const text_part *parts, int n_parts, unsigned flags,
                     stream *s) {
    token_list list = {0};
    const status e = tokenizer_encode(t, parts, n_parts, flags, &list);
    if (e != OK || list.n > INT32_MAX) {
        token_list_free(&list);
        return e != OK ? e : E_TOO_LARGE;
    }
    int32_t *fit = realloc(list.id, (list.n > 0 ? list.n : 1) * sizeof *fit);
    if (!fit) {
        token_list_free(&list);
        return E_NOMEM;
    }
    s->prompt = fit;
    s->request.n_prompt = (int)list.n;
    return OK;
}

/* E_INVAL: err->text may be told to the client. */
static status encode_chat(const served_model *m, const Inferd__V1__Chat *chat, arena *a, stream *s,
                          violations *v, error *err) {
    chat_request request;
    status e = codec_chat(chat, chat_template_supports_tools(m->chat), a, &request, v);
    if (e != OK || v->n > 0) return e;
    chat_text text;
    e = chat_render(m->chat, &request, &text, err);
    if (e != OK) return e;
    e = encode(m->tokenizer, text.parts, text.n_parts, 0, s);
    chat_text_free(&text);
    return e;
}

/* The prompt's ids and its length against the context; adds to v. */
static status take_input(stream *s, const Inferd__V1__GenerateRequest *m, violations *v,
                         refusal *r) {
    const served_model *model = &s->c->srv->model;
    const char *field = "text";
    error err = {.code = OK};
    status e;
    if (m->input_case == INFERD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS) {
        field = "token_ids";
        e = take_ids(m->token_ids, s);
    } else if (m->input_case == INFERD__V1__GENERATE_REQUEST__INPUT_CHAT) {
        field = "chat";
        if (!model->chat) {
            r->kind = REFUSE_UNIMPLEMENTED;
            refuse_say(r, "chat: %s", model->chat_problem);
            return OK;
        }
        e = encode_chat(model, m->chat, v->arena, s, v, &err);
    } else {
        const text_part part = {(const char *)m->text.data, m->text.len, m->plain};
        e = encode(model->tokenizer, &part, 1, m->no_bos ? 0 : TOKENIZE_ADD_SPECIAL, s);
    }
    if (e == E_INVAL || e == E_TOO_LARGE) {
        violate(v, err.text[0] ? err.text : "too large", "%s", field);
        return OK;
    }
    if (e != OK) return e;
    if (s->request.n_prompt >= model->context_length) {
        char text[96];
        snprintf(text, sizeof text, "the prompt has %d tokens, the context holds %d",
                 s->request.n_prompt, model->context_length);
        violate(v, text, "%s", field);
    } else if (s->request.n_prompt == 0) {
        violate(v, "must not be empty", "%s", field);
    }
    return OK;
}

/* --- the stream's own memory --- */

static status keep_stops(stream *s) {
    stop_string *stops = s->options.stops;
    for (int i = 0; i < s->options.n_stops; i++) {
        stops[i].s = arena_strndup(&s->memory, stops[i].s, stops[i].len);
        if (!stops[i].s) return E_NOMEM;
    }
    stop_set_init(&s->stops, stops, s->options.n_stops);
    return OK;
}

static status make_choices(stream *s) {
    s->choices = arena_calloc(&s->memory, (size_t)s->request.n_choices, sizeof *s->choices);
    if (!s->choices) return E_NOMEM;
    for (int i = 0; i < s->request.n_choices; i++) {
        stream_choice *c = &s->choices[i];
        detokenizer_init(&c->detok, s->c->srv->model.tokenizer, s->options.keep_special, false);
        stop_match_init(&c->match, &s->stops);
        pb_writer_init(&c->logprobs);
    }
    return OK;
}

static status make_prompt_rows(stream *s) {
    if (!s->request.prompt_logprobs) return OK;
    const size_t n = (size_t)s->request.n_prompt, n_top = (size_t)s->request.n_top;
    s->memory.budget_bytes += n * (sizeof(out_prompt_row) + n_top * sizeof(out_top)) + 4096;
    s->box.prompt_rows = arena_calloc(&s->memory, n, sizeof(out_prompt_row));
    if (n_top > 0) s->box.prompt_tops = arena_calloc(&s->memory, n * n_top, sizeof(out_top));
    return s->box.prompt_rows && (n_top == 0 || s->box.prompt_tops) ? OK : E_NOMEM;
}

static void make_uuid(char out[LIMIT_REQUEST_ID_BYTES + 1]) {
    uint8_t b[16];
    random_bytes(b, sizeof b);
    b[6] = (uint8_t)((b[6] & 0x0F) | 0x40); /* version 4 */
    b[8] = (uint8_t)((b[8] & 0x3F) | 0x80); /* variant 1 */
    snprintf(out, LIMIT_REQUEST_ID_BYTES + 1,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
}

/* The request's own id, else the metadata's, else a new one; the trailers carry it from here on. */
static void take_id(stream *s, const Inferd__V1__GenerateRequest *m) {
    call *c = s->c;
    if (m->request_id.len > 0) {
        memcpy(c->request_id, m->request_id.data, m->request_id.len);
        c->request_id[m->request_id.len] = '\0';
    } else if (!c->request_id[0]) {
        make_uuid(c->request_id);
    }
    memcpy(s->id.id, c->request_id, sizeof s->id.id);
    s->id.tenant = c->who.id;
    s->id.request = &s->request;
}

/* --- checking --- */

/* Everything up to a request that could be submitted. r->kind says what is wrong, if anything. */
static status prepare(stream *s, const Inferd__V1__GenerateRequest *m, violations *v, refusal *r) {
    const server *srv = s->c->srv;
    const codec_limits limits = limits_of(srv);
    status e = codec_generate(m, &limits, &s->memory, &s->request, &s->options, v);
    if (e != OK) return e;
    if (s->c->bad_request_id)
        violate(v, "metadata x-request-id must match [A-Za-z0-9._:-]{1,128}", "request_id");
    if (v->n > 0) return OK;
    const char *name = srv->model.name;
    if (s->options.model_len > 0 && (s->options.model_len != strlen(name) ||
                                     memcmp(s->options.model, name, s->options.model_len) != 0)) {
        r->kind = REFUSE_MODEL_NOT_FOUND;
        return OK;
    }
    if (s->options.constraint) {
        r->kind = REFUSE_UNIMPLEMENTED;
        refuse_say(r, "%s is not built", s->options.constraint);
        return OK;
    }
    take_id(s, m);
    e = take_input(s, m, v, r);
    if (e != OK || v->n > 0 || r->kind != REFUSE_NONE) return e;
    e = keep_stops(s);
    return e != OK ? e : make_choices(s);
}

static void fill_request(stream *s) {
    const call *c = s->c;
    const server *srv = c->srv;
    engine_request *q = &s->request;
    q->prompt = s->prompt;
    if (q->max_tokens == 0 && srv->options.max_output_tokens > 0 &&
        srv->options.max_output_tokens < srv->model.context_length - q->n_prompt)
        q->max_tokens = srv->options.max_output_tokens;
    q->deadline_ns = c->deadline_ns;
    if (q->deadline_ns != TIME_NEVER &&
        q->deadline_ns - c->arrival_ns > DEADLINE_LEAD_FROM_MS * NS_PER_MS)
        q->deadline_ns -= DEADLINE_LEAD_MS * NS_PER_MS;
    q->time_limit_ns = s->options.time_limit_ms > 0
                           ? c->arrival_ns + (int64_t)s->options.time_limit_ms * NS_PER_MS
                           : TIME_NEVER;
    q->tenant = c->who.id;
    q->on_event = outbox_on_event;
    q->ctx = &s->box;
}

static refuse_kind refusal_of(status e) {
    switch (e) {
    case E_FULL:
        return REFUSE_QUEUE_FULL;
    case E_TOO_LARGE:
        return REFUSE_TOO_LARGE;
    case E_STATE:
        return REFUSE_DRAINING;
    case E_DEVICE:
        return REFUSE_DEVICE_FAULT;
    default:
        return REFUSE_INTERNAL;
    }
}

/* Takes what the call needs from every bounded thing, in order, and gives it back on refusal. On
 * success the call is the stream's. */
static void submit(stream *s, refusal *r) {
    call *c = s->c;
    server *srv = c->srv;
    const uint64_t max_tokens = s->request.max_tokens > 0
                                    ? (uint64_t)s->request.max_tokens
                                    : (uint64_t)(srv->model.context_length - s->request.n_prompt);
    int retry_ms = 0;
    if (outbox_init(&s->box, &c->thread->box, &s->request, c->rpc, &srv->metrics, s) != OK ||
        make_prompt_rows(s) != OK) {
        r->kind = REFUSE_INTERNAL;
        return;
    }
    /* Between tenants the queue has another order, which only the engine knows. */
    if (!c->who.tenant && server_outlasts(srv, c->deadline_ns, c->arrival_ns, max_tokens)) {
        *r = (refusal){.kind = REFUSE_QUEUE_FULL,
                       .message = "the queue would outlast the deadline",
                       .pushback_ms = server_pushback_ms(srv)};
        return;
    }
    if (tenant_admit(c->who.tenant, (uint64_t)s->request.n_prompt,
                     max_tokens * (uint64_t)s->request.n_choices, c->arrival_ns, &s->charge,
                     &retry_ms) != OK) {
        *r = (refusal){.kind = REFUSE_QUOTA, .pushback_ms = retry_ms};
        return;
    }
    s->request.account = s->charge.account;
    s->request.account_blocks_max = s->charge.account_blocks_max;
    if (ids_add(srv->ids, &s->id) != OK) {
        r->kind = REFUSE_ID_LIVE;
        tenant_release(&s->charge, 0);
        return;
    }
    s->refs = 1; /* the engine's hold: events may come before engine_submit returns */
    atomic_fetch_add(&srv->n_generating, 1);
    const status e = engine_submit(srv->model.engine, &s->request);
    if (e == OK) return;
    atomic_fetch_sub(&srv->n_generating, 1);
    ids_remove(srv->ids, &s->id);
    tenant_release(&s->charge, 0);
    r->kind = refusal_of(e);
    if (e == E_TOO_LARGE && s->request.account_blocks_max > 0)
        refuse_say(r, "the prompt and max_tokens need more KV blocks than the tenant may hold");
    if (e == E_FULL) r->pushback_ms = server_pushback_ms(srv);
}

/* A request on its way in. Long ones are prepared by a worker; the rest is the rpc thread's. */
typedef struct admission {
    stream *s;
    const void *data; /* the request's bytes, the call's */
    size_t len;
    arena a; /* of the request message */
    violations v;
    refusal r;
    rpc_tag prepared;
    _Atomic bool
        ready; /* orders the worker's writes before the rpc thread's reads, by our own means */
} admission;

/* Any thread. */
static void admission_prepare(admission *d) {
    const Inferd__V1__GenerateRequest *m =
        codec_unpack(&inferd__v1__generate_request__descriptor, d->data, d->len, &d->a);
    status e = OK;
    if (!m)
        violate(&d->v, "malformed, or needs more memory than a message of its size may", "request");
    else
        e = prepare(d->s, m, &d->v, &d->r);
    if (e != OK) d->r = (refusal){.kind = REFUSE_INTERNAL, .message = "out of memory"};
    if (d->r.kind == REFUSE_NONE && d->v.n > 0) d->r = refuse_invalid(&d->v);
}

/* Rpc thread: submits or refuses, and frees d. */
static void admission_finish(admission *d) {
    stream *s = d->s;
    call *c = s->c;
    if (d->r.kind == REFUSE_NONE) d->r.kind = server_gate(c->srv, true); /* time may have passed */
    if (d->r.kind == REFUSE_NONE) {
        fill_request(s);
        submit(s, &d->r);
    }
    if (d->r.kind == REFUSE_INTERNAL) {
        d->r.key = "id";
        d->r.val = c->request_id;
    }
    if (d->r.kind != REFUSE_NONE) {
        refuse(c, &d->r, c->request_id);
        stream_free(s);
    } else {
        call_drop_request(c);
        stream_start(s);
    }
    arena_reset(&d->a);
    free(d);
}

static void on_prepared(void *owner, bool ok) {
    (void)ok;
    admission *d = owner;
    const bool ready = atomic_load_explicit(&d->ready, memory_order_acquire);
    assert(ready);
    (void)ready;
    admission_finish(d);
}

static void prepare_on_worker(void *arg) {
    admission *d = arg;
    admission_prepare(d);
    /* An empty batch brings it back to its rpc thread; d may be gone before this returns. */
    grpc_call *carrier = d->s->c->rpc;
    grpc_call_ref(carrier);
    atomic_store_explicit(&d->ready, true, memory_order_release);
    const grpc_call_error e = grpc_call_start_batch(carrier, NULL, 0, &d->prepared, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
    grpc_call_unref(carrier);
}

void generate_handle(call *c) {
    const void *data;
    size_t len;
    c->reports_load = true;
    refusal r = {.kind = server_gate(c->srv, true)};
    if (r.kind == REFUSE_NONE && c->deadline_ns <= clock_now_ns())
        r = (refusal){.kind = REFUSE_DEADLINE, .key = "phase", .val = "waiting"};
    if (r.kind == REFUSE_NONE && !call_read_request(c, &data, &len))
        r = (refusal){.kind = REFUSE_INVALID, .message = "a request message is missing"};
    stream *s = r.kind == REFUSE_NONE ? calloc(1, sizeof *s) : NULL;
    admission *d = s ? calloc(1, sizeof *d) : NULL;
    if (r.kind == REFUSE_NONE && !d) r.kind = REFUSE_INTERNAL;
    if (r.kind != REFUSE_NONE) {
        refuse(c, &r, c->request_id);
        free(s);
        return;
    }
    s->c = c;
    arena_init(&s->memory, STREAM_ARENA_BYTES);
    *d = (admission){.s = s, .data = data, .len = len};
    codec_arena_init(&d->a, len);
    d->v.arena = &d->a;
    d->prepared = (rpc_tag){on_prepared, d};
    if (len < WORKER_FROM_BYTES)
        admission_prepare(d);
    else if (worker_push(c->srv->worker, prepare_on_worker, d))
        return;
    else /* this thread's other streams would wait for it */
        d->r = (refusal){.kind = REFUSE_QUEUE_FULL,
                         .message = WORKER_FULL,
                         .pushback_ms = server_pushback_ms(c->srv)};
    admission_finish(d);
}
