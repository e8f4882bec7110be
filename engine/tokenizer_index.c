/* Hash tables of the tokenizer: linear probing at a load of at most one half. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "engine/tokenizer_internal.h"

static uint64_t mix(uint64_t a, uint64_t b) {
    const unsigned __int128 p = (unsigned __int128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint64_t hash_bytes(uint64_t seed, const char *s, size_t len) {
    uint64_t h = seed ^ mix(len, UINT64_C(0x9E3779B97F4A7C15));
    while (len > 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = mix(h ^ w, UINT64_C(0xA0761D6478BD642F) ^ seed);
        s += 8;
        len -= 8;
    }
    uint64_t w = 0;
    memcpy(&w, s, len);
    return mix(h ^ w, UINT64_C(0xE7037ED1A0B428DB) ^ seed);
}

/* A power of two, at least 2 n. */
static size_t table_slots(size_t n) {
    size_t slots = 16;
    while (slots < 2 * n) slots *= 2;
    return slots;
}

static uint64_t random_seed(void) {
    uint64_t seed;
    random_bytes(&seed, sizeof seed);
    return seed;
}

status string_index_init(string_index *x, size_t n) {
    const size_t slots = table_slots(n);
    x->slots = calloc(slots, sizeof *x->slots);
    if (!x->slots) return E_NOMEM;
    x->mask = slots - 1;
    x->seed = random_seed();
    return OK;
}

void string_index_deinit(string_index *x) {
    free(x->slots);
    x->slots = NULL;
}

/* The slot that holds the string, or the free one where it belongs. */
static uint64_t *find_slot(const string_index *x, const string_list *l, const char *s, size_t len,
                           uint64_t h) {
    const uint32_t tag = (uint32_t)(h >> 32);
    for (size_t i = (size_t)h & x->mask;; i = (i + 1) & x->mask) {
        uint64_t *slot = &x->slots[i];
        if (*slot == 0) return slot;
        if ((uint32_t)(*slot >> 32) != tag) continue;
        size_t n;
        const char *other = string_at(l, (int32_t)(uint32_t)*slot - 1, &n);
        if (n == len && memcmp(other, s, n) == 0) return slot;
    }
}

uint64_t string_index_hash(const string_index *x, const char *s, size_t len) {
    return hash_bytes(x->seed, s, len);
}

void string_index_fetch(const string_index *x, const string_list *l, uint64_t hash, int stage) {
    const uint64_t *slot = &x->slots[hash & x->mask];
    if (stage == 0) {
        __builtin_prefetch(slot);
        return;
    }
    if (*slot == 0) return;
    const uint32_t *start = &l->start[(uint32_t)*slot - 1];
    if (stage == 1) {
        __builtin_prefetch(start);
    } else {
        __builtin_prefetch(l->bytes + *start);
    }
}

int32_t string_index_find_hashed(const string_index *x, const string_list *l, const char *s,
                                 size_t len, uint64_t hash) {
    return (int32_t)(uint32_t)*find_slot(x, l, s, len, hash) - 1;
}

int32_t string_index_find(const string_index *x, const string_list *l, const char *s, size_t len) {
    return string_index_find_hashed(x, l, s, len, hash_bytes(x->seed, s, len));
}

int string_index_add(string_index *x, const string_list *l, const int32_t *ids, int n,
                     int32_t *other) {
    uint64_t hash[INDEX_BATCH];
    assert(n <= INDEX_BATCH);
    for (int i = 0; i < n; i++) {
        size_t len;
        const char *s = string_at(l, ids[i], &len);
        hash[i] = hash_bytes(x->seed, s, len);
        string_index_fetch(x, l, hash[i], 0);
    }
    for (int i = 0; i < n; i++) {
        size_t len;
        const char *s = string_at(l, ids[i], &len);
        uint64_t *slot = find_slot(x, l, s, len, hash[i]);
        if (*slot != 0) {
            *other = (int32_t)(uint32_t)*slot - 1;
            return i;
        }
        *slot = (hash[i] >> 32) << 32 | ((uint32_t)ids[i] + 1);
    }
    return n;
}

status merge_table_init(merge_table *m, size_t n) {
    const size_t slots = table_slots(n);
    m->slots = calloc(slots, sizeof *m->slots);
    if (!m->slots) return E_NOMEM;
    m->mask = slots - 1;
    m->seed = random_seed();
    return OK;
}

void merge_table_deinit(merge_table *m) {
    free(m->slots);
    m->slots = NULL;
}

static size_t merge_home(const merge_table *m, uint32_t l, uint32_t r) {
    const uint64_t h = mix(((uint64_t)l << 32 | r) ^ m->seed, UINT64_C(0x9E3779B97F4A7C15));
    return (size_t)h & m->mask;
}

static merge_slot *merge_slot_of(const merge_table *m, int32_t left, int32_t right) {
    const uint32_t l = (uint32_t)left + 1, r = (uint32_t)right;
    for (size_t i = merge_home(m, l, r);; i = (i + 1) & m->mask) {
        merge_slot *slot = &m->slots[i];
        if (slot->left == 0 || (slot->left == l && slot->right == r)) return slot;
    }
}

void merge_table_fetch(const merge_table *m, int32_t left, int32_t right) {
    __builtin_prefetch(&m->slots[merge_home(m, (uint32_t)left + 1, (uint32_t)right)], 1);
}

void merge_table_add(merge_table *m, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    merge_slot *slot = merge_slot_of(m, left, right);
    if (slot->left != 0) return;
    *slot = (merge_slot){(uint32_t)left + 1, (uint32_t)right, rank, id};
}

const merge_slot *merge_table_find(const merge_table *m, int32_t left, int32_t right) {
    const merge_slot *slot = merge_slot_of(m, left, right);
    return slot->left ? slot : NULL;
}
