/* Steps that end when the test says so. The gate stands in a fake backend's wait_step: a step that
 * reaches it closed is held there, with everything before it done and nothing after it begun. */
#ifndef INFERD_TESTS_ENGINE_FAKE_GATE_H
#define INFERD_TESTS_ENGINE_FAKE_GATE_H

#include <pthread.h>
#include <stdbool.h>

typedef struct fake_gate {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    long n_entered, n_allowed; /* steps that came here, and that may pass */
} fake_gate;

/* Closed. */
void fake_gate_init(fake_gate *g);
void fake_gate_deinit(fake_gate *g);
/* fake_options.in_step, with the gate as its ctx. */
void fake_gate_pass(void *gate);
/* n steps more may pass. */
void fake_gate_let(fake_gate *g, long n);
void fake_gate_open(fake_gate *g);
/* The next step is held. While no step runs. */
void fake_gate_close(fake_gate *g);
bool fake_gate_holds(fake_gate *g);
/* Until a step is held; the test fails if none comes. */
void fake_gate_wait_held(fake_gate *g);
#endif
