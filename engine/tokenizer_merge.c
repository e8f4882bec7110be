/* Byte-pair merging: the adjacent pair of the lowest rank becomes one symbol, leftmost first among
 * equals, until no pair is in the vocabulary.
 *
 * Symbols live at the byte offset where they start and are linked by offset:
 *     "hello"   id: h . . . .   ->   he at 0, next 2;  l at 2, next 3; ...
 * Long words use a heap of (rank, offset). An entry is stale, and skipped, if the pair at its
 * offset has another rank by now. Short words (nearly all) look for the minimum by scanning. */
#include <assert.h>
#include <stdlib.h>

#include "engine/tokenizer_internal.h"

#define NO_RANK UINT32_MAX
enum { SHORT_WORD_SYMBOLS = 40 };

void merger_deinit(merger *m) {
    free(m->id);
    free(m->next);
    free(m->prev);
    free(m->rank);
    free(m->merged);
    free(m->heap);
    *m = (merger){0};
}

status merger_reserve(merger *m, size_t bytes) {
    if (bytes <= m->capacity) return OK;
    size_t capacity = m->capacity ? m->capacity : 64;
    while (capacity < bytes) capacity += capacity / 2;
    merger_deinit(m);
    m->id = malloc(capacity * sizeof *m->id);
    m->next = malloc(capacity * sizeof *m->next);
    m->prev = malloc(capacity * sizeof *m->prev);
    m->rank = malloc(capacity * sizeof *m->rank);
    m->merged = malloc(capacity * sizeof *m->merged);
    if (!m->id || !m->next || !m->prev || !m->rank || !m->merged) return E_NOMEM;
    m->capacity = capacity;
    return OK;
}

/* Looks up the pair at offset a. */
static void rank_pair(merger *m, const tokenizer *t, const char *word, size_t len, uint32_t a) {
    m->rank[a] = NO_RANK;
    const uint32_t b = m->next[a];
    if (b >= len || m->id[a] < 0 || m->id[b] < 0) return;
    if (!t->spm) {
        const merge_slot *slot = merge_table_find(&t->merges, m->id[a], m->id[b]);
        if (!slot) return;
        m->rank[a] = slot->rank;
        m->merged[a] = slot->id;
        return;
    }
    const size_t bytes = m->next[b] - a;
    if (bytes > t->piece_max) return;
    const int32_t id = string_index_find(&t->by_piece, &t->piece, word + a, bytes);
    if (id < 0) return;
    m->rank[a] = t->rank[id];
    m->merged[a] = id;
}

/* Joins the pair at offset a and looks up its two new pairs. Returns the offset before, or a. */
static uint32_t join_pair(merger *m, const tokenizer *t, const char *word, size_t len, size_t first,
                          uint32_t a) {
    const uint32_t b = m->next[a], c = m->next[b];
    m->id[a] = m->merged[a];
    m->rank[b] = NO_RANK; /* b is gone: an entry for it is stale */
    m->next[a] = c;
    if (c < len) m->prev[c] = a;
    rank_pair(m, t, word, len, a);
    if (a == first) return a;
    const uint32_t before = m->prev[a];
    rank_pair(m, t, word, len, before);
    return before;
}

static void merge_short(merger *m, const tokenizer *t, const char *word, size_t len, size_t first) {
    for (;;) {
        uint32_t best = 0, best_rank = NO_RANK;
        for (uint32_t a = (uint32_t)first; a < len; a = m->next[a]) {
            if (m->rank[a] < best_rank) {
                best_rank = m->rank[a];
                best = a;
            }
        }
        if (best_rank == NO_RANK) return;
        join_pair(m, t, word, len, first, best);
    }
}

static void sift_down(uint64_t *heap, size_t n, size_t i) {
    const uint64_t v = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= v) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = v;
}

static uint64_t heap_pop(merger *m) {
    const uint64_t top = m->heap[0];
    m->heap[0] = m->heap[--m->n_heap];
    sift_down(m->heap, m->n_heap, 0);
    return top;
}

static status heap_push(merger *m, uint32_t a) {
    if (m->rank[a] == NO_RANK) return OK;
    if (m->n_heap == m->heap_capacity) {
        const size_t capacity = m->heap_capacity ? 2 * m->heap_capacity : 256;
        uint64_t *heap = realloc(m->heap, capacity * sizeof *heap);
        if (!heap) return E_NOMEM;
        m->heap = heap;
        m->heap_capacity = capacity;
    }
    const uint64_t v = (uint64_t)m->rank[a] << 32 | a;
    size_t i = m->n_heap++;
    while (i > 0 && m->heap[(i - 1) / 2] > v) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = v;
    return OK;
}

static status merge_long(merger *m, const tokenizer *t, const char *word, size_t len,
                         size_t first) {
    m->n_heap = 0;
    status s = OK;
    for (uint32_t a = (uint32_t)first; a < len && s == OK; a = m->next[a]) s = heap_push(m, a);
    while (s == OK && m->n_heap > 0) {
        const uint64_t top = heap_pop(m);
        const uint32_t a = (uint32_t)top;
        if (m->rank[a] != (uint32_t)(top >> 32)) continue;
        const uint32_t before = join_pair(m, t, word, len, first, a);
        s = heap_push(m, a);
        if (s == OK && before != a) s = heap_push(m, before);
    }
    return s;
}

status merger_run(merger *m, const tokenizer *t, const char *word, size_t len, size_t first,
                  size_t n) {
    for (uint32_t a = (uint32_t)first; a < len; a = m->next[a]) rank_pair(m, t, word, len, a);
    if (n > SHORT_WORD_SYMBOLS) return merge_long(m, t, word, len, first);
    merge_short(m, t, word, len, first);
    return OK;
}
