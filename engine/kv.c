#include "engine/kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

status kv_pool_init(kv_pool *p, int n_blocks, int block_tokens, const uint64_t key[2],
                    bool prefix_cache) {
    assert(n_blocks > 0 && n_blocks < INT32_MAX / 4);
    assert(block_tokens > 0 && block_tokens <= KV_BLOCK_TOKENS_MAX);
    uint32_t n_buckets = 16;
    while (n_buckets < 2u * (uint32_t)n_blocks) n_buckets *= 2;
    *p = (kv_pool){.n_blocks = n_blocks,
                   .block_tokens = block_tokens,
                   .prefix_cache = prefix_cache,
                   .key = {key[0], key[1]},
                   .hash_mask = ~UINT64_C(0),
                   .bucket_mask = n_buckets - 1,
                   .unused_head = BLOCK_NONE,
                   .idle_head = BLOCK_NONE,
                   .idle_tail = BLOCK_NONE};
    const size_t n = (size_t)n_blocks;
    p->block = calloc(n, sizeof *p->block);
    p->tokens = calloc(n * (size_t)block_tokens, sizeof *p->tokens);
    p->bucket = malloc(n_buckets * sizeof *p->bucket);
    if (p->block == NULL || p->tokens == NULL || p->bucket == NULL) {
        kv_pool_deinit(p);
        return E_NOMEM;
    }
    for (uint32_t i = 0; i < n_buckets; i++) p->bucket[i] = BLOCK_NONE;
    for (block_id id = n_blocks - 1; id >= 0; id--) { /* block 0 is taken first */
        p->block[id].next = p->unused_head;
        p->unused_head = id;
    }
    p->n_unused = n_blocks;
    return OK;
}

void kv_pool_deinit(kv_pool *p) {
    free(p->block);
    free(p->tokens);
    free(p->bucket);
    *p = (kv_pool){0};
}

static void idle_remove(kv_pool *p, block_id id) {
    kv_block *b = &p->block[id];
    if (b->prev == BLOCK_NONE)
        p->idle_head = b->next;
    else
        p->block[b->prev].next = b->next;
    if (b->next == BLOCK_NONE)
        p->idle_tail = b->prev;
    else
        p->block[b->next].prev = b->prev;
    p->n_idle--;
}

static void idle_append(kv_pool *p, block_id id) {
    kv_block *b = &p->block[id];
    b->prev = p->idle_tail;
    b->next = BLOCK_NONE;
    if (p->idle_tail == BLOCK_NONE)
        p->idle_head = id;
    else
        p->block[p->idle_tail].next = id;
    p->idle_tail = id;
    p->n_idle++;
}

static void unused_push(kv_pool *p, block_id id) {
    p->block[id].next = p->unused_head;
    p->unused_head = id;
    p->n_unused++;
}

/* Nobody needs the block any more: its content is kept when a later prompt could find it. */
static void settle(kv_pool *p, block_id id) {
    const kv_block *b = &p->block[id];
    if (b->refs > 0 || b->holds > 0) return;
    if (b->serial != 0)
        idle_append(p, id);
    else
        unused_push(p, id);
}

static block_id *bucket_of(const kv_pool *p, hash128 h) {
    return &p->bucket[(uint32_t)h.lo & p->bucket_mask];
}

static void unpublish(kv_pool *p, block_id id) {
    block_id *link = bucket_of(p, p->block[id].hash);
    while (*link != id) {
        assert(*link != BLOCK_NONE);
        link = &p->block[*link].bucket_next;
    }
    *link = p->block[id].bucket_next;
    p->block[id].serial = 0;
}

block_id kv_take(kv_pool *p) {
    assert(kv_free(p) > 0);
    block_id id = p->unused_head;
    if (id != BLOCK_NONE) {
        p->unused_head = p->block[id].next;
        p->n_unused--;
    } else {
        id = p->idle_head;
        idle_remove(p, id);
        unpublish(p, id);
        p->n_evicted++;
    }
    assert(p->block[id].refs == 0 && p->block[id].holds == 0 && p->block[id].serial == 0);
    p->block[id].refs = 1;
    return id;
}

void kv_share(kv_pool *p, block_id id) {
    if (kv_idle(p, id)) {
        assert(p->block[id].serial != 0); /* an unused block has nothing to share */
        idle_remove(p, id);
    }
    p->block[id].refs++;
}

void kv_give(kv_pool *p, block_id id) {
    assert(p->block[id].refs > 0);
    p->block[id].refs--;
    settle(p, id);
}

void kv_hold(kv_pool *p, block_id id) {
    assert(p->block[id].refs > 0);
    p->block[id].holds++;
}

void kv_unhold(kv_pool *p, block_id id) {
    assert(p->block[id].holds > 0);
    p->block[id].holds--;
    settle(p, id);
}

kv_chain kv_chain_root(const kv_pool *p, uint64_t tenant, const void *salt, int salt_bytes) {
    unsigned char text[sizeof tenant + LIMIT_CACHE_SALT_BYTES];
    assert(salt_bytes >= 0 && salt_bytes <= LIMIT_CACHE_SALT_BYTES);
    memcpy(text, &tenant, sizeof tenant);
    if (salt_bytes > 0) memcpy(text + sizeof tenant, salt, (size_t)salt_bytes);
    const hash128 space = hash_siphash128(p->key, text, sizeof tenant + (size_t)salt_bytes);
    return (kv_chain){.space = space, .hash = space, .serial = 0};
}

static hash128 hash_block(const kv_pool *p, const kv_chain *c, const int32_t *tokens) {
    unsigned char text[sizeof c->hash + KV_BLOCK_TOKENS_MAX * sizeof *tokens];
    const size_t tokens_bytes = (size_t)p->block_tokens * sizeof *tokens;
    memcpy(text, &c->hash, sizeof c->hash);
    memcpy(text + sizeof c->hash, tokens, tokens_bytes);
    hash128 h = hash_siphash128(p->key, text, sizeof c->hash + tokens_bytes);
    h.lo &= p->hash_mask;
    h.hi &= p->hash_mask;
    return h;
}

static int32_t *tokens_of(const kv_pool *p, block_id id) {
    return p->tokens + (size_t)id * (size_t)p->block_tokens;
}

static bool hash_equal(hash128 a, hash128 b) {
    return a.lo == b.lo && a.hi == b.hi;
}

/* The published block with this hash that truly continues *c with tokens. */
static block_id find_hashed(const kv_pool *p, const kv_chain *c, hash128 h, const int32_t *tokens) {
    const size_t tokens_bytes = (size_t)p->block_tokens * sizeof *tokens;
    for (block_id id = *bucket_of(p, h); id != BLOCK_NONE; id = p->block[id].bucket_next) {
        const kv_block *b = &p->block[id];
        if (hash_equal(b->hash, h) && b->parent == c->serial && hash_equal(b->space, c->space) &&
            memcmp(tokens_of(p, id), tokens, tokens_bytes) == 0)
            return id;
    }
    return BLOCK_NONE;
}

block_id kv_find(const kv_pool *p, kv_chain *c, const int32_t *tokens) {
    if (!p->prefix_cache) return BLOCK_NONE;
    const hash128 h = hash_block(p, c, tokens);
    const block_id id = find_hashed(p, c, h, tokens);
    if (id == BLOCK_NONE) return BLOCK_NONE;
    c->hash = h;
    c->serial = p->block[id].serial;
    return id;
}

void kv_publish(kv_pool *p, kv_chain *c, block_id id, const int32_t *tokens) {
    if (!p->prefix_cache) return;
    assert(p->block[id].refs > 0);
    const hash128 h = hash_block(p, c, tokens);
    block_id known = find_hashed(p, c, h, tokens);
    if (known == BLOCK_NONE && p->block[id].serial == 0) {
        kv_block *b = &p->block[id];
        b->hash = h;
        b->space = c->space;
        b->parent = c->serial;
        b->serial = ++p->last_serial;
        memcpy(tokens_of(p, id), tokens, (size_t)p->block_tokens * sizeof *tokens);
        block_id *head = bucket_of(p, h);
        b->bucket_next = *head;
        *head = id;
        known = id;
    }
    c->hash = h;
    /* Not found and yet published: its parent was forgotten. What follows must not be found either.
     */
    c->serial = known != BLOCK_NONE ? p->block[known].serial : ++p->last_serial;
}

void kv_forget(kv_pool *p, block_id id) {
    if (p->block[id].serial == 0) return;
    const bool idle = kv_idle(p, id);
    if (idle) idle_remove(p, id);
    unpublish(p, id);
    if (idle) unused_push(p, id);
}
