/* The KV pool's bookkeeping: which block belongs to whom, and which blocks hold what text. It never
 * sees the cache itself: the backend owns that memory, this owns the numbers.
 *
 * A block is in exactly one place:
 *
 *   unused ----take----> owned (refs > 0) ----give----> unused        nothing worth keeping
 *                          |      ^                \--> idle (LRU)    published: content reusable
 *                       publish   share <------------- idle           found by the next prompt
 *   idle ----take (when none is unused)----> owned                    evicted, oldest first
 *
 * Prefix cache: a full block is known by the whole history that ends in it. Its key is a keyed hash
 * chained over (space, parent, tokens), where the space stands for (tenant, salt). A hash only
 * finds candidates; a hit also compares the space, the tokens, and the parent by serial number.
 * Serial numbers are never used twice, so equality of histories follows by induction, whatever the
 * hash does. A child is given back before its parent, so LRU evicts leaves first.
 *
 * Thread: one owner (the engine). Memory: all of it at init; nothing else allocates. */
#ifndef INFERD_ENGINE_KV_H
#define INFERD_ENGINE_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"

typedef int32_t block_id;
#define BLOCK_NONE (-1)

enum { KV_BLOCK_TOKENS_MAX = 64 };

typedef struct kv_block {
    hash128 hash, space;
    uint64_t serial, parent; /* serial 0: not published */
    int32_t refs;            /* block tables that contain it */
    int32_t holds;           /* planned copies that still have to read it */
    block_id prev, next;     /* idle: LRU list; unused: next only */
    block_id bucket_next;
} kv_block;

typedef struct kv_pool {
    int n_blocks, block_tokens;
    int n_unused, n_idle; /* free = unused + idle */
    bool prefix_cache;
    uint64_t key[2];
    uint64_t hash_mask; /* tests narrow it to force collisions; else all ones */
    uint64_t last_serial, n_evicted;
    kv_block *block;  /* owned [n_blocks] */
    int32_t *tokens;  /* owned [n_blocks, block_tokens], of published blocks */
    block_id *bucket; /* owned [bucket_mask + 1] */
    uint32_t bucket_mask;
    block_id unused_head, idle_head, idle_tail; /* idle_head is evicted first */
} kv_pool;

/* A position in the tree of histories: everything up to and including one full block. */
typedef struct kv_chain {
    hash128 space, hash;
    uint64_t serial; /* of the block that ends here; 0: the empty history */
} kv_chain;

/* block_tokens: 16, 32 or 64. key: secret, from random_bytes. E_NOMEM. */
BASE_MUST_USE status kv_pool_init(kv_pool *p, int n_blocks, int block_tokens, const uint64_t key[2],
                                  bool prefix_cache);
void kv_pool_deinit(kv_pool *p);

static inline int kv_free(const kv_pool *p) {
    return p->n_unused + p->n_idle;
}

/* A block with one reference and no content; kv_free() > 0. */
block_id kv_take(kv_pool *p);
/* One more, one fewer table has it. */
void kv_share(kv_pool *p, block_id id);
void kv_give(kv_pool *p, block_id id);
/* Keeps a copy's source from being taken until the copy has been queued. */
void kv_hold(kv_pool *p, block_id id);
void kv_unhold(kv_pool *p, block_id id);
/* False: in another table too, or published. Its owner must copy it before writing. */
static inline bool kv_writable(const kv_pool *p, block_id id) {
    return p->block[id].refs == 1 && p->block[id].serial == 0;
}
static inline bool kv_idle(const kv_pool *p, block_id id) {
    return p->block[id].refs == 0 && p->block[id].holds == 0;
}

/* The empty history of (tenant, salt). */
kv_chain kv_chain_root(const kv_pool *p, uint64_t tenant, const void *salt, int salt_bytes);
/* The published block that continues *c with tokens[block_tokens], and *c moved past it; BLOCK_NONE
 * and *c as it was. Takes no reference. */
block_id kv_find(const kv_pool *p, kv_chain *c, const int32_t *tokens);
/* Block id, owned and completely written, continues *c with tokens. *c moves past it. When an equal
 * block is published already that one stays the known one. */
void kv_publish(kv_pool *p, kv_chain *c, block_id id, const int32_t *tokens);
/* The content is not to be trusted: no later prompt finds it. */
void kv_forget(kv_pool *p, block_id id);
#endif
