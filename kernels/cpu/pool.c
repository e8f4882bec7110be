/* The whole state of a run is one 64-bit word, so that claiming a task is one compare-and-swap:
 *
 *   63 ......... 40 | 39 ....... 20 | 19 ........ 0
 *      generation   |    n_tasks    |  next task
 *
 * A thread that has claimed a task owns it, and the caller does not return (nor touch fn and ctx)
 * before every task has been counted in `done`. So a worker that was preempted or is parked can be
 * late without holding anyone up: the caller simply does its tasks. Parking: a worker counts
 * itself in `parked` and looks at the word again, under the lock; the caller publishes the word and
 * then looks at `parked`. Both are sequentially consistent, so one of them sees the other. */
#include "kernels/cpu/pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* A worker without a task spins for about 100 us, longer than the gaps inside a step that has its
 * cores to itself; then it yields, for about a millisecond of CPU, to whoever wants its core; then
 * it parks. Where threads outnumber cores (a server's rpc threads, a client beside it) the caller
 * is off its core longer than that spin in every token, and a park and a wake-up, with the caller
 * and the woken worker meeting on the lock, cost more than the yields: see
 * docs/results/cpu-speed.md.
 */
enum { SPINS_BEFORE_YIELD = 2500, YIELDS_BEFORE_PARK = 5000, CALLER_SPINS_BEFORE_YIELD = 2000 };

typedef struct worker {
    pool *p;
    int i_thread;
    pthread_t thread;
} worker;

struct pool {
    _Alignas(64) _Atomic uint64_t word;
    _Alignas(64) _Atomic int done; /* finished tasks of this generation */
    _Alignas(64) _Atomic int parked;
    _Atomic bool stop;
    pool_task *fn; /* stable while a task of the generation is unfinished */
    void *ctx;
    pthread_mutex_t lock; /* guards nothing but the wait for a new word */
    pthread_cond_t wake;
    int n_threads;
    worker workers[];
};

static void pause_cpu(void) {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static int word_next(uint64_t w) {
    return (int)(w & POOL_TASKS_MAX);
}

static int word_n_tasks(uint64_t w) {
    return (int)((w >> 20) & POOL_TASKS_MAX);
}

/* Does tasks until none is left to claim. */
static void work(pool *p, int i_thread) {
    uint64_t w = atomic_load_explicit(&p->word, memory_order_acquire);
    while (word_next(w) < word_n_tasks(w)) {
        if (!atomic_compare_exchange_weak_explicit(&p->word, &w, w + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        p->fn(p->ctx, word_next(w), i_thread);
        atomic_fetch_add_explicit(&p->done, 1, memory_order_release);
        w = atomic_load_explicit(&p->word, memory_order_acquire);
    }
}

static bool has_work(pool *p) {
    const uint64_t w = atomic_load(&p->word);
    return word_next(w) < word_n_tasks(w);
}

static void park(pool *p) {
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->parked, 1);
    while (!has_work(p) && !atomic_load(&p->stop)) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->parked, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg) {
    const worker *me = arg;
    pool *p = me->p;
    int idle = 0;
    while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
        if (has_work(p)) {
            work(p, me->i_thread);
            idle = 0;
        } else if (++idle < SPINS_BEFORE_YIELD) {
            pause_cpu();
        } else if (idle < SPINS_BEFORE_YIELD + YIELDS_BEFORE_PARK) {
            sched_yield();
        } else {
            park(p);
            idle = 0;
        }
    }
    return NULL;
}

void pool_run(pool *p, int n_tasks, pool_task *fn, void *ctx) {
    assert(n_tasks >= 0 && n_tasks <= POOL_TASKS_MAX);
    if (n_tasks == 0) return;
    if (n_tasks == 1 || p->n_threads == 1) {
        for (int i = 0; i < n_tasks; i++) fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    const uint64_t generation = (atomic_load_explicit(&p->word, memory_order_relaxed) >> 40) + 1;
    atomic_store(&p->word, generation << 40 | (uint64_t)n_tasks << 20);
    if (atomic_load(&p->parked) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    work(p, 0);
    for (int spins = 0; atomic_load_explicit(&p->done, memory_order_acquire) < n_tasks; spins++) {
        if (spins < CALLER_SPINS_BEFORE_YIELD) {
            pause_cpu();
        } else {
            sched_yield(); /* the thread that holds the last task may need this very core */
        }
    }
}

int pool_n_threads(const pool *p) {
    return p->n_threads;
}

static void join_workers(pool *p, int n_started) {
    atomic_store(&p->stop, true);
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < n_started; i++) pthread_join(p->workers[i].thread, NULL);
}

status pool_open(int n_threads, pool **out, error *err) {
    if (n_threads < 1 || n_threads > POOL_THREADS_MAX)
        return error_set(err, E_INVAL, "threads: %d is not in 1..%d", n_threads, POOL_THREADS_MAX);
    const size_t bytes = sizeof(pool) + (size_t)n_threads * sizeof(worker);
    pool *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL) return error_set(err, E_NOMEM, "thread pool: %zu bytes", bytes);
    atomic_init(&p->word, 0);
    atomic_init(&p->done, 0);
    atomic_init(&p->parked, 0);
    atomic_init(&p->stop, false);
    p->fn = NULL;
    p->ctx = NULL;
    p->n_threads = n_threads;
    if (pthread_mutex_init(&p->lock, NULL) != 0) goto fail_lock;
    if (pthread_cond_init(&p->wake, NULL) != 0) goto fail_wake;
    int n_started = 0;
    for (; n_started < n_threads - 1; n_started++) {
        worker *w = &p->workers[n_started];
        *w = (worker){.p = p, .i_thread = n_started + 1};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) goto fail_threads;
    }
    *out = p;
    return OK;

fail_threads:
    join_workers(p, n_started);
    pthread_cond_destroy(&p->wake);
fail_wake:
    pthread_mutex_destroy(&p->lock);
fail_lock:
    free(p);
    return error_set(err, E_NOMEM, "thread pool: cannot start %d threads", n_threads);
}

void pool_close(pool *p) {
    if (p == NULL) return;
    join_workers(p, p->n_threads - 1);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
