/* An engine, tokenizer and chat template for tests of server/: bytes are tokens, the "model" spells
 * the alphabet, steps take as long as asked. Included by one source of a program; the linker then
 * leaves the real ones out. The thread, event order and stop rules are the real engine's
 * (engine/engine.h). */
#ifndef INFERD_TESTS_SERVER_FAKE_ENGINE_H
#define INFERD_TESTS_SERVER_FAKE_ENGINE_H

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "engine/chat.h"
#include "engine/engine.h"
#include "server/server.h"

enum {
    FAKE_VOCAB = 260,
    FAKE_BOS = 256,
    FAKE_EOS = 257,
    FAKE_LONG = 258,
    FAKE_CONTEXT = 4096,
    FAKE_MAX = 8192,
    FAKE_HELD_BYTES = 32 << 10
};

typedef struct fake_live {
    engine_request *r;
    int n_tokens[LIMIT_CHOICES];
    unsigned done;
    bool started;
} fake_live;

struct engine {
    pthread_mutex_t lock; /* guards live, n_live */
    fake_live live[FAKE_MAX];
    int n_live;
    pthread_t thread;
    _Atomic bool quit, stop_all, frozen, device_fault;
    /* eos_at: every choice ends there; 0: never */
    _Atomic int step_us, submit_status, eos_at, waiting;
    /* Its heart beat this long ago, whenever one looks: a starved thread makes it no older. */
    _Atomic int64_t heart_age_ns;
    _Atomic uint64_t steps, tokens, n_ended, n_looks; /* n_looks: of engine_read_stats */
    void (*on_step)(void *ctx, const step_report *r);
    void *on_step_ctx;
    backend_memory memory;
};

static char fake_letter(int i, int choice) {
    return "abcdefghijklmnopqrstuvwxyz "[(i + choice) % 27];
}

static bool fake_end(engine *e, fake_live *l, engine_end why, request_phase phase) {
    const engine_event ended = {.kind = EVENT_ENDED,
                                .end = why,
                                .phase = phase,
                                .admitted_ns = l->started ? 1 : 0,
                                .prefilled_ns = l->started ? 1 : 0};
    atomic_fetch_add(&e->n_ended, 1);
    l->r->on_event(l->r->ctx, &ended);
    return true;
}

static void fake_finish(fake_live *l, int choice, finish_reason why) {
    const engine_event f = {.kind = EVENT_FINISHED, .choice = choice, .reason = why};
    if (l->done & 1u << choice) return;
    l->done |= 1u << choice;
    l->r->on_event(l->r->ctx, &f);
}

static bool fake_finish_all(engine *e, fake_live *l, finish_reason why) {
    const engine_event started = {.kind = EVENT_STARTED};
    if (!l->started) l->r->on_event(l->r->ctx, &started);
    l->started = true;
    for (int c = 0; c < l->r->n_choices; c++) fake_finish(l, c, why);
    return fake_end(e, l, END_FINISHED, PHASE_DECODE);
}

/* True: the request has ended. */
static bool fake_step_one(engine *e, fake_live *l) {
    engine_request *r = l->r;
    const unsigned stop = atomic_load(&r->stop);
    const int64_t now = clock_now_ns();
    if (stop & STOP_CANCEL) return fake_end(e, l, END_CANCELLED, PHASE_DECODE);
    if (stop & STOP_ABORT) return fake_finish_all(e, l, FINISH_ABORTED);
    if (atomic_load(&e->stop_all)) return fake_end(e, l, END_DRAINING, PHASE_DECODE);
    if (now >= r->deadline_ns) return fake_end(e, l, END_DEADLINE, PHASE_DECODE);
    if (now >= r->time_limit_ns) return fake_finish_all(e, l, FINISH_TIME_LIMIT);
    if (!l->started) {
        const engine_event started = {.kind = EVENT_STARTED, .cached_tokens = 3};
        l->started = true;
        r->on_event(r->ctx, &started);
    }
    for (int c = 0; c < r->n_choices; c++)
        if (atomic_load(&r->choices_done) & 1u << c) fake_finish(l, c, FINISH_STOP_STRING);
    if (atomic_load(&r->paused)) return false;
    const unsigned all = (1u << r->n_choices) - 1;
    const int eos_at = atomic_load(&e->eos_at);
    for (int c = 0; c < r->n_choices; c++) {
        if (l->done & 1u << c) continue;
        const int i = l->n_tokens[c]++;
        const bool eos = eos_at > 0 && i == eos_at;
        const sampled s = {.token = eos ? FAKE_EOS : fake_letter(i, c),
                           .finite = true,
                           .logprob = -1.0f,
                           .rank = 1,
                           .n_top = r->n_top};
        const engine_event t = {.kind = EVENT_TOKEN, .choice = c, .sampled = &s};
        r->on_event(r->ctx, &t);
        atomic_fetch_add(&e->tokens, 1);
        if (eos)
            fake_finish(l, c, FINISH_STOP_TOKEN);
        else if (r->max_tokens > 0 && l->n_tokens[c] >= r->max_tokens)
            fake_finish(l, c, FINISH_MAX_TOKENS);
    }
    return l->done == all && fake_end(e, l, END_FINISHED, PHASE_DECODE);
}

static void *fake_main(void *arg) {
    engine *e = arg;
    while (!atomic_load(&e->quit)) {
        const int us = atomic_load(&e->step_us);
        nanosleep(&(struct timespec){.tv_nsec = us * 1000L}, NULL);
        if (atomic_load(&e->frozen)) continue;
        pthread_mutex_lock(&e->lock);
        const int n = e->n_live;
        for (int i = 0; i < e->n_live;)
            if (fake_step_one(e, &e->live[i]))
                e->live[i] = e->live[--e->n_live];
            else
                i++;
        pthread_mutex_unlock(&e->lock);
        if (n == 0) continue;
        atomic_fetch_add(&e->steps, 1);
        const step_report report = {.n_seqs = n, .n_decode_tokens = n, .step_ns = 1000};
        e->on_step(e->on_step_ctx, &report);
    }
    return NULL;
}

static char fake_bytes[256]; /* every byte's text */

static engine *fake_engine_open(void (*on_step)(void *, const step_report *), void *ctx,
                                int step_us) {
    engine *e = calloc(1, sizeof *e);
    assert(e);
    for (int i = 0; i < 256; i++) fake_bytes[i] = (char)i;
    pthread_mutex_init(&e->lock, NULL);
    e->on_step = on_step;
    e->on_step_ctx = ctx;
    atomic_store(&e->step_us, step_us);
    const int failed = pthread_create(&e->thread, NULL, fake_main, e);
    assert(failed == 0);
    (void)failed;
    return e;
}

/* The model that it is served as. Tokenizer and template are never looked into. */
static inline served_model fake_served_model(engine *e) {
    return (served_model){.tokenizer = (const tokenizer *)e,
                          .chat = (const chat_template *)e,
                          .engine = e,
                          .name = "fake",
                          .context_length = FAKE_CONTEXT,
                          .n_vocab = FAKE_VOCAB};
}

static void fake_engine_close(engine *e) {
    atomic_store(&e->quit, true);
    pthread_join(e->thread, NULL);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

/* --- engine.h --- */

status engine_submit(engine *e, engine_request *r) {
    const status s = (status)atomic_load(&e->submit_status);
    if (s != OK) return s;
    pthread_mutex_lock(&e->lock);
    assert(e->n_live < FAKE_MAX);
    e->live[e->n_live++] = (fake_live){.r = r};
    pthread_mutex_unlock(&e->lock);
    return OK;
}
void engine_wake(engine *e) {
    (void)e;
}
void engine_stop_all(engine *e) {
    atomic_store(&e->stop_all, true);
}
const backend_memory *engine_memory(const engine *e) {
    return &e->memory;
}
int engine_context_length(const engine *e) {
    return (void)e, FAKE_CONTEXT;
}
void engine_read_stats(const engine *e, engine_stats *out) {
    atomic_fetch_add(&((engine *)e)->n_looks, 1);
    *out = (engine_stats){.steps = atomic_load(&e->steps),
                          .generated_tokens = atomic_load(&e->tokens),
                          .heartbeat_ns = clock_now_ns() - atomic_load(&e->heart_age_ns),
                          .waiting = (uint32_t)atomic_load(&e->waiting),
                          .device_fault = atomic_load(&e->device_fault),
                          .tokens_per_s = 1000};
}

/* --- tokenizer.h: byte = token --- */

/* While it is shut, long texts are held in tokenizer_encode: whoever took one up does not come back
 * before it is opened. */
static struct fake_gate {
    _Atomic bool shut;
    _Atomic int n_inside;
} fake_gate;

static void fake_gate_pass(size_t n) {
    if (n < FAKE_HELD_BYTES || !atomic_load(&fake_gate.shut)) return;
    atomic_fetch_add(&fake_gate.n_inside, 1);
    while (atomic_load(&fake_gate.shut)) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    atomic_fetch_sub(&fake_gate.n_inside, 1);
}

status tokenizer_encode(const tokenizer *t, const text_part *parts, int n_parts, unsigned flags,
                        token_list *out) {
    (void)t;
    size_t n = 1;
    for (int i = 0; i < n_parts; i++) n += parts[i].len;
    fake_gate_pass(n);
    out->id = calloc(n, sizeof *out->id);
    out->start = out->with_offsets ? calloc(n, sizeof *out->start) : NULL;
    out->end = out->with_offsets ? calloc(n, sizeof *out->end) : NULL;
    uint32_t at = 0;
    if (flags & TOKENIZE_ADD_SPECIAL) out->id[out->n++] = FAKE_BOS;
    for (int i = 0; i < n_parts; i++)
        for (size_t k = 0; k < parts[i].len; k++, at++) {
            if (out->with_offsets) {
                out->start[out->n] = at;
                out->end[out->n] = at + 1;
            }
            out->id[out->n++] = (unsigned char)parts[i].s[k];
        }
    return OK;
}
void token_list_free(token_list *l) {
    free(l->id);
    free(l->start);
    free(l->end);
    *l = (token_list){0};
}
const char *tokenizer_piece(const tokenizer *t, int32_t id, bool keep_special, size_t *len) {
    static const char LONG[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    (void)t;
    if (id == FAKE_LONG) {
        *len = sizeof LONG - 1;
        return LONG;
    }
    if (id >= 256) {
        *len = keep_special ? 5 : 0;
        return id == FAKE_BOS ? "<bos>" : "<eos>";
    }
    *len = 1;
    return &fake_bytes[id];
}
token_type tokenizer_type(const tokenizer *t, int32_t id) {
    return (void)t, id >= 256 && id != FAKE_LONG ? TOKEN_CONTROL : TOKEN_NORMAL;
}
bool tokenizer_is_eog(const tokenizer *t, int32_t id) {
    return (void)t, id == FAKE_EOS;
}
int tokenizer_eog_ids(const tokenizer *t, const int32_t **ids) {
    static const int32_t eos[] = {FAKE_EOS};
    *ids = eos;
    return (void)t, 1;
}
int32_t tokenizer_bos(const tokenizer *t) {
    return (void)t, FAKE_BOS;
}
bool tokenizer_add_bos(const tokenizer *t) {
    return (void)t, true;
}
bool tokenizer_strips_leading_space(const tokenizer *t) {
    return (void)t, false;
}

/* --- chat.h --- */

bool chat_template_supports_tools(const chat_template *c) {
    return (void)c, false;
}
static _Atomic(const char *) fake_chat_error; /* NULL: another one */
status chat_render(const chat_template *c, const chat_request *r, chat_text *out, error *err) {
    (void)c, (void)out;
    const char *said = atomic_load(&fake_chat_error);
    if (said) return error_set(err, E_INVAL, "%s", said);
    return error_set(err, E_INVAL, "%d messages refused", r->n_messages);
}
void chat_text_free(chat_text *c) {
    (void)c;
}
#endif
