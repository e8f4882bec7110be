#include "server/worker.h"

#include <pthread.h>
#include <stdlib.h>

enum { THREADS = 2, QUEUE = 64 };

typedef struct job {
    void (*run)(void *arg);
    void *arg;
} job;

struct worker {
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t woken;
    job queue[QUEUE];
    unsigned head, tail; /* free-running; tail is the next to run */
    bool stop;
    int n_threads;
    pthread_t thread[THREADS];
};

static bool next_job(worker *w, job *out) {
    pthread_mutex_lock(&w->lock);
    while (w->head == w->tail && !w->stop) pthread_cond_wait(&w->woken, &w->lock);
    const bool found = w->head != w->tail;
    if (found) *out = w->queue[w->tail++ % QUEUE];
    pthread_mutex_unlock(&w->lock);
    return found;
}

static void *worker_main(void *arg) {
    job j;
    while (next_job(arg, &j)) j.run(j.arg);
    return NULL;
}

status worker_open(worker **out) {
    worker *w = calloc(1, sizeof *w);
    if (!w) return E_NOMEM;
    pthread_mutex_init(&w->lock, NULL); /* neither fails with default attributes on Linux */
    pthread_cond_init(&w->woken, NULL);
    for (; w->n_threads < THREADS; w->n_threads++)
        if (pthread_create(&w->thread[w->n_threads], NULL, worker_main, w) != 0) {
            worker_close(w);
            return E_NOMEM;
        }
    *out = w;
    return OK;
}

void worker_close(worker *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->woken);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->n_threads; i++) pthread_join(w->thread[i], NULL);
    pthread_cond_destroy(&w->woken);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

bool worker_push(worker *w, void (*run)(void *arg), void *arg) {
    pthread_mutex_lock(&w->lock);
    const bool room = w->head - w->tail < QUEUE;
    if (room) w->queue[w->head++ % QUEUE] = (job){run, arg};
    pthread_cond_signal(&w->woken);
    pthread_mutex_unlock(&w->lock);
    return room;
}
