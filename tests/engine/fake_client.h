/* A caller of the engine: one request, what came of it, and the checks that every stream of events
 * must pass (STARTED first, nothing after a choice's FINISHED, ENDED once and last). */
#ifndef INFERD_TESTS_ENGINE_FAKE_CLIENT_H
#define INFERD_TESTS_ENGINE_FAKE_CLIENT_H

#include <pthread.h>

#include "engine/engine.h"
#include "tests/engine/fake_backend.h"

enum { CLIENT_TOKENS_MAX = 2048, CLIENT_EOG = 7 };

typedef struct client_output {
    int n;
    int32_t token[CLIENT_TOKENS_MAX];
    float logprob[CLIENT_TOKENS_MAX];
    finish_reason reason; /* FINISH_NONE: not finished */
    int32_t stop_token;
} client_output;

typedef struct client {
    engine_request request;
    int32_t prompt[CLIENT_TOKENS_MAX];
    client_output out[LIMIT_CHOICES];
    int n_prompt_scores;
    float prompt_score[CLIENT_TOKENS_MAX];
    bool started;
    int cached_tokens, preemptions;
    engine_end end;
    request_phase phase;
    /* Called on the engine thread after the event was noted; may be NULL. */
    void (*hook)(struct client *c, const engine_event *e);
    int hook_arg;

    pthread_mutex_t lock; /* guards ended */
    pthread_cond_t changed;
    bool ended;
} client;

/* A greedy request for max_tokens after n_prompt pseudo-random tokens of seed. */
void client_init(client *c, int n_prompt, int max_tokens, unsigned seed);
void client_deinit(client *c);
/* Until ENDED; false after WAIT_LIMIT_S. */
bool client_wait(client *c);
bool client_ended(client *c);
/* Forgets the outcome, so that the request can be submitted once more. */
void client_reset(client *c);

/* 32 sequences, steps of 64 tokens, prefix cache, CLIENT_EOG ends. */
engine_options client_options(int block_tokens, int kv_blocks);
/* Submits all, waits for all, then for the engine to be idle; false when any of it fails. */
bool client_run_all(engine *e, client *c, int n);
/* The same, but the engine is started in between: it finds all of them waiting. */
bool client_start_with_all(engine *e, client *c, int n);

/* An engine around b (taken), not started, and started; never NULL. */
engine *client_engine_unstarted(backend *b, const engine_options *o, int context_length);
engine *client_engine_on(backend *b, const engine_options *o, int context_length);
/* Around a fake backend of its own. */
engine *client_engine(const fake_options *f, const engine_options *o, int context_length);
/* Waits until no request lives, every block is free and the engine rests: then its numbers, which
 * it publishes one by one, are all as the last request left them. False after WAIT_LIMIT_S. */
bool client_engine_idle(engine *e);
#endif
