/* The engine's own state, shared by engine.c (the loop), engine_open.c (start and end) and
 * engine_stats.c. */
#ifndef INFERD_ENGINE_ENGINE_PRIVATE_H
#define INFERD_ENGINE_ENGINE_PRIVATE_H

#include <pthread.h>

#include "engine/sched.h"
#include "engine/submit.h"

enum { ENGINE_DEPTH_MAX = 2 };

/* Written by the engine thread, read by any; all relaxed. */
typedef struct live_stats {
    _Atomic uint32_t running, kv_blocks_free, kv_blocks_cached;
    _Atomic uint64_t steps, prompt_tokens, generated_tokens, cached_prompt_tokens, preemptions;
    _Atomic uint64_t stalled_steps, finished, cancelled, failed;
    _Atomic int64_t last_step_ns, heartbeat_ns;
    _Atomic uint64_t milli_tokens_per_s;
    _Atomic bool busy, device_fault;
} live_stats;

struct engine {
    backend *backend; /* owned */
    int n_layers, context, depth;
    engine_options options;
    int32_t *eog; /* owned [limits.n_eog] */
    seq_limits limits;
    backend_memory memory;
    int64_t (*now)(void);

    /* engine thread */
    kv_pool kv;
    sched sched;
    plan plan[ENGINE_DEPTH_MAX]; /* used in turn */
    sampled *result;             /* owned [n_samples_max] */
    unsigned n_launched;         /* steps so far */
    int n_in_flight;             /* of them, the newest not waited for */
    int64_t launched_ns[ENGINE_DEPTH_MAX], last_result_ns;
    int64_t rate_since_ns; /* the rate's window began, idle time taken out */
    uint64_t rate_tokens;  /* with this many tokens generated */
    int64_t idle_since_ns; /* when it was last busy; 0: never */

    /* shared */
    submit_queue submit;
    live_stats stats;
    atomic_bool draining, quit;
    pthread_t thread;
    bool started, submit_open;
};

/* Undoes engine_open; the thread has ended. */
void engine_free(engine *e);

void stats_alive(engine *e, int64_t now_ns, bool busy);
void stats_step(engine *e, int64_t now_ns);
void stats_publish(engine *e);
#endif
