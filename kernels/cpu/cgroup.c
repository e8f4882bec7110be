#include "kernels/cpu/cgroup.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef void visit_fn(void *ctx, const char *folder);

/* Own folder first, the mount last. A folder that is not there (another namespace's) is harmless:
 * none of its files can be read. */
static void walk_up(const char *mount, const char *own, visit_fn *visit, void *ctx) {
    char folder[CGROUP_PATH_MAX + 64];
    const int n = snprintf(folder, sizeof folder, "%s%s", mount, own);
    if (n < 0 || (size_t)n >= sizeof folder) return;
    const size_t mount_bytes = strlen(mount);
    for (size_t len = (size_t)n;; len = (size_t)(strrchr(folder, '/') - folder)) {
        folder[len] = '\0';
        if (len > mount_bytes && folder[len - 1] == '/') continue; /* "/" itself */
        visit(ctx, folder);
        if (len <= mount_bytes) return;
    }
}

static FILE *open_file(const char *folder, const char *name) {
    char path[CGROUP_PATH_MAX + 128];
    const int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    return n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
}

static bool read_u64(const char *folder, const char *name, uint64_t *out) {
    FILE *f = open_file(folder, name);
    if (f == NULL) return false;
    const bool ok = fscanf(f, "%" SCNu64, out) == 1; /* "max": no number, no limit */
    fclose(f);
    return ok;
}

static uint64_t file_pages_bytes(const char *folder) {
    FILE *f = open_file(folder, "memory.stat");
    uint64_t sum = 0, v = 0;
    char line[128];
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "inactive_file %" SCNu64, &v) == 1 ||
            sscanf(line, "active_file %" SCNu64, &v) == 1)
            sum += v;
    if (f != NULL) fclose(f);
    return sum;
}

typedef struct memory_room {
    uint64_t *total, *available;
} memory_room;

static void limit_memory(void *ctx, const char *folder) {
    const memory_room *room = ctx;
    uint64_t limit = 0, used = 0;
    if (!read_u64(folder, "memory.max", &limit) || !read_u64(folder, "memory.current", &used))
        return;
    if (limit < *room->total) *room->total = limit;
    const uint64_t files = file_pages_bytes(folder), kept = used > files ? used - files : 0;
    const uint64_t left = limit > kept ? limit - kept : 0;
    if (left < *room->available) *room->available = left;
}

void cgroup_limit_memory(const char *mount, const char *own, uint64_t *total, uint64_t *available) {
    memory_room room = {total, available};
    walk_up(mount, own, limit_memory, &room);
}

/* cpu.max: "max 100000" or "150000 100000", microseconds of CPU a period. */
static void limit_cores(void *ctx, const char *folder) {
    int *cores = ctx;
    int64_t quota = 0, period = 0;
    FILE *f = open_file(folder, "cpu.max");
    if (f == NULL) return;
    const int n = fscanf(f, "%" SCNd64 " %" SCNd64, &quota, &period);
    fclose(f);
    if (n != 2 || quota <= 0 || period <= 0) return;
    const int64_t c = quota / period + (quota % period != 0);
    if (c < INT_MAX && (*cores == 0 || c < *cores)) *cores = (int)c;
}

int cgroup_quota_cores(const char *mount, const char *own) {
    int cores = 0;
    walk_up(mount, own, limit_cores, &cores);
    return cores;
}

void cgroup_own(char out[CGROUP_PATH_MAX]) {
    char line[CGROUP_PATH_MAX];
    (void)snprintf(out, CGROUP_PATH_MAX, "/");
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (f == NULL) return;
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::/", 4) == 0) (void)snprintf(out, CGROUP_PATH_MAX, "%s", line + 3);
    }
    fclose(f);
}
