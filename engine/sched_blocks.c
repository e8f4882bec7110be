/* Whose blocks: what a sequence takes and gives back, its reservation, and its account's count. */
#include <assert.h>
#include <limits.h>

#include "engine/sched.h"

block_id sched_take_block(sched *s, sequence *q) {
    sched_account *a = q->group->account;
    if (q->n_reserved > 0) {
        q->n_reserved--;
        s->n_reserved--;
        a->n_reserved--;
    }
    a->n_blocks++;
    return kv_take(s->kv);
}

/* A block that no table has joins the account; one that a table has is the account's already: the
 * prefix cache and choices share within a tenant only. */
void sched_share_block(sched *s, sequence *q, block_id id) {
    sched_account *a = q->group->account;
    if (s->kv->block[id].refs == 0) a->n_blocks++;
    kv_share(s->kv, id);
}

void sched_give_block(sched *s, sequence *q, block_id id) {
    sched_account *a = q->group->account;
    kv_give(s->kv, id);
    if (s->kv->block[id].refs > 0) return;
    assert(a->n_blocks > 0);
    a->n_blocks--;
}

void sched_reserve(sched *s, sequence *q, int n_blocks) {
    const int more = n_blocks - q->n_reserved;
    q->n_reserved = n_blocks;
    s->n_reserved += more;
    q->group->account->n_reserved += more;
}

int sched_account_left(const sequence *q) {
    const sched_account *a = q->group->account;
    /* The only one that holds any has to get on, even when the bound was lowered meanwhile. */
    if (a->n_blocks_max == 0) return INT_MAX;
    if (a->n_running == 1 && a->n_blocks == q->n_blocks) return INT_MAX;
    return a->n_blocks_max - a->n_blocks - a->n_reserved + q->n_reserved;
}

int sched_outstanding(const sched *s, const sched_account *a) {
    int n = 0;
    for (int i = 0; i < s->n_running; i++) {
        const sequence *q = s->running[i];
        if (a != NULL && q->group->account != a) continue;
        const int need = blocks_for(q->n_known + q->n_pending, s->kv->block_tokens) - q->n_blocks;
        if (need > q->n_reserved) n += need - q->n_reserved;
    }
    return n;
}
