/* Large zeroed memory straight from the system, and how much of it this process may have.
 * Thread: any. */
#ifndef INFERD_KERNELS_CPU_MEMORY_H
#define INFERD_KERNELS_CPU_MEMORY_H

#include <stddef.h>
#include <stdint.h>

typedef struct memory {
    void *base; /* 2 MiB aligned, zeroed; pages cost nothing until touched. NULL: nothing */
    size_t bytes;
    void *map; /* what munmap wants */
    size_t map_bytes;
} memory;

/* bytes > 0. base is NULL when the system refuses. Asks for huge pages. */
memory memory_map(size_t bytes);
void memory_unmap(memory *m); /* legal when empty */

/* The RAM of the machine, or of a cgroup around the process when that is less; and what of it is
 * free. */
void memory_share(uint64_t *total, uint64_t *available);

/* A bump allocator over one mapping whose size was counted first. */
typedef struct memory_cursor {
    uint8_t *base; /* NULL: only counts */
    size_t used;
} memory_cursor;

/* The next n * size bytes, 64-byte aligned; NULL while counting. Aborts on overflow: shapes are
 * bounded by the caller. */
void *memory_take(memory_cursor *c, size_t n, size_t size);
#endif
