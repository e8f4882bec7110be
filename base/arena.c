#include "base/arena.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum { ARENA_ALIGN = 16, ARENA_CHUNK_BYTES = 4096 };

struct arena_chunk {
    arena_chunk *next;
    size_t used, size; /* of data[] */
    _Alignas(ARENA_ALIGN) unsigned char data[];
};

void arena_init(arena *a, size_t budget_bytes) {
    *a = (arena){.chunks = NULL, .used_bytes = 0, .budget_bytes = budget_bytes};
}

void *arena_alloc(arena *a, size_t bytes) {
    size_t need;
    if (bytes == 0 || !checked_add_size(bytes, ARENA_ALIGN - 1, &need)) return NULL;
    need &= ~(size_t)(ARENA_ALIGN - 1);
    if (need > a->budget_bytes - a->used_bytes) return NULL;

    arena_chunk *c = a->chunks;
    if (c == NULL || c->size - c->used < need) {
        const size_t size = need > ARENA_CHUNK_BYTES ? need : ARENA_CHUNK_BYTES;
        size_t total;
        if (!checked_add_size(size, sizeof *c, &total)) return NULL;
        c = malloc(total);
        if (c == NULL) return NULL;
        *c = (arena_chunk){.next = a->chunks, .used = 0, .size = size};
        a->chunks = c;
    }
    void *p = c->data + c->used;
    c->used += need;
    a->used_bytes += need;
    return p;
}

void *arena_calloc(arena *a, size_t n, size_t size) {
    size_t bytes;
    if (!checked_mul_size(n, size, &bytes)) return NULL;
    void *p = arena_alloc(a, bytes);
    if (p != NULL) memset(p, 0, bytes);
    return p;
}

char *arena_strndup(arena *a, const char *s, size_t len) {
    size_t bytes;
    if (!checked_add_size(len, 1, &bytes)) return NULL;
    char *p = arena_alloc(a, bytes);
    if (p == NULL) return NULL;
    if (len > 0) memcpy(p, s, len);
    p[len] = '\0';
    return p;
}

void arena_reset(arena *a) {
    for (arena_chunk *c = a->chunks; c != NULL;) {
        arena_chunk *next = c->next;
        free(c);
        c = next;
    }
    a->chunks = NULL;
    a->used_bytes = 0;
}
