/* kernels/cpu/pool.c: every task once, from any number of threads, spinning,
 * yielding or parked; and idle workers do park. */
#include <stdatomic.h>
#include <time.h>

#include "kernels/cpu/pool.h"
#include "tests/check_main.h"

enum { N_MAX = 5000 };

typedef struct tally {
    _Atomic int count[N_MAX];
    _Atomic int wrong_thread;
    int n_threads;
} tally;

static tally t;

static void count_task(void *ctx, int i_task, int i_thread) {
    tally *x = ctx;
    atomic_fetch_add(&x->count[i_task], 1);
    if (i_thread < 0 || i_thread >= x->n_threads) atomic_fetch_add(&x->wrong_thread, 1);
}

static void run_and_check(pool *p, int n) {
    pool_run(p, n, count_task, &t);
    for (int i = 0; i < n; i++) {
        ck_assert_int_eq(atomic_load(&t.count[i]), 1);
        atomic_store(&t.count[i], 0);
    }
    ck_assert_int_eq(atomic_load(&t.wrong_thread), 0);
}

START_TEST(every_task_runs_once) {
    const int threads[] = {1, 2, 3, 8};
    pool *p = NULL;
    ck_assert_int_eq(pool_open(threads[_i], &p, NULL), OK);
    ck_assert_int_eq(pool_n_threads(p), threads[_i]);
    t.n_threads = threads[_i];
    for (int n = 0; n < 40; n++) run_and_check(p, n);
    for (int k = 0; k < 2000; k++) run_and_check(p, k % 7);
    run_and_check(p, N_MAX);
    for (int k = 0; k < 10; k++) { /* 1 ms: they yield; 20 ms: long enough to park */
        nanosleep(&(struct timespec){.tv_nsec = k % 2 ? 20000000 : 1000000}, NULL);
        run_and_check(p, 100);
    }
    pool_close(p);
}
END_TEST

static double cpu_ms_of_a_nap(void) {
    struct timespec from, to;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    return 1e3 * (double)(to.tv_sec - from.tv_sec) + 1e-6 * (double)(to.tv_nsec - from.tv_nsec);
}

/* On a busy machine the yields take their time, so they are waited for. */
START_TEST(idle_workers_park) {
    pool *p = NULL;
    ck_assert_int_eq(pool_open(4, &p, NULL), OK);
    t.n_threads = 4;
    run_and_check(p, 100);
    double cpu_ms = cpu_ms_of_a_nap();
    for (int i = 0; i < 100 && cpu_ms > 1; i++) cpu_ms = cpu_ms_of_a_nap();
    ck_assert_double_le(cpu_ms, 1);
    pool_close(p);
}
END_TEST

START_TEST(bounds_are_checked) {
    pool *p = NULL;
    error e;
    ck_assert_int_eq(pool_open(0, &p, &e), E_INVAL);
    ck_assert_int_eq(pool_open(POOL_THREADS_MAX + 1, &p, &e), E_INVAL);
    ck_assert_ptr_null(p);
    pool_close(NULL);
    ck_assert_int_ge(pool_default_threads(), 1);
    ck_assert_int_le(pool_default_threads(), POOL_THREADS_MAX);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("pool");
    tcase_add_loop_test(tc, every_task_runs_once, 0, 4);
    tcase_add_test(tc, idle_workers_park);
    tcase_add_test(tc, bounds_are_checked);
    return check_run("pool", tc);
}
