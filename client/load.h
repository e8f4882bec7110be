/* A load on a server: many streams over several connections, from a few threads, each with its own
 * completion queue. Closed loop (a number of streams) or open loop (a rate, Poisson arrivals).
 * Thread: main. */
#ifndef INFERD_CLIENT_LOAD_H
#define INFERD_CLIENT_LOAD_H

#include <stdatomic.h>

#include "client/histogram.h"
#include "client/rpc.h"

typedef struct length_pair {
    uint32_t prompt, output;
} length_pair;

/* Lengths of request i: pairs[i % n_pairs], else uniform in the ranges. */
typedef struct load_lengths {
    uint32_t prompt_min, prompt_max, output_min, output_max; /* tokens, >= 1 */
    length_pair *pairs;                                      /* owned, or NULL */
    size_t n_pairs;
} load_lengths;

typedef struct load_plan {
    const rpc_options *rpc;
    int n_threads, n_connections; /* n_connections >= n_threads >= 1 */
    int n_streams;                /* closed loop */
    double rate_per_s;            /* > 0: open loop */
    uint64_t n_requests;          /* UINT64_MAX: until duration_s */
    double duration_s;            /* no request starts later; 0: no limit */
    double timeout_s;             /* of each call; 0: none */
    load_lengths lengths;
    uint32_t vocab_size;
    uint32_t shared_prefix; /* tokens that all prompts begin with */
    uint64_t seed;
    float temperature;
} load_plan;

typedef struct load_result {
    double wall_s;
    uint64_t started, ok, failed, cut; /* cut: OK with fewer tokens than asked for */
    uint64_t prompt_tokens, output_tokens, messages;
    uint64_t by_code[17];
    char first_failure[256];
    histogram first_token, inter_token, request;
} load_result;

typedef struct load_progress { /* read by main while it runs */
    _Atomic uint64_t ended, output_tokens;
    _Atomic bool stop; /* set: cancel everything */
} load_progress;

/* Runs the plan to its end. `watch` is called about ten times a second on the calling thread. */
void load_run(const load_plan *p, load_result *out, load_progress *progress,
              void (*watch)(void *ctx, load_progress *progress, double elapsed_s), void *ctx);

/* Lengths of request i, equal for equal seeds. */
length_pair load_lengths_of(const load_plan *p, uint64_t i);
#endif
