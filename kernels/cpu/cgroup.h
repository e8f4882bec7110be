/* What the process's cgroup (v2) and those above it allow. A limit stands wherever it was set: at
 * the root of a container's own view, or in a service's folder far below. `mount` is where cgroups
 * are mounted, `own` the process's folder below it ("/" in most containers). Thread: any. */
#ifndef INFERD_KERNELS_CPU_CGROUP_H
#define INFERD_KERNELS_CPU_CGROUP_H

#include <stdint.h>

enum { CGROUP_PATH_MAX = 1024 };
#define CGROUP_MOUNT "/sys/fs/cgroup"

/* The folder named by /proc/self/cgroup; "/" when it names none. */
void cgroup_own(char out[CGROUP_PATH_MAX]);
/* Lowers *total to the smallest memory.max and *available to the least that is left under one.
 * Pages of files count as free: the kernel takes them back first, and a model that was just
 * downloaded or hashed is nothing but such pages. */
void cgroup_limit_memory(const char *mount, const char *own, uint64_t *total, uint64_t *available);
/* The smallest CPU quota in whole cores, rounded up; 0: none. */
int cgroup_quota_cores(const char *mount, const char *own);
#endif
