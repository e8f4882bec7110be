/* A backend without a model that checks the engine's books. Its KV memory holds, for each position,
 * the token written there and a hash of the whole history up to it. Every row verifies the history
 * it attends to, position by position, before it draws; what it draws depends on that history, the
 * seed and the position only. So any block given twice, freed too early, matched wrongly or copied
 * too late either aborts here or changes a token. */
#ifndef INFERD_TESTS_ENGINE_FAKE_BACKEND_H
#define INFERD_TESTS_ENGINE_FAKE_BACKEND_H

#include "kernels/backend.h"

typedef struct fake_options {
    int depth;               /* pipeline_depth: 1 or 2 */
    int kv_blocks;           /* used when reserve() asks for 0 */
    int step_us;             /* a step takes this long */
    int fault_step;          /* wait_step of this step (from 1) reports E_DEVICE; 0: never */
    bool no_load, no_memory; /* load() refuses with E_UNSUPPORTED, reserve() with E_NOMEM */
    int nan_token;           /* a row that has this token in its history is not finite; 0: none */
    void (*in_step)(void *ctx); /* if not NULL, called in every wait_step (fake_gate.h) */
    void *in_step_ctx;
} fake_options;

enum { FAKE_VOCAB = 97 };

backend *fake_backend_open(const fake_options *o);
/* Steps so far. Any thread. */
long fake_backend_steps(const backend *b);
/* Everything in the KV memory goes bad: rows that attend to any of it are not finite. While no step
 * runs. */
void fake_backend_corrupt(backend *b);
/* What the engine needs to know of it. */
model_desc fake_model_desc(int context_length);
/* The token a greedy row draws after history[0, n). */
int fake_greedy(const int *history, int n);
#endif
