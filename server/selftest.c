#include "server/selftest.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

enum { N_PROMPT = 10, N_OUT = 4, WAIT_S = 60 };

/* Prompts whose continuation every sound backend agrees on: at each step the best token is at least
 * two nats ahead of the next, far beyond what formats and summation orders can move. */
typedef struct answer {
    const char *digest; /* the file's SHA-256 */
    int32_t prompt[N_PROMPT], out[N_OUT];
} answer;

static const answer ANSWERS[] = {
    /* SmolLM2-135M-Instruct Q4_1: "a b c d e f g h i j" -> " k l m n" */
    {"b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
     {81, 278, 265, 287, 297, 275, 310, 294, 2056, 544},
     {501, 303, 283, 304}},
};

static const answer *answer_of(const char *digest) {
    for (size_t i = 0; i < sizeof ANSWERS / sizeof *ANSWERS; i++)
        if (strcmp(ANSWERS[i].digest, digest) == 0) return &ANSWERS[i];
    return NULL;
}

typedef struct run {
    engine_request request;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t ended;
    int32_t out[N_OUT];
    int n_out;
    bool has_ended;
    engine_end end;
} run;

static void on_event(void *ctx, const engine_event *e) {
    run *r = ctx;
    pthread_mutex_lock(&r->lock);
    if (e->kind == EVENT_TOKEN && r->n_out < N_OUT) r->out[r->n_out++] = e->sampled->token;
    if (e->kind == EVENT_ENDED) {
        r->end = e->end;
        r->has_ended = true;
        pthread_cond_signal(&r->ended);
    }
    pthread_mutex_unlock(&r->lock);
}

static status wait_end(run *r) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += WAIT_S;
    int e = 0;
    pthread_mutex_lock(&r->lock);
    while (!r->has_ended && e == 0) e = pthread_cond_timedwait(&r->ended, &r->lock, &until);
    const bool ended = r->has_ended;
    pthread_mutex_unlock(&r->lock);
    return ended ? OK : E_STATE;
}

/* E_STATE: the engine still holds r. */
static status run_once(engine *e, run *r, const int32_t *prompt) {
    r->request = (engine_request){.prompt = prompt,
                                  .n_prompt = N_PROMPT,
                                  .max_tokens = N_OUT,
                                  .n_choices = 1,
                                  .seed = 1,
                                  .ignore_eos = true,
                                  .deadline_ns = TIME_NEVER,
                                  .time_limit_ns = TIME_NEVER,
                                  .on_event = on_event,
                                  .ctx = r};
    const status s = engine_submit(e, &r->request);
    return s != OK ? E_INTERNAL : wait_end(r);
}

static run *run_open(void) {
    run *r = calloc(1, sizeof *r);
    pthread_condattr_t a;
    if (!r) return NULL;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&r->ended, &a);
    pthread_condattr_destroy(&a);
    return r;
}

static void run_close(run *r) {
    if (!r) return;
    pthread_cond_destroy(&r->ended);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

static status compare(const run *a, const run *b, const answer *known, error *err) {
    if (a->end == END_DEVICE || b->end == END_DEVICE)
        return error_set(err, E_DEVICE, "the device failed in the known-answer test");
    if (a->end == END_NOT_FINITE || b->end == END_NOT_FINITE)
        return error_set(err, E_INTERNAL, "known-answer test: the model's output is not finite");
    if (a->n_out != N_OUT || b->n_out != N_OUT)
        return error_set(err, E_INTERNAL, "known-answer test: %d and %d tokens instead of %d",
                         a->n_out, b->n_out, N_OUT);
    if (memcmp(a->out, b->out, sizeof a->out) != 0)
        return error_set(err, E_INTERNAL,
                         "known-answer test: two equal runs gave different tokens");
    if (known && memcmp(known->out, a->out, sizeof a->out) != 0)
        return error_set(err, E_INTERNAL,
                         "known-answer test: %d,%d,%d,%d are not this model's tokens", a->out[0],
                         a->out[1], a->out[2], a->out[3]);
    return OK;
}

status selftest_run(engine *e, int n_vocab, const char *digest, error *err) {
    const answer *known = answer_of(digest);
    int32_t prompt[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = known ? known->prompt[i] : (int32_t)((int64_t)n_vocab * (2 * i + 1) / 32);
    run *a = run_open(), *b = run_open();
    status s = a && b ? OK : error_set(err, E_NOMEM, "known-answer test: out of memory");
    if (s == OK) s = run_once(e, a, prompt);
    if (s == OK) s = run_once(e, b, prompt);
    if (s == OK) {
        s = compare(a, b, known, err);
    } else if (s == E_STATE) {
        /* The engine keeps the request, and the process ends: its memory must stay. */
        return error_set(err, E_STATE, "known-answer test: no answer in %d s", WAIT_S);
    } else if (s == E_INTERNAL) {
        error_set(err, s, "known-answer test: the engine refused the request");
    }
    run_close(a);
    run_close(b);
    return s;
}
