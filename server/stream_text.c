/* From token ids to pending text: detokenise, match stop strings, keep ids and log-probabilities.
 */
#include <stdlib.h>

#include "server/stream.h"

size_t stream_pending_bytes(const stream *s) {
    size_t n = 0;
    for (int i = 0; i < s->request.n_choices; i++) {
        const stream_choice *c = &s->choices[i];
        n += c->text.len + c->n_ids * sizeof *c->ids + c->logprobs.len;
    }
    return n;
}

bool stream_choice_pending(const stream_choice *c) {
    return c->n_ids > 0 || c->text.len > 0;
}

static bool ends_by_token(const stream *s, int32_t token) {
    if (!s->request.ignore_eos && tokenizer_is_eog(s->c->srv->model.tokenizer, token)) return true;
    for (int i = 0; i < s->request.n_stop_ids; i++)
        if (s->request.stop_ids[i] == token) return true;
    return false;
}

static bool keep_id(stream_choice *c, int32_t token) {
    if (c->n_ids == c->ids_capacity) {
        const size_t capacity = c->ids_capacity > 0 ? 2 * c->ids_capacity : 16;
        int32_t *ids = realloc(c->ids, capacity * sizeof *ids);
        if (!ids) return false;
        c->ids = ids;
        c->ids_capacity = capacity;
    }
    c->ids[c->n_ids++] = token;
    return true;
}

/* Lets go of everything held back: an unfinished character becomes U+FFFD, the head of a stop
 * string was none. */
static status flush(stream *s, stream_choice *c) {
    s->scratch.len = 0;
    status e = detokenizer_finish(&c->detok, &s->scratch);
    int i_stop = -1;
    if (e == OK)
        e = stop_match_push(&c->match, s->scratch.s, s->scratch.len, false, false, &c->text,
                            &i_stop);
    if (e == OK) e = stop_match_finish(&c->match, &c->text);
    return e;
}

/* The text of a token that ends the choice: with include_stop, or with keep_special if it is one.
 */
static status push_stop_token(stream *s, stream_choice *c, int32_t token) {
    const token_type type = tokenizer_type(s->c->srv->model.tokenizer, token);
    const bool special = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
    if (!s->options.include_stop && !(s->options.keep_special && special)) return OK;
    status e = flush(s, c);
    if (e != OK) return e;
    c->detok.keep_special = true;
    return detokenizer_push(&c->detok, token, &c->text);
}

static status push_text(stream *s, stream_choice *c, int32_t token) {
    s->scratch.len = 0;
    status e = detokenizer_push(&c->detok, token, &s->scratch);
    int i_stop = -1;
    if (e == OK)
        e = stop_match_push(&c->match, s->scratch.s, s->scratch.len,
                            c->n_tokens >= s->request.min_tokens, s->options.include_stop, &c->text,
                            &i_stop);
    if (e != OK || i_stop < 0) return e;
    c->done = true;
    c->reason = FINISH_STOP_STRING;
    c->i_stop = i_stop;
    atomic_fetch_or(&s->request.choices_done, 1u << (unsigned)(c - s->choices));
    engine_wake(s->c->srv->model.engine);
    return OK;
}

static status take_token(stream *s, const out_event *e) {
    stream_choice *c = &s->choices[e->choice];
    if (c->done) return OK; /* drawn before the engine heard of the stop string: never happened */
    c->n_tokens++;
    s->n_tokens++;
    c->last_token = e->token;
    if (!keep_id(c, e->token)) return E_NOMEM;
    if (s->request.logprobs) {
        codec_put_logprob(&c->logprobs, e);
        if (c->logprobs.failed) return E_NOMEM;
    }
    return ends_by_token(s, e->token) ? push_stop_token(s, c, e->token) : push_text(s, c, e->token);
}

static status take_finished(stream *s, const out_event *e) {
    stream_choice *c = &s->choices[e->choice];
    if (c->done) return OK; /* a stop string in the same step goes before MAX_TOKENS */
    c->done = true;
    c->reason = e->reason;
    return flush(s, c);
}

bool stream_take_events(stream *s) {
    out_event e;
    status r = OK;
    while (outbox_next(&s->box, &e)) /* also after an error: the ring must not stay full */
        if (r == OK) r = e.kind == OUT_TOKEN ? take_token(s, &e) : take_finished(s, &e);
    return r == OK;
}
