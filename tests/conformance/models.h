/* Inside of the models suite. */
#ifndef INFERD_TESTS_CONFORMANCE_MODELS_H
#define INFERD_TESTS_CONFORMANCE_MODELS_H

#include "rig.h"
#include "suites.h"

enum { PROMPTS_MAX = 16, TOP = 20 };

typedef struct top_entry {
    int pos, n;
    int32_t *ids;
    double *logprobs;
} top_entry;

typedef struct prompt {
    int32_t *ids, *greedy;
    double *margins;
    float *last_logits;
    top_entry *top;
    int n, n_greedy, n_margins, n_logits, n_top;
} prompt;

/* One JSON file: a model, a context size, prompts with their answers. */
typedef struct model_case {
    char name[96], path[1024];
    int n_ctx, n_prompts;
    prompt prompts[PROMPTS_MAX];
} model_case;

/* Options for a rig that holds every prompt of the case, n_copies times. */
rig_options models_rig_options(const suite_context *c, const model_case *m, int kv_block_tokens,
                               bool deterministic);
/* Property tests: the same bits however the work is cut. */
void models_check_bits(const suite_context *c, const model_case *m);

/* log(sum(exp(x))) in double. */
double log_sum_exp(const float *x, int n);
int argmax(const float *x, int n); /* lowest id among equals */
#endif
