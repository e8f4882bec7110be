/* The KV pool: no block is lost or owned twice, and a prefix is found exactly when its whole
 * history, tenant and salt are the same, whatever the hash does. */
#include <stdlib.h>
#include <string.h>

#include "engine/kv.h"
#include "tests/check_main.h"

enum { BT = 16 };
static const uint64_t key[2] = {1, 2};

static kv_pool open_pool(int n_blocks, bool prefix_cache) {
    kv_pool p;
    ck_assert_int_eq(kv_pool_init(&p, n_blocks, BT, key, prefix_cache), OK);
    return p;
}

/* Every block is in exactly one place, and the lists say so. (One ck_assert: each costs a write.)
 */
static void check_pool(const kv_pool *p) {
    int n_unused = 0, n_idle = 0, n_owned = 0, n_published = 0, n_found = 0;
    bool ok = true;
    for (block_id id = p->unused_head; id != BLOCK_NONE; id = p->block[id].next) {
        n_unused++;
        ok = ok && p->block[id].refs == 0 && p->block[id].serial == 0;
    }
    for (block_id id = p->idle_head, prev = BLOCK_NONE; id != BLOCK_NONE; id = p->block[id].next) {
        n_idle++;
        ok = ok && p->block[id].refs == 0 && p->block[id].serial != 0 && p->block[id].prev == prev;
        prev = id;
    }
    for (int i = 0; i < p->n_blocks; i++) {
        n_owned += p->block[i].refs > 0 || p->block[i].holds > 0;
        n_published += p->block[i].serial != 0;
    }
    for (uint32_t b = 0; b <= p->bucket_mask; b++)
        for (block_id id = p->bucket[b]; id != BLOCK_NONE; id = p->block[id].bucket_next) n_found++;
    ok = ok && n_unused == p->n_unused && n_idle == p->n_idle;
    ok = ok && n_unused + n_idle + n_owned == p->n_blocks && n_found == n_published;
    ck_assert(ok);
}

static void fill(int32_t *tokens, int value) {
    for (int i = 0; i < BT; i++) tokens[i] = value;
}

/* Method: random takes, shares, gives, holds and publishes; a model counts references beside. */
START_TEST(no_block_is_lost_or_owned_twice) {
    enum { N = 32, TABLES = 6, LEN = 12 };
    kv_pool p = open_pool(N, true);
    struct {
        int n;
        block_id b[LEN];
        kv_chain c;
        int n_published;
    } t[TABLES] = {0};
    srand((unsigned)_i);
    for (int i = 0; i < TABLES; i++) t[i].c = kv_chain_root(&p, 0, "", 0);
    for (int step = 0; step < 2000; step++) {
        const int i = rand() % TABLES, what = rand() % 5;
        int32_t tokens[BT];
        if (what < 2 && t[i].n < LEN && kv_free(&p) > 0)
            t[i].b[t[i].n++] = kv_take(&p);
        else if (what == 2 && t[i].n_published < t[i].n) {
            fill(tokens, rand() % 3);
            kv_publish(&p, &t[i].c, t[i].b[t[i].n_published++], tokens);
        } else if (what == 3) {
            while (t[i].n > 0) kv_give(&p, t[i].b[--t[i].n]);
            t[i].c = kv_chain_root(&p, 0, "", 0);
            t[i].n_published = 0;
            for (int k = 0; k < LEN; k++) { /* what is published comes back */
                fill(tokens, rand() % 3);
                const block_id id = kv_find(&p, &t[i].c, tokens);
                if (id == BLOCK_NONE) break;
                kv_share(&p, id);
                t[i].b[t[i].n++] = id;
                t[i].n_published++;
            }
        } else if (t[i].n > 0 && rand() % 8 == 0)
            kv_forget(&p, t[i].b[rand() % t[i].n]);
        int refs[N] = {0};
        for (int k = 0; k < TABLES; k++)
            for (int m = 0; m < t[k].n; m++) refs[t[k].b[m]]++;
        int wrong = -1;
        for (int k = 0; k < N; k++)
            if (refs[k] != p.block[k].refs) wrong = k;
        ck_assert_msg(wrong < 0, "seed %d step %d: block %d", _i, step, wrong);
        check_pool(&p);
    }
    kv_pool_deinit(&p);
}
END_TEST

static void publish_chain(kv_pool *p, uint64_t tenant, const char *salt, const int *values, int n,
                          block_id *out) {
    kv_chain c = kv_chain_root(p, tenant, salt, (int)strlen(salt));
    int32_t tokens[BT];
    for (int i = 0; i < n; i++) {
        out[i] = kv_take(p);
        fill(tokens, values[i]);
        kv_publish(p, &c, out[i], tokens);
    }
    for (int i = n - 1; i >= 0; i--) kv_give(p, out[i]);
}

static int match_chain(const kv_pool *p, uint64_t tenant, const char *salt, const int *values,
                       int n, block_id *out) {
    kv_chain c = kv_chain_root(p, tenant, salt, (int)strlen(salt));
    int32_t tokens[BT];
    for (int i = 0; i < n; i++) {
        fill(tokens, values[i]);
        out[i] = kv_find(p, &c, tokens);
        if (out[i] == BLOCK_NONE) return i;
    }
    return n;
}

START_TEST(only_the_same_history_is_found) {
    kv_pool p = open_pool(16, true);
    const int a[] = {1, 2, 3}, other_head[] = {9, 2, 3}, shorter[] = {1, 2, 4};
    block_id put[3], got[3];
    publish_chain(&p, 7, "s", a, 3, put);
    ck_assert_int_eq(match_chain(&p, 7, "s", a, 3, got), 3);
    ck_assert_mem_eq(put, got, sizeof put);
    ck_assert_int_eq(match_chain(&p, 7, "s", shorter, 3, got), 2);
    ck_assert_int_eq(match_chain(&p, 7, "s", other_head, 3, got), 0);
    ck_assert_int_eq(match_chain(&p, 8, "s", a, 3, got), 0); /* another tenant */
    ck_assert_int_eq(match_chain(&p, 7, "t", a, 3, got), 0); /* another salt */
    ck_assert_int_eq(match_chain(&p, 7, "", a, 3, got), 0);
    kv_forget(&p, put[1]); /* what follows it is out of reach too */
    ck_assert_int_eq(match_chain(&p, 7, "s", a, 3, got), 1);
    publish_chain(&p, 7, "s", a, 3, put); /* a new middle does not revive the old end */
    ck_assert_int_eq(match_chain(&p, 7, "s", a, 3, got), 3);
    ck_assert_int_eq(got[2], put[2]);
    check_pool(&p);
    kv_pool_deinit(&p);

    p = open_pool(16, false);
    publish_chain(&p, 7, "s", a, 3, put);
    ck_assert_int_eq(match_chain(&p, 7, "s", a, 3, got), 0);
    ck_assert_int_eq(p.n_unused, 16);
    kv_pool_deinit(&p);
}
END_TEST

/* Method: hashes of 2 bits, so nearly all collide; a model remembers every block's true history. */
START_TEST(collisions_never_mix_histories) {
    enum { N = 64, DEPTH = 4, TENANTS = 3, VALUES = 3, ROUNDS = 3000 };
    struct {
        uint64_t tenant;
        int n, v[DEPTH];
    } truth[N] = {0};
    kv_pool p = open_pool(N, true);
    p.hash_mask = 1; /* of each half */
    srand((unsigned)_i);
    int hits = 0;
    bool ok = true;
    for (int round = 0; round < ROUNDS; round++) {
        int v[DEPTH];
        block_id got[DEPTH];
        const int n = 1 + rand() % DEPTH;
        const uint64_t tenant = (uint64_t)(rand() % TENANTS);
        for (int i = 0; i < n; i++) v[i] = rand() % VALUES;
        const int found = match_chain(&p, tenant, "", v, n, got);
        for (int i = 0; i < found; i++) {
            ok = ok && truth[got[i]].tenant == tenant && truth[got[i]].n == i + 1 &&
                 memcmp(truth[got[i]].v, v, sizeof(int) * (size_t)(i + 1)) == 0;
            hits++;
        }
        kv_chain c = kv_chain_root(&p, tenant, "", 0);
        for (int i = 0; i < n; i++) { /* as a sequence would: share what is there, write the rest */
            int32_t tokens[BT];
            fill(tokens, v[i]);
            if (i < found) {
                kv_share(&p, got[i]);
                ok = ok && kv_find(&p, &c, tokens) == got[i];
                continue;
            }
            got[i] = kv_take(&p);
            kv_publish(&p, &c, got[i], tokens);
            truth[got[i]].tenant = tenant;
            truth[got[i]].n = i + 1;
            memcpy(truth[got[i]].v, v, sizeof v);
        }
        for (int i = n - 1; i >= 0; i--) kv_give(&p, got[i]);
    }
    ck_assert(ok);
    ck_assert_int_gt(hits, ROUNDS / 4);
    check_pool(&p);
    kv_pool_deinit(&p);
}
END_TEST

/* Leaves go before the blocks that lead to them, the least recently used chain first. */
START_TEST(eviction_takes_old_leaves_first) {
    kv_pool p = open_pool(6, true);
    const int a[] = {1, 2, 3}, b[] = {4, 5, 6};
    block_id put[3], got[3];
    publish_chain(&p, 0, "", a, 3, put);
    publish_chain(&p, 0, "", b, 3, put);
    for (int left = 2; left >= 0; left--) {
        kv_take(&p);
        ck_assert_int_eq(match_chain(&p, 0, "", a, 3, got), left);
        ck_assert_int_eq(match_chain(&p, 0, "", b, 3, got), 3);
    }
    ck_assert_uint_eq(p.n_evicted, 3);
    check_pool(&p);
    kv_pool_deinit(&p);
}
END_TEST

START_TEST(a_held_block_is_not_given_away) {
    kv_pool p = open_pool(2, true);
    const block_id a = kv_take(&p), b = kv_take(&p);
    kv_hold(&p, a);
    kv_give(&p, a);
    ck_assert_int_eq(kv_free(&p), 0);
    kv_unhold(&p, a);
    ck_assert_int_eq(kv_free(&p), 1);
    ck_assert_int_eq(kv_take(&p), a);
    ck_assert(kv_writable(&p, a));
    kv_share(&p, b);
    ck_assert(!kv_writable(&p, b));
    kv_pool_deinit(&p);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("kv");
    tcase_add_loop_test(tc, no_block_is_lost_or_owned_twice, 0, 32);
    tcase_add_test(tc, only_the_same_history_is_found);
    tcase_add_loop_test(tc, collisions_never_mix_histories, 0, 8);
    tcase_add_test(tc, eviction_takes_old_leaves_first);
    tcase_add_test(tc, a_held_block_is_not_given_away);
    return check_run("kv", tc);
}
