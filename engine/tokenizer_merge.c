/* Byte-pair merging: the adjacent pair of the lowest rank becomes one symbol, leftmost first among
 * equals, until no pair is in the vocabulary.
 *
 * Symbols live at the byte offset where they start and are linked by offset:
 *     "hello"   id: h . . . .   ->   he at 0, next 2;  l at 2, next 3; ...
 * Long words use a queue of (rank, offset). An entry is stale, and skipped, if the pair at its
 * offset has another rank by now. Short words (nearly all) look for the minimum by scanning. */
#include <assert.h>
#include <stdlib.h>

#include "engine/tokenizer_internal.h"

enum { SHORT_WORD_SYMBOLS = 40 };

void merger_deinit(merger *m) {
    free(m->symbols);
    free(m->pairs);
    free(m->left_bytes);
    merge_queue_close(m->queue);
    *m = (merger){0};
}

status merger_reserve(merger *m, size_t bytes) {
    if (bytes <= m->capacity) return OK;
    const size_t capacity = bytes > 4096 ? bytes : 2 * bytes + 64;
    free(m->symbols);
    free(m->pairs);
    m->symbols = malloc(capacity * sizeof *m->symbols);
    m->pairs = malloc(capacity * sizeof *m->pairs);
    m->capacity = m->symbols && m->pairs ? capacity : 0;
    return m->capacity ? OK : E_NOMEM;
}

typedef struct word_merge {
    symbol *v;
    symbol_pair *pair;
    const tokenizer *t;
    const char *word;
    uint32_t len, first;
    uint16_t *left_bytes; /* NULL: the vocabulary has no unused pieces */
} word_merge;

/* The pair at offset a: its rank, and the token that it becomes. */
static uint32_t look_up(const word_merge *w, uint32_t a, int32_t *id) {
    const symbol *v = w->v;
    const uint32_t b = v[a].next;
    if (b >= w->len) return NO_RANK;
    if (!w->t->spm) { /* every symbol has an id */
        const merge_slot *slot = merge_table_find(&w->t->merges, v[a].id, v[b].id);
        if (!slot) return NO_RANK;
        *id = slot->id;
        return slot->rank;
    }
    /* By text alone: a piece may consist of characters that are no tokens themselves. */
    const size_t bytes = v[b].next - a;
    if (bytes > w->t->piece_max) return NO_RANK;
    *id = string_index_find(&w->t->by_piece, &w->t->piece, w->word + a, bytes);
    return *id < 0 ? NO_RANK : w->t->rank[*id];
}

/* As look_up, for a pair that has just come about: an unused piece is taken apart again in the end,
 * where its last such pair met. */
static uint32_t new_pair(const word_merge *w, uint32_t a) {
    int32_t id;
    const uint32_t rank = look_up(w, a, &id);
    if (w->left_bytes && rank != NO_RANK && w->t->type[id] == TOKEN_UNUSED)
        w->left_bytes[id] = (uint16_t)(w->v[a].next - a);
    return rank;
}

/* Joins the pair at offset a and looks up its two new pairs. Returns the offset before, or a. */
static uint32_t join_pair(const word_merge *w, uint32_t a) {
    symbol *v = w->v;
    const uint32_t b = v[a].next, c = v[b].next;
    int32_t id = -1;
    (void)look_up(w, a, &id);
    assert(id >= 0);
    v[a].id = id;
    w->pair[b].rank = NO_RANK; /* b is gone: an entry for it is stale */
    v[a].next = c;
    if (c < w->len) w->pair[c].prev = a;
    const uint32_t before = a == w->first ? a : w->pair[a].prev;
    if (before != a) w->pair[before].rank = new_pair(w, before);
    w->pair[a].rank = new_pair(w, a);
    return before;
}

static void merge_short(const word_merge *w) {
    for (;;) {
        uint32_t best = 0, best_rank = NO_RANK;
        for (uint32_t a = w->first; a < w->len; a = w->v[a].next) {
            if (w->pair[a].rank < best_rank) {
                best_rank = w->pair[a].rank;
                best = a;
            }
        }
        if (best_rank == NO_RANK) return;
        join_pair(w, best);
    }
}

static status push(merge_queue *q, const word_merge *w, uint32_t a) {
    return w->pair[a].rank == NO_RANK ? OK : merge_queue_push(q, w->pair[a].rank, a);
}

static status merge_long(merge_queue *q, const word_merge *w) {
    status s = OK;
    merge_queue_reset(q);
    for (uint32_t a = w->first; a < w->len && s == OK; a = w->v[a].next) s = push(q, w, a);
    uint32_t rank, a;
    while (s == OK && merge_queue_pop(q, &rank, &a, &s)) {
        if (w->pair[a].rank != rank) continue;
        const uint32_t before = join_pair(w, a);
        s = push(q, w, a);
        if (s == OK && before != a) s = push(q, w, before);
    }
    return s;
}

status merger_run(merger *m, const tokenizer *t, const char *word, size_t len, size_t first,
                  size_t n) {
    if (t->unused_pieces && !m->left_bytes) {
        m->left_bytes = calloc((size_t)t->n_vocab, sizeof *m->left_bytes);
        if (!m->left_bytes) return E_NOMEM;
    }
    const word_merge w = {m->symbols,      m->pairs,     t, word, (uint32_t)len,
                          (uint32_t)first, m->left_bytes};
    for (uint32_t a = w.first; a < w.len; a = w.v[a].next) w.pair[a].rank = new_pair(&w, a);
    if (n <= SHORT_WORD_SYMBOLS) {
        merge_short(&w);
        return OK;
    }
    if (!m->queue && merge_queue_open(&m->queue) != OK) return E_NOMEM;
    return merge_long(m->queue, &w);
}
