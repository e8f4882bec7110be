#include <stdlib.h>
#include <string.h>

#include "engine/gguf_priv.h"

void name_table_init(name_table *t) {
    *t = (name_table){0};
    random_bytes(t->key, sizeof t->key);
}

void name_table_deinit(name_table *t) {
    free(t->slots);
    *t = (name_table){0};
}

/* The slot that holds name, or the empty one where it belongs. */
static name_slot *find_slot(const name_table *t, gguf_str name) {
    size_t i = (size_t)hash_siphash128(t->key, name.s, name.len).lo & (t->n_slots - 1);
    for (;; i = (i + 1) & (t->n_slots - 1)) {
        name_slot *slot = &t->slots[i];
        if (slot->index < 0) return slot;
        if (slot->name.len == name.len && memcmp(slot->name.s, name.s, name.len) == 0) return slot;
    }
}

static status grow(name_table *t) {
    name_table bigger = *t;
    bigger.n_slots = t->n_slots == 0 ? 64 : t->n_slots * 2;
    bigger.slots = malloc(bigger.n_slots * sizeof *bigger.slots);
    if (bigger.slots == NULL) return E_NOMEM;
    for (size_t i = 0; i < bigger.n_slots; i++) bigger.slots[i].index = -1;
    for (size_t i = 0; i < t->n_slots; i++)
        if (t->slots[i].index >= 0) *find_slot(&bigger, t->slots[i].name) = t->slots[i];
    free(t->slots);
    *t = bigger;
    return OK;
}

status name_table_add(name_table *t, gguf_str name, int index) {
    if (t->n_used * 2 >= t->n_slots) { /* at most half full: short probes */
        const status s = grow(t);
        if (s != OK) return s;
    }
    name_slot *slot = find_slot(t, name);
    if (slot->index >= 0) return E_EXISTS;
    *slot = (name_slot){name, index};
    t->n_used++;
    return OK;
}

int name_table_find(const name_table *t, gguf_str name) {
    return t->n_slots == 0 ? -1 : find_slot(t, name)->index;
}
