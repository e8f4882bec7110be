#include "server/ids.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

enum { BUCKETS = 4096 }; /* chained: any number of calls fits, and 4,096 keep chains at one */

struct id_table {
    pthread_mutex_t lock; /* guards everything below */
    uint64_t key[2];      /* ids come from outside: nobody shall choose collisions */
    int n;
    ids_entry *bucket[BUCKETS];
};

status ids_open(id_table **out) {
    id_table *t = calloc(1, sizeof *t);
    if (!t) return E_NOMEM;
    if (pthread_mutex_init(&t->lock, NULL) != 0) {
        free(t);
        return E_NOMEM;
    }
    random_bytes(t->key, sizeof t->key);
    *out = t;
    return OK;
}

void ids_close(id_table *t) {
    if (!t) return;
    pthread_mutex_destroy(&t->lock);
    free(t);
}

static ids_entry **find(id_table *t, uint64_t hash, uint64_t tenant, const char *id) {
    ids_entry **at = &t->bucket[hash % BUCKETS];
    while (*at && !((*at)->hash == hash && (*at)->tenant == tenant && strcmp((*at)->id, id) == 0))
        at = &(*at)->next;
    return at;
}

static uint64_t hash_of(const id_table *t, const char *id) {
    return hash_siphash128(t->key, id, strlen(id)).lo;
}

status ids_add(id_table *t, ids_entry *e) {
    e->hash = hash_of(t, e->id);
    pthread_mutex_lock(&t->lock);
    ids_entry **at = find(t, e->hash, e->tenant, e->id);
    const status s = *at ? E_EXISTS : OK;
    if (s == OK) {
        e->next = NULL;
        *at = e;
        t->n++;
    }
    pthread_mutex_unlock(&t->lock);
    return s;
}

void ids_remove(id_table *t, ids_entry *e) {
    pthread_mutex_lock(&t->lock);
    ids_entry **at = find(t, e->hash, e->tenant, e->id);
    if (*at == e) {
        *at = e->next;
        t->n--;
    }
    pthread_mutex_unlock(&t->lock);
}

bool ids_abort(id_table *t, uint64_t tenant, const char *id) {
    const uint64_t hash = hash_of(t, id);
    pthread_mutex_lock(&t->lock);
    ids_entry *e = *find(t, hash, tenant, id);
    if (e) atomic_fetch_or(&e->request->stop, STOP_ABORT);
    pthread_mutex_unlock(&t->lock);
    return e != NULL;
}
