/* How many compute threads to use by default. Hyper-threads share the vector units and the caches
 * that these kernels fill, so one thread a core; in a container the CPU quota counts, not the
 * machine. */
#define _GNU_SOURCE /* sched_getaffinity, CPU_ISSET */
#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/cgroup.h"
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
    char own[CGROUP_PATH_MAX];
    cgroup_own(own);
    const int quota = cgroup_quota_cores(CGROUP_MOUNT, own);
    if (quota > 0 && n > quota) n = quota;
    return n < 1 ? 1 : n;
}
