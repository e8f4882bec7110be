/* The scheduler in simulation: virtual clock, seeded clients, a cost model for the device, and the
 * checking backend of fake_backend.h. One thread; the same seed gives the same run. */
#ifndef INFERD_TESTS_ENGINE_FAKE_SIM_H
#define INFERD_TESTS_ENGINE_FAKE_SIM_H

#include "engine/sched.h"
#include "tests/engine/fake_client.h"

enum { SIM_ERROR_MAX = 200 };

typedef struct sim_options {
    int depth, kv_blocks, block_tokens, max_sequences, max_step_tokens, context;
    bool prefix_cache;
    int n_clients;
    int arrivals_percent; /* a step sees a newcomer with this probability */
    bool floods, stalls, cancels, deadlines, giants, priorities;
    int n_accounts, account_blocks_max; /* clients are spread over them; 0: none */
} sim_options;

typedef struct sim {
    sim_options o;
    kv_pool kv;
    sched sched;
    plan plan[2];
    sampled *result;
    backend *backend;
    seq_limits limits;
    uint64_t random;
    int64_t now_ns;
    unsigned n_launched;
    int n_in_flight;
    int64_t launched_ns[2];

    client *client;     /* [n_clients] */
    int *stop_after;    /* [n_clients] steps until its stop is set; -1: never */
    int64_t *resume_ns; /* [n_clients] when a paused one reads on */
    int *stopped_for;   /* [n_clients] boundaries since its stop was set */
    int n_arrived, n_ended;

    long n_steps, n_stalled, n_oldest_waited; /* steps since the oldest running one got on */
    uint64_t oldest_age;
    int64_t oldest_mark;
    int n_pushed_out_max;
    long n_pinned; /* steps with a pinned sequence */
    bool had_pinned;
    long n_passed_by, n_account_full; /* steps in which somebody was, or an account was */
    long phases[3], ends[8];
    uint64_t hash;             /* of every event and every plan */
    char error[SIM_ERROR_MAX]; /* first broken invariant, or "" */
} sim;

void sim_open(sim *s, const sim_options *o, uint64_t seed);
/* One boundary and at most one launch and one result. False: all clients have ended, or error. */
bool sim_step(sim *s);
/* Until all clients have ended; false and s->error when an invariant breaks or max_steps pass. */
bool sim_run(sim *s, long max_steps);
void sim_close(sim *s);
#endif
