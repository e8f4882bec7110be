/* A persistent team of compute threads. One caller at a time hands it a number of tasks; the caller
 * works too, and returns when all tasks are done. Between calls workers spin for a short while,
 * then yield, then park. Thread: pool_run from one thread at a time; tasks run on any of the team.
 */
#ifndef INFERD_KERNELS_CPU_POOL_H
#define INFERD_KERNELS_CPU_POOL_H

#include "base/status.h"

enum { POOL_THREADS_MAX = 256, POOL_TASKS_MAX = (1 << 20) - 1 };

typedef struct pool pool;

/* Does task i_task of a run; i_thread (0: the caller) is below pool_n_threads: for scratch memory.
 */
typedef void pool_task(void *ctx, int i_task, int i_thread);

/* n_threads 1..POOL_THREADS_MAX, the caller included. E_NOMEM when memory or threads are out. */
status pool_open(int n_threads, pool **out, error *err);
int pool_n_threads(const pool *p);
/* n_tasks 0..POOL_TASKS_MAX. Tasks are taken in order, one by one, by whichever thread is free. */
void pool_run(pool *p, int n_tasks, pool_task *fn, void *ctx);
void pool_close(pool *p); /* NULL is legal */

/* Physical cores that this process may use: its affinity mask with hyper-threads counted once, and
 * no more than a cgroup v2 CPU quota allows (rounded up). At least 1. */
int pool_default_threads(void);
#endif
