#include "server/stream.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum { DEADLINE_NEAR_MS = 5 };

static void pump(stream *s);
static void account(stream *s);

void stream_free(stream *s) {
    for (int i = 0; s->choices && i < s->request.n_choices; i++) {
        text_buffer_free(&s->choices[i].text);
        free(s->choices[i].ids);
        pb_writer_deinit(&s->choices[i].logprobs);
    }
    text_buffer_free(&s->scratch);
    outbox_deinit(&s->box);
    arena_reset(&s->memory);
    free(s->prompt);
    free(s);
}

static void unref(stream *s) {
    assert(s->refs > 0);
    if (--s->refs > 0) return;
    call *c = s->c;
    account(s);
    rpc_item_remove(&s->item);
    atomic_fetch_sub(&c->srv->n_generating, 1);
    stream_free(s);
    call_release(c);
}

/* --- how it ends --- */

static const char *phase_name(request_phase p) {
    return p == PHASE_WAITING ? "waiting" : p == PHASE_PREFILL ? "prefill" : "decode";
}

static refusal end_of(const stream *s) {
    refusal r = {.kind = REFUSE_NONE};
    switch (s->box.end.end) {
    case END_FINISHED:
        break;
    case END_CANCELLED: /* core ends a call at its deadline, and so do clients: we hear a cancel */
        r.kind = s->c->deadline_ns - clock_now_ns() < DEADLINE_NEAR_MS * NS_PER_MS
                     ? REFUSE_DEADLINE
                     : REFUSE_CANCELLED;
        break;
    case END_DEADLINE:
        r.kind = REFUSE_DEADLINE;
        r.key = "phase";
        r.val = phase_name(s->box.end.phase);
        break;
    case END_NOT_FINITE:
        r.kind = REFUSE_INTERNAL;
        refuse_say(&r, "the model's output was not finite");
        break;
    case END_INTERNAL:
        r.kind = REFUSE_INTERNAL;
        break;
    case END_DRAINING:
        r.kind = REFUSE_DRAINING;
        break;
    case END_DEVICE:
        r.kind = REFUSE_DEVICE_FAULT;
        break;
    }
    if (s->too_large) {
        r = (refusal){.kind = REFUSE_TOO_LARGE};
        refuse_say(&r, "with final_only the output would be larger than %u bytes",
                   LIMIT_REPLY_BYTES);
    }
    if (s->out_of_memory) r = (refusal){.kind = REFUSE_INTERNAL, .message = "out of memory"};
    if (r.kind == REFUSE_INTERNAL) {
        r.key = "id";
        r.val = s->id.id;
    }
    return r;
}

/* How the client saw it end: a last message that it did not take is no end. */
static refuse_kind kind_of(const stream *s) {
    if (s->cut != REFUSE_NONE) return s->cut;
    return s->end.kind == REFUSE_NONE && s->gone ? REFUSE_CANCELLED : s->end.kind;
}

static double ms_between(int64_t from_ns, int64_t to_ns) {
    return from_ns > 0 && to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-6 : 0;
}

static const char *const REASON[] = {
    "", "stop_token", "stop_string", "max_tokens", "context_full", "time_limit", "aborted"};

static void usage_of(const stream *s, response_usage *u) {
    const engine_event *end = &s->box.end;
    const int64_t arrival = s->c->arrival_ns, now = clock_now_ns();
    *u = (response_usage){
        .prompt_tokens = (uint32_t)s->request.n_prompt,
        .cached_tokens = (uint32_t)s->box.cached_tokens,
        .completion_tokens = (uint32_t)s->n_tokens,
        .preemptions = (uint32_t)end->preemptions,
        .queue_ms = ms_between(arrival, end->admitted_ns > 0 ? end->admitted_ns : now),
        .prefill_ms = ms_between(end->admitted_ns, end->prefilled_ns),
        .first_token_ms = ms_between(arrival, atomic_load(&s->box.first_token_ns)),
        .total_ms = ms_between(arrival, now)};
}

/* Once a call, when all of it is through: the audit line and the metrics. Never content. */
static void account(stream *s) {
    metrics *m = &s->c->srv->metrics;
    const response_usage u = s->usage; /* as told to the client, if it was */
    const outcome o = outcome_of(kind_of(s), true, s->has_output);
    atomic_fetch_add_explicit(&m->outcomes[o], 1, memory_order_relaxed);
    const char *finish = "";
    for (int i = 0; o == OUTCOME_FINISHED && i < s->request.n_choices; i++) {
        finish = REASON[s->choices[i].reason];
        atomic_fetch_add_explicit(&m->finish[s->choices[i].reason], 1, memory_order_relaxed);
    }
    if (s->box.end.admitted_ns > 0) {
        histogram_observe(&m->queue_s, u.queue_ms * 1e-3);
        histogram_observe(&m->prompt_tokens, u.prompt_tokens);
        histogram_observe(&m->output_tokens, u.completion_tokens);
    }
    if (u.first_token_ms > 0) histogram_observe(&m->ttft_s, u.first_token_ms * 1e-3);
    histogram_observe(&m->request_s, u.total_ms * 1e-3);
    tenant_release(&s->charge, 0);

    const refuse_row *row = refuse_get(kind_of(s));
    char trace[33] = "";
    if (s->c->traceparent[0]) snprintf(trace, sizeof trace, "%.32s", s->c->traceparent + 3);
    log_event(o == OUTCOME_FAILED ? LOG_WARN : LOG_INFO, "request", LOG_STR("req", s->id.id),
              LOG_STR("tenant", s->c->who.name), LOG_STR("trace_id", trace),
              LOG_INT("rpc.grpc.status_code", row->code),
              LOG_STR("reason", row->reason ? row->reason : ""),
              LOG_STR("gen_ai.response.finish_reasons", finish),
              LOG_UINT("gen_ai.usage.input_tokens", u.prompt_tokens),
              LOG_UINT("gen_ai.usage.cache_read.input_tokens", u.cached_tokens),
              LOG_UINT("gen_ai.usage.output_tokens", u.completion_tokens),
              LOG_INT("choices", s->request.n_choices), LOG_DBL("queue_ms", u.queue_ms),
              LOG_DBL("prefill_ms", u.prefill_ms), LOG_DBL("ttft_ms", u.first_token_ms),
              LOG_DBL("total_ms", u.total_ms), LOG_UINT("preemptions", u.preemptions));
    if (o == OUTCOME_FAILED) {
        char text[ERROR_KEPT_BYTES];
        snprintf(text, sizeof text, "request %.64s ended %s", s->id.id,
                 row->reason ? row->reason : "not OK");
        metrics_error(m, text);
    }
}

/* --- writing --- */

static void start_batch(stream *s, grpc_op *ops, size_t n, rpc_tag *tag) {
    s->refs++;
    const grpc_call_error e = grpc_call_start_batch(s->c->rpc, ops, n, tag, NULL);
    assert(e == GRPC_CALL_OK); /* network trouble comes through the tag; this would be our bug */
    (void)e;
}

/* The choice whose pending output goes next, or -1. A choice's last message waits for ENDED if it
 * is the call's last, because that carries the usage. */
static int pick_choice(const stream *s) {
    const int n = s->request.n_choices;
    int n_unfinished = 0;
    for (int i = 0; i < n; i++) n_unfinished += !s->choices[i].finish_sent;
    for (int k = 0; k < n; k++) {
        const int i = (s->i_next + k) % n;
        const stream_choice *c = &s->choices[i];
        if (c->finish_sent) continue;
        if (c->done && (n_unfinished > 1 || s->ended)) return i;
        if (!c->done && !s->options.final_only && stream_choice_pending(c)) return i;
    }
    return -1;
}

static grpc_byte_buffer *make_message(stream *s, int i, bool last) {
    stream_choice *c = &s->choices[i];
    response_prompt prompt;
    response r = {.index = (uint32_t)i,
                  .text = c->text.s,
                  .text_len = c->text.len,
                  .ids = c->ids,
                  .n_ids = c->n_ids,
                  .logprobs = c->logprobs.data,
                  .logprobs_len = c->logprobs.len};
    if (!s->headers_sent) {
        prompt = (response_prompt){.request_id = s->id.id,
                                   .tokens = (uint32_t)s->request.n_prompt,
                                   .cached_tokens = (uint32_t)s->box.cached_tokens,
                                   .seed = s->request.seed,
                                   .prompt = s->prompt,
                                   .rows = s->box.prompt_rows,
                                   .tops = s->box.prompt_tops,
                                   .n_rows = (size_t)s->request.n_prompt,
                                   .n_top = (size_t)s->request.n_top};
        r.prompt = &prompt;
        /* Ended before prefill was through (Abort, time limit): there are no rows to report. */
        if (s->box.prompt_rows && s->box.prompt_rows[s->request.n_prompt - 1].rank == 0 &&
            s->request.n_prompt > 1)
            prompt.rows = NULL;
    }
    if (c->done) {
        r.reason = c->reason;
        if (c->reason == FINISH_STOP_STRING) {
            r.stop = s->options.stops[c->i_stop].s;
            r.stop_len = s->options.stops[c->i_stop].len;
        }
        if (c->reason == FINISH_STOP_TOKEN) r.stop_token_id = (uint32_t)c->last_token;
        c->finish_sent = true;
    }
    if (last) r.usage = &s->usage;
    grpc_byte_buffer *b = codec_response(&r);
    c->text.len = 0;
    c->n_ids = 0;
    c->logprobs.len = 0;
    return b;
}

/* One batch: headers if none went yet, a message if there is one, the status if it is the last. */
static void write_batch(stream *s, int i_choice, bool last) {
    grpc_op ops[3];
    size_t n = 0;
    const bool headers = !s->headers_sent;
    if (i_choice >= 0) s->message = make_message(s, i_choice, last);
    s->has_output |= i_choice >= 0;
    if (headers) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    if (s->message)
        ops[n++] =
            (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = s->message};
    if (last) call_status_op(s->c, &s->end, &ops[n++]);
    s->headers_sent = true;
    s->status_sent = last;
    s->writing = true;
    s->write_started_ns = s->c->thread->now_ns; /* limits are seconds */
    start_batch(s, ops, n, &s->wrote);
}

/* The one place that writes. */
static void pump(stream *s) {
    if (s->writing || s->status_sent || s->gone || s->cut != REFUSE_NONE) return;
    if (s->ended &&
        s->end.kind != REFUSE_NONE) { /* what is pending is not worth more than the end */
        if (s->end.kind != REFUSE_CANCELLED) write_batch(s, -1, true);
        return;
    }
    const int i = pick_choice(s);
    if (i < 0) return;
    s->i_next = (i + 1) % s->request.n_choices;
    int n_unfinished = 0;
    for (int k = 0; k < s->request.n_choices; k++) n_unfinished += !s->choices[k].finish_sent;
    write_batch(s, i, s->ended && s->choices[i].done && n_unfinished == 1);
}

/* Room again: a request that was paused for a slow reader goes on. */
static void maybe_resume(stream *s) {
    if (s->ended || !atomic_load(&s->request.paused)) return;
    if (!s->options.final_only && stream_pending_bytes(s) > LIMIT_OUTBOX_BYTES / 2) return;
    atomic_store(&s->request.paused, false);
    engine_wake(s->c->srv->model.engine);
}

static void stop_engine(stream *s) {
    if (s->ended) return;
    atomic_fetch_or(&s->request.stop, STOP_CANCEL);
    engine_wake(s->c->srv->model.engine);
}

/* Too much output that nobody has taken: the request waits for its reader. With final_only there is
 * nothing to read yet, so it ends. */
static void maybe_pause(stream *s) {
    if (s->ended) return;
    const size_t n = stream_pending_bytes(s);
    if (!s->options.final_only) {
        if (n > LIMIT_OUTBOX_BYTES / 2) atomic_store(&s->request.paused, true);
    } else if (n > LIMIT_REPLY_BYTES && !s->too_large) {
        s->too_large = true;
        stop_engine(s);
    }
}

/* --- tags --- */

static void on_wrote(void *owner, bool ok) {
    stream *s = owner;
    if (s->message) grpc_byte_buffer_destroy(s->message);
    s->message = NULL;
    s->writing = false;
    if (ok) {
        pump(s);
        maybe_resume(s);
    } /* else the peer is gone: on_closed tells the engine */
    unref(s);
}

static void on_closed(void *owner, bool ok) {
    (void)ok;
    stream *s = owner;
    if (s->c->cancelled) { /* core writes it at any time before this tag: read it only here */
        s->gone = true;
        stop_engine(s);
    }
    unref(s);
}

void stream_on_news(stream *s) {
    if (!stream_take_events(s) && !s->out_of_memory) {
        s->out_of_memory = true;
        stop_engine(s);
    }
    if (s->box.ended && !s->ended) {
        s->ended = true;
        s->end = end_of(s);
        ids_remove(s->c->srv->ids, &s->id);
        usage_of(s, &s->usage);
        tenant_end(&s->charge, s->usage.prompt_tokens + s->usage.completion_tokens);
        pump(s);
        unref(s); /* the engine's hold: after the pump, which may take its place */
        return;
    }
    maybe_pause(s);
    pump(s);
    maybe_resume(s);
}

static void cut(stream *s, refuse_kind why) {
    s->cut = why;
    const refuse_row *row = refuse_get(why);
    grpc_call_cancel_with_status(s->c->rpc, row->code, row->message, NULL);
    stop_engine(s);
}

static void on_sweep(void *owner, int64_t now_ns) {
    stream *s = owner;
    const server *srv = s->c->srv;
    if (s->gone || s->cut != REFUSE_NONE) return;
    const refuse_kind fatal = (refuse_kind)atomic_load(&srv->fatal);
    if (fatal != REFUSE_NONE && !s->status_sent) {
        if (s->writing || s->headers_sent) {
            cut(s, fatal);
        } else { /* nothing went out: trailers only, so that a retry policy works */
            s->end = (refusal){.kind = fatal};
            write_batch(s, -1, true);
        }
    } else if (s->writing && now_ns - s->write_started_ns > srv->options.slow_reader_s * NS_PER_S) {
        cut(s, REFUSE_SLOW_CONSUMER);
    }
}

void stream_start(stream *s) {
    call *c = s->c;
    s->wrote = (rpc_tag){on_wrote, s};
    s->closed = (rpc_tag){on_closed, s};
    s->item = (rpc_item){.sweep = on_sweep, .owner = s};
    rpc_item_add(c->thread, &s->item);
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                  .data.recv_close_on_server.cancelled = &c->cancelled};
    start_batch(s, &op, 1, &s->closed); /* from now on a disconnect or deadline reaches on_closed */
}
