/* A budgeted bump allocator: a request's transient memory, freed in one call.
 * Thread: one owner at a time. Allocation beyond the budget returns NULL, never aborts. */
#ifndef INFERD_BASE_ARENA_H
#define INFERD_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

typedef struct arena_chunk arena_chunk;

typedef struct arena {
    arena_chunk *chunks; /* owned, newest first */
    size_t used_bytes;   /* handed out, alignment included */
    size_t budget_bytes; /* used_bytes never passes it */
} arena;

void arena_init(arena *a, size_t budget_bytes);
/* 16-byte aligned, uninitialised; NULL when the budget or memory is out, or bytes is 0. */
void *arena_alloc(arena *a, size_t bytes);
/* Zeroed; NULL also when n * size overflows. */
void *arena_calloc(arena *a, size_t n, size_t size);
/* A NUL-terminated copy of s[0..len). NULL as arena_alloc. */
char *arena_strndup(arena *a, const char *s, size_t len);
/* Frees everything; the arena can be used again with the same budget. */
void arena_reset(arena *a);
#endif
