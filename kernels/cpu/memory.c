#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise */
#include "kernels/cpu/memory.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "kernels/cpu/cgroup.h"

#define HUGE_PAGE ((size_t)2 << 20)

memory memory_map(size_t bytes) {
    memory m = {0};
    size_t want = 0;
    if (bytes == 0 || !checked_add_size(bytes, 2 * HUGE_PAGE, &want)) return m;
    void *p = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) return m;
    const uintptr_t at = ((uintptr_t)p + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    m = (memory){.base = (void *)at, .bytes = bytes, .map = p, .map_bytes = want};
    /* Best effort: 4 KiB pages work too, with more TLB misses. */
    (void)madvise(m.base, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return m;
}

void memory_unmap(memory *m) {
    if (m->map != NULL) munmap(m->map, m->map_bytes);
    *m = (memory){0};
}

void memory_share(uint64_t *total, uint64_t *available) {
    *total = *available = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    if (f != NULL) {
        char line[128];
        uint64_t kib;
        while (fgets(line, sizeof line, f) != NULL) {
            if (sscanf(line, "MemTotal: %" SCNu64, &kib) == 1) *total = kib * 1024;
            if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1) *available = kib * 1024;
        }
        fclose(f);
    }
    char own[CGROUP_PATH_MAX];
    cgroup_own(own);
    cgroup_limit_memory(CGROUP_MOUNT, own, total, available);
}

void *memory_take(memory_cursor *c, size_t n, size_t size) {
    size_t bytes = 0, end = 0;
    const bool ok = checked_mul_size(n, size, &bytes) && checked_add_size(bytes, 63, &bytes) &&
                    checked_add_size(c->used, bytes / 64 * 64, &end);
    assert(ok);
    void *p = c->base != NULL ? c->base + c->used : NULL;
    c->used = end;
    return p;
}
