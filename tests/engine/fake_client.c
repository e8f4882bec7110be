#include "tests/engine/fake_client.h"

#include <assert.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "tests/wait.h"

static void note_token(client *c, const engine_event *e) {
    client_output *o = &c->out[e->choice];
    assert(o->reason == FINISH_NONE && o->n < CLIENT_TOKENS_MAX && e->sampled->finite);
    o->logprob[o->n] = e->sampled->logprob;
    o->token[o->n++] = e->sampled->token;
}

static void note_finish(client *c, const engine_event *e) {
    client_output *o = &c->out[e->choice];
    assert(o->reason == FINISH_NONE && e->reason != FINISH_NONE);
    o->reason = e->reason;
    o->stop_token = e->sampled != NULL ? e->sampled->token : -1;
    assert((e->sampled != NULL) == (e->reason == FINISH_STOP_TOKEN));
}

static void note_end(client *c, const engine_event *e) {
    if (e->end == END_FINISHED)
        for (int i = 0; i < c->request.n_choices; i++) assert(c->out[i].reason != FINISH_NONE);
    c->end = e->end;
    c->phase = e->phase;
    c->preemptions = e->preemptions;
    assert(c->started == (e->admitted_ns > 0) || e->end == END_FINISHED);
}

static void on_event(void *ctx, const engine_event *e) {
    client *c = ctx;
    assert(!c->ended); /* ENDED is the last */
    switch (e->kind) {
    case EVENT_STARTED:
        assert(!c->started);
        c->started = true;
        c->cached_tokens = e->cached_tokens;
        break;
    case EVENT_PROMPT:
        assert(c->started && e->i_prompt == c->n_prompt_scores + 1 && c->out[0].n == 0);
        assert(e->sampled->token == c->prompt[e->i_prompt]);
        c->prompt_score[++c->n_prompt_scores] = e->sampled->logprob;
        break;
    case EVENT_TOKEN:
        note_token(c, e);
        break;
    case EVENT_FINISHED:
        note_finish(c, e);
        break;
    case EVENT_ENDED:
        note_end(c, e);
        break;
    }
    if (c->hook != NULL) c->hook(c, e);
    if (e->kind != EVENT_ENDED) return;
    pthread_mutex_lock(&c->lock);
    c->ended = true;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

void client_init(client *c, int n_prompt, int max_tokens, unsigned seed) {
    assert(n_prompt <= CLIENT_TOKENS_MAX);
    memset(c, 0, sizeof *c);
    uint64_t x = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    for (int i = 0; i < n_prompt; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        c->prompt[i] = (int32_t)((x >> 33) % FAKE_VOCAB);
    }
    c->request.prompt = c->prompt;
    c->request.n_prompt = n_prompt;
    c->request.max_tokens = max_tokens;
    c->request.n_choices = 1;
    c->request.seed = seed;
    c->request.deadline_ns = TIME_NEVER;
    c->request.time_limit_ns = TIME_NEVER;
    c->request.on_event = on_event;
    c->request.ctx = c;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
}

void client_deinit(client *c) {
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
}

bool client_wait(client *c) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += WAIT_LIMIT_S;
    pthread_mutex_lock(&c->lock);
    int late = 0;
    while (!c->ended && late == 0) late = pthread_cond_timedwait(&c->changed, &c->lock, &t);
    const bool ended = c->ended;
    pthread_mutex_unlock(&c->lock);
    return ended;
}

bool client_ended(client *c) {
    pthread_mutex_lock(&c->lock);
    const bool ended = c->ended;
    pthread_mutex_unlock(&c->lock);
    return ended;
}

void client_reset(client *c) {
    memset(c->out, 0, sizeof c->out);
    c->n_prompt_scores = 0;
    c->started = c->ended = false;
    c->cached_tokens = c->preemptions = 0;
    atomic_store(&c->request.stop, 0);
    atomic_store(&c->request.choices_done, 0);
    atomic_store(&c->request.paused, false);
    memset(&c->request.priv, 0, sizeof c->request.priv);
}

engine *client_engine(const fake_options *f, const engine_options *o, int context_length) {
    return client_engine_on(fake_backend_open(f), o, context_length);
}

engine *client_engine_unstarted(backend *b, const engine_options *o, int context_length) {
    const model_desc d = fake_model_desc(context_length);
    engine *e = NULL;
    error err;
    const status s = engine_open(b, &d, o, NULL, NULL, &e, &err);
    assert(s == OK);
    (void)s;
    return e;
}

engine *client_engine_on(backend *b, const engine_options *o, int context_length) {
    engine *e = client_engine_unstarted(b, o, context_length);
    error err;
    const status s = engine_start(e, &err);
    assert(s == OK);
    (void)s;
    return e;
}

bool client_engine_idle(engine *e) {
    engine_stats s;
    int64_t end_ns = 0;
    do {
        engine_read_stats(e, &s);
        if (s.running == 0 && s.waiting == 0 && s.kv_blocks_free == s.kv_blocks_total && !s.busy)
            return true;
    } while (wait_more(&end_ns));
    return false;
}

engine_options client_options(int block_tokens, int kv_blocks) {
    static const int32_t eog[] = {CLIENT_EOG};
    return (engine_options){.max_sequences = 32,
                            .max_step_tokens = 64,
                            .kv_blocks = kv_blocks,
                            .kv_block_tokens = block_tokens,
                            .kv_type = -1,
                            .prefix_cache = true,
                            .eog_ids = eog,
                            .n_eog_ids = 1};
}

static bool submit_all(engine *e, client *c, int n) {
    for (int i = 0; i < n; i++)
        if (engine_submit(e, &c[i].request) != OK) return false;
    return true;
}

static bool wait_all(engine *e, client *c, int n) {
    for (int i = 0; i < n; i++)
        if (!client_wait(&c[i])) return false;
    return client_engine_idle(e);
}

bool client_run_all(engine *e, client *c, int n) {
    return submit_all(e, c, n) && wait_all(e, c, n);
}

bool client_start_with_all(engine *e, client *c, int n) {
    error err;
    return submit_all(e, c, n) && engine_start(e, &err) == OK && wait_all(e, c, n);
}
