/* How many compute threads to use by default. Hyper-threads share the vector units and the caches
 * that these kernels fill, so one thread a core; in a container the CPU quota counts, not the
 * machine. */
#define _GNU_SOURCE /* sched_getaffinity, CPU_ISSET */
#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/pool.h"

/* One decimal number from a one-line file; -1 when it cannot be had. */
static int64_t read_number(const char *path) {
    FILE *f = fopen(path, "re");
    if (f == NULL) return -1;
    int64_t v = -1;
    if (fscanf(f, "%" SCNd64, &v) != 1) v = -1;
    fclose(f);
    return v;
}

static int64_t topology(int cpu, const char *what) {
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, what);
    return read_number(path);
}

/* cgroup v2: "max 100000" or "150000 100000" (microseconds of CPU a period). 0: no quota. */
static int quota_cores(void) {
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f == NULL) return 0;
    int64_t quota = 0, period = 0;
    const int n = fscanf(f, "%" SCNd64 " %" SCNd64, &quota, &period);
    fclose(f);
    if (n != 2 || quota <= 0 || period <= 0) return 0;
    const int64_t cores = (quota + period - 1) / period;
    return cores > POOL_THREADS_MAX ? POOL_THREADS_MAX : (int)cores;
}

int pool_default_threads(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    int64_t seen[POOL_THREADS_MAX];
    int n = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && n < POOL_THREADS_MAX; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &set)) continue;
        const int64_t core = topology(cpu, "core_id"),
                      package = topology(cpu, "physical_package_id");
        /* Without topology (some containers) every CPU counts as a core of its own. */
        const int64_t id = core < 0 ? INT64_MAX - cpu : package * 1000000 + core;
        bool known = false;
        for (int i = 0; i < n; i++) known = known || seen[i] == id;
        if (!known) seen[n++] = id;
    }
    const int quota = quota_cores();
    if (quota > 0 && n > quota) n = quota;
    return n < 1 ? 1 : n;
}
