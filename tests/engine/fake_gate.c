#include "tests/engine/fake_gate.h"

#include <limits.h>

#include "tests/wait.h"

void fake_gate_init(fake_gate *g) {
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->n_entered = g->n_allowed = 0;
}

void fake_gate_deinit(fake_gate *g) {
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
}

void fake_gate_pass(void *gate) {
    fake_gate *g = gate;
    pthread_mutex_lock(&g->lock);
    const long i = ++g->n_entered;
    while (i > g->n_allowed) pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static void allow(fake_gate *g, long n_allowed) {
    g->n_allowed = n_allowed;
    pthread_cond_broadcast(&g->changed);
}

void fake_gate_let(fake_gate *g, long n) {
    pthread_mutex_lock(&g->lock);
    allow(g, g->n_allowed + n);
    pthread_mutex_unlock(&g->lock);
}

void fake_gate_open(fake_gate *g) {
    pthread_mutex_lock(&g->lock);
    allow(g, LONG_MAX);
    pthread_mutex_unlock(&g->lock);
}

void fake_gate_close(fake_gate *g) {
    pthread_mutex_lock(&g->lock);
    allow(g, g->n_entered);
    pthread_mutex_unlock(&g->lock);
}

bool fake_gate_holds(fake_gate *g) {
    pthread_mutex_lock(&g->lock);
    const bool holds = g->n_entered > g->n_allowed;
    pthread_mutex_unlock(&g->lock);
    return holds;
}

void fake_gate_wait_held(fake_gate *g) {
    WAIT_UNTIL(fake_gate_holds(g));
}
