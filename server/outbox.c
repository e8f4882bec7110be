/* A record in the ring is one word, or more when log-probabilities were asked for:
 *
 *   word 0: kind 8 | choice 8 | reason 8 | n_top 8 | token 32
 *   word 1: logprob 32 | rank 32                 (only when the request asks for logprobs)
 *   word 2..: token 32 | logprob 32, n_top times
 */
#include "server/outbox.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/* Steps whose tokens can arrive after `paused` was set: those in flight (pipeline_depth 2), the one
 * being planned, and one to spare. */
enum { STEPS_AFTER_PAUSE = 4, RING_WORDS_MIN = 256, RING_STEPS = 32 };

status mailbox_init(mailbox *m) {
    memset(m, 0, sizeof *m);
    return pthread_mutex_init(&m->lock, NULL) == 0 ? OK : E_NOMEM;
}

void mailbox_deinit(mailbox *m) {
    pthread_mutex_destroy(&m->lock);
}

void mailbox_signal(mailbox *m) {
    grpc_call *carrier = NULL;
    pthread_mutex_lock(&m->lock);
    if (m->ready && !m->signalled) {
        m->signalled = true;
        carrier =
            m->ready->rpc; /* lives while its outbox is in the list; the ref takes it further */
        grpc_call_ref(carrier);
    }
    pthread_mutex_unlock(&m->lock);
    if (!carrier) return;
    /* An empty batch posts its tag to the call's queue at once: the only wake-up gRPC core offers.
     */
    const grpc_call_error e = grpc_call_start_batch(carrier, NULL, 0, &m->wake, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
    grpc_call_unref(carrier);
}

struct outbox *mailbox_take(mailbox *m) {
    pthread_mutex_lock(&m->lock);
    outbox *list = m->ready;
    m->ready = NULL;
    m->signalled = false;
    for (outbox *o = list; o; o = o->next) {
        o->is_ready = false;
        o->ended = o->has_ended;
        o->next_taken = o->next; /* `next` is the engine's again from here on */
    }
    pthread_mutex_unlock(&m->lock);
    return list;
}

static uint32_t token_words(const engine_request *r) {
    return r->logprobs ? 2 + (uint32_t)r->n_top : 1;
}

status outbox_init(outbox *o, mailbox *box, engine_request *request, grpc_call *rpc, metrics *m,
                   void *owner) {
    memset(o, 0, sizeof *o);
    const uint32_t step_words = (uint32_t)request->n_choices * token_words(request);
    const uint32_t reserve =
        STEPS_AFTER_PAUSE * step_words + (uint32_t)request->n_choices; /* and FINISHED each */
    uint32_t n_words = RING_WORDS_MIN;
    while (n_words < reserve + RING_STEPS * step_words) n_words *= 2;
    o->ring = malloc(n_words * sizeof *o->ring);
    if (!o->ring) return E_NOMEM;
    o->n_words = n_words;
    o->n_reserve = reserve;
    o->box = box;
    o->request = request;
    o->rpc = rpc;
    o->metrics = m;
    o->owner = owner;
    return OK;
}

void outbox_deinit(outbox *o) {
    free(o->ring);
    o->ring = NULL;
}

/* --- engine thread --- */

static uint32_t free_words(const outbox *o) {
    return o->n_words - (atomic_load_explicit(&o->head, memory_order_relaxed) -
                         atomic_load_explicit(&o->tail, memory_order_acquire));
}

static void put_words(outbox *o, const uint64_t *words, uint32_t n) {
    assert(n <= free_words(o)); /* the reserve covers every step in flight: see STEPS_AFTER_PAUSE */
    const uint32_t head = atomic_load_explicit(&o->head, memory_order_relaxed);
    for (uint32_t i = 0; i < n; i++) o->ring[(head + i) & (o->n_words - 1)] = words[i];
    atomic_store_explicit(&o->head, head + n, memory_order_release);
    if (free_words(o) < o->n_reserve) atomic_store(&o->request->paused, true);
}

static uint64_t pack(int32_t low, float high) {
    uint32_t bits;
    memcpy(&bits, &high, sizeof bits);
    return (uint64_t)bits << 32 | (uint32_t)low;
}

static uint64_t word0(int kind, const engine_event *e, int n_top, int32_t token) {
    return (uint64_t)(uint32_t)token << 32 | (uint64_t)(n_top & 255) << 24 |
           (uint64_t)(e->reason & 255) << 16 | (uint64_t)(e->choice & 255) << 8 |
           (uint64_t)(kind & 255);
}

static void observe_token(outbox *o, int choice) {
    const int64_t now = clock_now_ns();
    int64_t *last = &o->last_token_ns[choice];
    if (*last != 0) histogram_observe(&o->metrics->inter_token_s, (double)(now - *last) * 1e-9);
    *last = now;
    if (atomic_load_explicit(&o->first_token_ns, memory_order_relaxed) == 0)
        atomic_store(&o->first_token_ns, now);
}

static void put_token(outbox *o, const engine_event *e) {
    uint64_t words[2 + LIMIT_TOP_LOGPROBS];
    const sampled *s = e->sampled;
    uint32_t n = 0;
    const int n_top = o->request->logprobs ? s->n_top : 0;
    words[n++] = word0(OUT_TOKEN, e, n_top, s->token);
    if (o->request->logprobs) words[n++] = pack(s->rank, s->logprob);
    for (int i = 0; i < n_top; i++) words[n++] = pack(s->top_token[i], s->top_logprob[i]);
    put_words(o, words, n);
    observe_token(o, e->choice);
}

static void put_prompt_row(outbox *o, const engine_event *e) {
    const sampled *s = e->sampled;
    const size_t n_top = (size_t)o->request->n_top;
    out_prompt_row *row = &o->prompt_rows[e->i_prompt];
    *row = (out_prompt_row){.rank = s->rank, .logprob = s->logprob, .n_top = s->n_top};
    for (int i = 0; i < s->n_top && (size_t)i < n_top; i++)
        o->prompt_tops[(size_t)e->i_prompt * n_top + (size_t)i] =
            (out_top){s->top_token[i], s->top_logprob[i]};
}

static void make_ready(outbox *o, const engine_event *end) {
    pthread_mutex_lock(&o->box->lock);
    if (end) {
        o->end = *end;
        o->end.sampled = NULL;
        o->has_ended = true;
    }
    if (!o->is_ready) {
        o->is_ready = true;
        o->next = o->box->ready;
        o->box->ready = o;
    }
    pthread_mutex_unlock(&o->box->lock);
}

void outbox_on_event(void *ctx, const engine_event *e) {
    outbox *o = ctx;
    mailbox *box = o->box;
    switch (e->kind) {
    case EVENT_STARTED:
        o->cached_tokens = e->cached_tokens;
        atomic_store_explicit(&o->started, true, memory_order_release);
        return; /* nothing to send yet */
    case EVENT_PROMPT:
        if (o->prompt_rows) put_prompt_row(o, e);
        return;
    case EVENT_TOKEN:
        put_token(o, e);
        make_ready(o, NULL);
        return;
    case EVENT_FINISHED: {
        const int32_t token = e->sampled ? e->sampled->token : -1;
        put_words(o, &(uint64_t){word0(OUT_FINISHED, e, 0, token)}, 1);
        make_ready(o, NULL);
        return;
    }
    case EVENT_ENDED:
        make_ready(o, e);    /* from here on o may be gone */
        mailbox_signal(box); /* an end may come without a step, and so without on_step */
        return;
    }
}

/* --- rpc thread --- */

bool outbox_next(outbox *o, out_event *out) {
    const uint32_t tail = atomic_load_explicit(&o->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&o->head, memory_order_acquire)) return false;
    const uint32_t mask = o->n_words - 1;
    const uint64_t w = o->ring[tail & mask];
    uint32_t n = 1;
    memset(out, 0, offsetof(out_event, top));
    out->kind = (w & 255) == OUT_TOKEN ? OUT_TOKEN : OUT_FINISHED;
    out->choice = (int)(w >> 8 & 255);
    out->reason = (finish_reason)(w >> 16 & 255);
    out->token = (int32_t)(w >> 32);
    if (out->kind == OUT_TOKEN && o->request->logprobs) {
        const uint64_t lp = o->ring[(tail + n++) & mask];
        const uint32_t bits = (uint32_t)(lp >> 32);
        memcpy(&out->logprob, &bits, sizeof bits);
        out->rank = (int32_t)(uint32_t)lp;
        out->n_top = (int)(w >> 24 & 255);
        for (int i = 0; i < out->n_top; i++) {
            const uint64_t t = o->ring[(tail + n++) & mask];
            const uint32_t top_bits = (uint32_t)(t >> 32);
            memcpy(&out->top[i].logprob, &top_bits, sizeof top_bits);
            out->top[i].token = (int32_t)(uint32_t)t;
        }
    }
    atomic_store_explicit(&o->tail, tail + n, memory_order_release);
    return true;
}
