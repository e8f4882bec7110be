/* The scheduler: its rules one by one, then thousands of simulated clients against its invariants.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/model.h"
#include "tests/check_main.h"
#include "tests/engine/fake_sim.h"

/* Scarce to ample pools, both depths, every kind of client; seeds differ in all of it. */
static sim_options options_of(int seed) {
    static const int blocks[] = {17, 20, 32, 64, 256};
    const int n = blocks[seed / 2 % 5];
    return (sim_options){.depth = 1 + seed % 2,
                         .kv_blocks = n,
                         .block_tokens = 16,
                         .max_sequences = seed % 3 == 0 ? 4 : 16,
                         .max_step_tokens = 64,
                         .context = 16 * 16 + 16,
                         .prefix_cache = seed / 3 % 2 == 0,
                         .n_clients = 120,
                         .arrivals_percent = 10 + seed % 7 * 12,
                         .floods = seed % 5 == 1,
                         .stalls = seed % 4 != 0,
                         .cancels = seed % 7 != 0,
                         .deadlines = seed % 3 != 1,
                         .giants = true,
                         .priorities = seed % 2 == 0};
}

START_TEST(invariants_hold_and_runs_repeat) {
    const sim_options o = options_of(_i);
    uint64_t hash[2];
    for (int run = 0; run < 2; run++) {
        sim s;
        sim_open(&s, &o, (uint64_t)_i);
        const bool ok = sim_run(&s, 200000);
        ck_assert_msg(ok, "seed %d: %s", _i, s.error);
        ck_assert_int_eq(s.n_ended, o.n_clients);
        ck_assert_int_eq(kv_free(&s.kv), o.kv_blocks);
        ck_assert_int_eq(s.sched.n_reserved, 0);
        ck_assert_uint_eq(s.sched.waiting_tokens, 0);
        hash[run] = s.hash;
        sim_close(&s);
    }
    ck_assert_uint_eq(hash[0], hash[1]);
}
END_TEST

/* The same with two or three accounts that may have a part of the pool each. */
static sim_options accounts_of(int seed) {
    sim_options o = options_of(seed);
    o.n_accounts = 2 + seed % 2;
    o.account_blocks_max = 8 + o.kv_blocks / (2 + seed % 3);
    if (o.account_blocks_max > o.kv_blocks) o.account_blocks_max = o.kv_blocks;
    return o;
}

START_TEST(accounts_keep_their_bounds) {
    const sim_options o = accounts_of(_i);
    uint64_t hash[2];
    for (int run = 0; run < 2; run++) {
        sim s;
        sim_open(&s, &o, (uint64_t)_i);
        ck_assert_msg(sim_run(&s, 200000), "seed %d: %s", _i, s.error);
        ck_assert_int_eq(s.n_ended, o.n_clients);
        ck_assert_int_eq(kv_free(&s.kv), o.kv_blocks);
        for (int a = 1; a <= o.n_accounts; a++) {
            ck_assert_int_eq(s.sched.account[a].n_blocks, 0);
            ck_assert_int_eq(s.sched.account[a].n_reserved, 0);
            ck_assert_int_eq(s.sched.account[a].n_running, 0);
        }
        hash[run] = s.hash;
        sim_close(&s);
    }
    ck_assert_uint_eq(hash[0], hash[1]);
}
END_TEST

START_TEST(the_simulation_fills_accounts) {
    long full = 0, passed_by = 0, pinned = 0;
    for (int seed = 0; seed < 60; seed++) {
        const sim_options o = accounts_of(seed);
        sim s;
        sim_open(&s, &o, (uint64_t)seed);
        ck_assert(sim_run(&s, 200000));
        full += s.n_account_full;
        passed_by += s.n_passed_by;
        pinned += s.n_pinned;
        sim_close(&s);
    }
    ck_assert_int_gt(full, 1000);
    ck_assert_int_gt(passed_by, 1000);
    ck_assert_int_gt(pinned, 100);
}
END_TEST

/* The seeds together reach what they are there for. */
START_TEST(the_simulation_reaches_every_state) {
    long phases[3] = {0}, ends[8] = {0};
    uint64_t preemptions = 0, cached = 0;
    int pushed_out_max = 0;
    for (int seed = 0; seed < 100; seed++) {
        const sim_options o = options_of(seed);
        sim s;
        sim_open(&s, &o, (uint64_t)seed);
        ck_assert(sim_run(&s, 200000));
        for (int i = 0; i < 3; i++) phases[i] += s.phases[i];
        for (int i = 0; i < 8; i++) ends[i] += s.ends[i];
        preemptions += s.sched.counters.preemptions;
        cached += s.sched.counters.cached_prompt_tokens;
        if (s.n_pushed_out_max > pushed_out_max) pushed_out_max = s.n_pushed_out_max;
        sim_close(&s);
    }
    ck_assert(phases[PHASE_WAITING] > 0 && phases[PHASE_PREFILL] > 0 && phases[PHASE_DECODE] > 0);
    ck_assert(ends[END_FINISHED] > 0 && ends[END_CANCELLED] > 0 && ends[END_DEADLINE] > 0);
    ck_assert(preemptions > 50 && cached > 0);
    ck_assert_int_eq(pushed_out_max, LIMIT_PREEMPTIONS_BEFORE_PIN);
}
END_TEST

/* --- single rules: a bench of clients put in by hand --- */

typedef struct bench {
    sim s;
    int account, account_blocks_max; /* of the next that are added */
} bench;

static void bench_open(bench *b, int max_sequences, int kv_blocks) {
    const sim_options o = {.depth = 1,
                           .kv_blocks = kv_blocks,
                           .block_tokens = 16,
                           .max_sequences = max_sequences,
                           .max_step_tokens = 256,
                           .context = 2048,
                           .n_clients = 64};
    *b = (bench){0};
    sim_open(&b->s, &o, 1);
}

static client *bench_add(bench *b, int n_prompt, int max_tokens, int priority, int64_t in_ms) {
    client *c = &b->s.client[b->s.n_arrived++];
    seq_group *g;
    client_init(c, n_prompt, max_tokens, (unsigned)b->s.n_arrived);
    c->request.ignore_eos = true;
    c->request.priority = priority;
    c->request.account = b->account;
    c->request.account_blocks_max = b->account_blocks_max;
    if (in_ms > 0) c->request.deadline_ns = b->s.now_ns + in_ms * NS_PER_MS;
    c->request.priv.arrival_ns = b->s.now_ns;
    ck_assert_int_eq(seq_group_open(&c->request, &b->s.limits, &g), OK);
    c->request.priv.sequences = g;
    sched_add(&b->s.sched, g);
    return c;
}

static client *bench_add_for(bench *b, int n_prompt, int max_tokens, int account, int64_t in_ms) {
    b->account = account;
    return bench_add(b, n_prompt, max_tokens, 0, in_ms);
}

/* One step at depth 1; the plan stays readable in plan[0]. */
static void bench_step(bench *b) {
    sim *s = &b->s;
    plan *p = &s->plan[0];
    sched_sweep(&s->sched, s->now_ns);
    if (sched_plan(&s->sched, p, 0, s->now_ns) == 0) return;
    ck_assert_int_eq(model_forward(s->backend, 1, &p->step), OK);
    ck_assert_int_eq(s->backend->ops->wait_step(s->backend, s->result), OK);
    const int64_t ns =
        5 * NS_PER_MS + (int64_t)p->n_prefill_tokens * NS_PER_MS; /* 1 ms a prefill token */
    s->now_ns += ns;
    sched_commit(&s->sched, p, s->result, ns, s->now_ns);
    for (seq_group *g; (g = sched_take_retired(&s->sched)) != NULL;) seq_group_close(g);
}

START_TEST(waiting_order_is_priority_deadline_class_arrival) {
    bench b;
    bench_open(&b, 1, 64);
    client *c[6];
    c[0] = bench_add(&b, 4, 3, 0, 0);     /* third: no deadline */
    c[1] = bench_add(&b, 4, 3, -5, 1000); /* last: low priority */
    c[2] = bench_add(&b, 4, 3, 0, 30000); /* second */
    c[3] = bench_add(&b, 4, 3, 9, 0);     /* first */
    c[4] = bench_add(&b, 4, 3, 0, 0);     /* after c[0]: later */
    c[5] = bench_add(&b, 4, 3, 0, 31000); /* after c[2]: the same class, later */
    static const int want[] = {3, 2, 5, 0, 4, 1};
    for (int k = 0; k < 6; k++) {
        while (!c[want[k]]->ended) bench_step(&b);
        for (int m = k + 1; m < 6; m++) ck_assert(!c[want[m]]->started);
    }
    sim_close(&b.s);
}
END_TEST

/* Runs until all have ended; order[i] is when client i was let in. */
static void bench_order(bench *b, client **c, int n, int *order) {
    int n_started = 0, n_ended = 0;
    for (int i = 0; i < n; i++) order[i] = -1;
    for (int k = 0; k < 100000 && n_ended < n; k++) {
        bench_step(b);
        n_ended = 0;
        for (int i = 0; i < n; i++) {
            if (c[i]->started && order[i] < 0) order[i] = n_started++;
            n_ended += c[i]->ended;
        }
    }
    ck_assert_int_eq(n_ended, n);
}

/* One account has ten requests waiting when another's one comes: that one is next. And between two
 * that wait, the one with the small requests has as many more of them. */
START_TEST(accounts_take_turns_by_tokens) {
    bench b;
    bench_open(&b, 1, 64);
    client *c[24];
    int order[24];
    for (int i = 0; i < 12; i++) c[i] = bench_add_for(&b, 90, 10, 1, 0); /* 100 tokens each */
    for (int i = 12; i < 24; i++) c[i] = bench_add_for(&b, 20, 5, 2, 0); /* 25 */
    bench_order(&b, c, 24, order);
    for (int i = 1; i < 12; i++) ck_assert_int_gt(order[i], order[i - 1]);
    for (int i = 13; i < 24; i++) ck_assert_int_gt(order[i], order[i - 1]);
    int before = 0; /* of the small ones, before the third large one: eight, give or take a turn */
    for (int i = 12; i < 24; i++) before += order[i] < order[2];
    ck_assert_int_ge(before, 7);
    ck_assert_int_le(before, 10);
    sim_close(&b.s);
}
END_TEST

/* Nobody saves up turns by being idle: the newcomer shares from now on. */
START_TEST(idle_accounts_save_nothing_up) {
    bench b;
    bench_open(&b, 1, 64);
    client *c[20];
    int order[20];
    for (int i = 0; i < 10; i++) c[i] = bench_add_for(&b, 40, 10, 1, 0);
    while (!c[4]->ended) bench_step(&b);
    for (int i = 10; i < 20; i++) c[i] = bench_add_for(&b, 40, 10, 2, 0);
    bench_order(&b, c, 20, order);
    int before =
        0; /* of account 1's last five all but the last come among account 2's first five */
    for (int i = 10; i < 20; i++) before += order[i] < order[9];
    ck_assert_int_le(before, 6);
    ck_assert_int_ge(before, 3);
    sim_close(&b.s);
}
END_TEST

/* An account does not pass another by short deadlines; among its own they do count. */
START_TEST(turns_go_before_deadline_classes) {
    bench b;
    bench_open(&b, 1, 64);
    client *c[7];
    int order[7];
    c[0] = bench_add_for(&b, 40, 10, 1, 0);
    bench_step(&b);
    for (int i = 1; i < 4; i++) c[i] = bench_add_for(&b, 40, 10, 2, i == 3 ? 5000 : 0);
    for (int i = 4; i < 7; i++) c[i] = bench_add_for(&b, 40, 10, 1, 5000);
    bench_order(&b, c, 7, order);
    ck_assert_int_eq(order[3], 1); /* account 2's turn, and of it the one in a hurry */
    ck_assert_int_lt(order[1], order[5]);
    ck_assert_int_lt(order[2], order[6]);
    sim_close(&b.s);
}
END_TEST

/* Nor by priorities, waiting or running; among its own they do count. */
START_TEST(turns_go_before_priorities) {
    bench b;
    bench_open(&b, 1, 64);
    client *c[7];
    int order[7];
    c[0] = bench_add_for(&b, 40, 10, 1, 0);
    bench_step(&b);
    for (int i = 1; i < 4; i++) b.account = 2, c[i] = bench_add(&b, 40, 10, i == 3 ? 5 : 0, 0);
    for (int i = 4; i < 7; i++) b.account = 1, c[i] = bench_add(&b, 40, 10, 100, 0);
    bench_order(&b, c, 7, order);
    ck_assert_int_eq(order[3], 1);
    ck_assert_int_lt(order[1], order[5]);
    ck_assert_int_lt(order[2], order[6]);
    sim_close(&b.s);

    bench_open(&b, 4, 13); /* as in who_yields: the youngest goes first, whatever it says */
    for (int i = 0; i < 4; i++) b.account = 1 + i, c[i] = bench_add(&b, 40, 60, 30 * i, 0);
    const seq_group *last = c[3]->request.priv.sequences, *other = c[2]->request.priv.sequences;
    while (last->preemptions == 0) bench_step(&b);
    ck_assert_int_eq(other->preemptions, 0);
    while (!c[0]->ended || !c[1]->ended || !c[2]->ended || !c[3]->ended) bench_step(&b);
    for (int i = 0; i < 2; i++) ck_assert_int_eq(c[i]->preemptions, 0);
    sim_close(&b.s);
}
END_TEST

/* Who gives up while it waits has used nothing up: the account's other requests lose no turn. */
START_TEST(the_gone_have_had_nothing) {
    bench b;
    bench_open(&b, 1, 64);
    client *c[14];
    int order[14];
    c[0] = bench_add_for(&b, 40, 10, 2, 0);
    bench_step(&b);
    for (int i = 1; i < 9; i++) c[i] = bench_add_for(&b, 40, 10, 1, 0);
    for (int i = 9; i < 14; i++) c[i] = bench_add_for(&b, 40, 10, 2, 0);
    for (int i = 1; i < 8; i++) atomic_store(&c[i]->request.stop, STOP_CANCEL);
    bench_order(&b, c, 14, order);
    ck_assert_int_le(order[8], 2);
    sim_close(&b.s);
}
END_TEST

/* Four run at once; of twenty that wait two rounds and a half can be over by the deadline. Nobody
 * is let in to be cut off half-way, until the last one: nobody else wants its place. */
START_TEST(the_hopeless_do_not_take_a_place) {
    bench b;
    bench_open(&b, 4, 64);
    client *c[24];
    int order[24], finished = 0, cut = 0;
    for (int i = 0; i < 4; i++) c[i] = bench_add_for(&b, 10, 40, 0, 0);
    int64_t round_ms = b.s.now_ns / NS_PER_MS;
    bench_order(&b, c, 4, order);
    round_ms = b.s.now_ns / NS_PER_MS - round_ms;
    for (int i = 4; i < 24; i++) c[i] = bench_add_for(&b, 10, 40, 0, round_ms * 5 / 2);
    bench_order(&b, c + 4, 20, order);
    for (int i = 4; i < 24; i++) {
        finished += c[i]->end == END_FINISHED;
        cut += c[i]->end == END_DEADLINE && c[i]->phase != PHASE_WAITING;
    }
    ck_assert_int_eq(finished, 8);
    ck_assert_int_le(cut, 1);
    sim_close(&b.s);
}
END_TEST

static client *bench_add_account(bench *b, int n_prompt, int max_tokens, int account, int n_max) {
    b->account_blocks_max = n_max;
    return bench_add_for(b, n_prompt, max_tokens, account, 0);
}

/* Ten blocks of 64: what an account may have, and who passes it by. */
START_TEST(who_lacks_its_share_is_passed_by) {
    bench b;
    bench_open(&b, 8, 64);
    client *big = bench_add_account(&b, 100, 20, 1, 10);  /* 7 blocks, then 8 */
    client *next = bench_add_account(&b, 60, 20, 1, 10);  /* 4 */
    client *small = bench_add_account(&b, 10, 20, 1, 10); /* would fit: 1 */
    client *other = bench_add_account(&b, 300, 20, 2, 30);
    client *none = bench_add(&b, 60, 20, 0, 0);
    bench_step(&b);
    ck_assert(big->started && other->started && none->started);
    ck_assert(!next->started && !small->started); /* no overtaking among its own */
    while (!big->ended) {
        bench_step(&b);
        ck_assert_int_le(b.s.sched.account[1].n_blocks, 10);
    }
    bench_step(&b);
    ck_assert(next->started && small->started);
    while (!next->ended || !small->ended || !other->ended || !none->ended) bench_step(&b);
    sim_close(&b.s);
}
END_TEST

/* Blocks that an account's sequences need on their way come from its own, not from others. */
START_TEST(an_account_takes_from_its_own) {
    bench b;
    bench_open(&b, 8, 64);
    client *c[4], *other = bench_add_account(&b, 30, 200, 2, 0);
    for (int i = 0; i < 4; i++) c[i] = bench_add_account(&b, 17, 100, 1, 10); /* 2, then 8 */
    for (int n = 0; n < 5000 && !(c[0]->ended && c[1]->ended && c[2]->ended && c[3]->ended); n++) {
        bench_step(&b);
        ck_assert_int_le(b.s.sched.account[1].n_blocks + b.s.sched.account[1].n_reserved, 10);
    }
    for (int i = 0; i < 4; i++) ck_assert_int_eq(c[i]->out[0].n, 100);
    ck_assert_int_gt(c[3]->preemptions, 0);
    ck_assert_int_eq(c[0]->preemptions, 0);
    while (!other->ended) bench_step(&b);
    ck_assert_int_eq(other->preemptions, 0);
    sim_close(&b.s);
}
END_TEST

/* A bound that is lowered under running ones (the tokens file was read again) stops nobody. */
START_TEST(a_lowered_bound_stops_nobody) {
    bench b;
    bench_open(&b, 8, 64);
    client *c[3];
    for (int i = 0; i < 3; i++) c[i] = bench_add_account(&b, 40, 200, 1, 60);
    for (int i = 0; i < 5; i++) bench_step(&b);
    client *last = bench_add_account(&b, 10, 10, 1, 2);
    for (int n = 0; n < 5000 && !last->ended; n++) bench_step(&b);
    for (int i = 0; i < 3; i++) ck_assert_int_eq(c[i]->out[0].n, 200);
    ck_assert_int_eq(last->out[0].n, 10);
    seq_group *g;
    client_init(&b.s.client[b.s.n_arrived++], 40, 10, 1);
    engine_request *r = &b.s.client[b.s.n_arrived - 1].request;
    r->account = 1;
    r->account_blocks_max = 3;
    ck_assert_int_eq(seq_group_open(r, &b.s.limits, &g), E_TOO_LARGE);
    r->account = LIMIT_ACCOUNTS + 1;
    ck_assert_int_eq(seq_group_open(r, &b.s.limits, &g), E_INVAL);
    sim_close(&b.s);
}
END_TEST

START_TEST(prefill_beside_decode_is_sized_by_time) {
    bench b;
    bench_open(&b, 8, 512);
    for (int i = 0; i < 3; i++) bench_add(&b, 20, 400, 0, 0);
    for (int i = 0; i < 10; i++) bench_step(&b);
    client *big = bench_add(&b, 1500, 2, 0, 0);
    int chunks = 0, largest = 0;
    while (big->out[0].n == 0) {
        bench_step(&b);
        ck_assert_int_eq(b.s.plan[0].step.n_decode, 3);
        chunks++;
        if (chunks > 5 && b.s.plan[0].n_prefill_tokens > largest)
            largest = b.s.plan[0].n_prefill_tokens;
        ck_assert_int_ge(b.s.plan[0].n_prefill_tokens, 1); /* it gets on in every step */
    }
    ck_assert_int_le(largest, LIMIT_PREFILL_SLICE_MS + 2); /* 1 ms a token in this model */
    ck_assert_int_ge(largest, LIMIT_PREFILL_CHUNK_MIN);
    sim_close(&b.s);

    bench_open(&b, 8, 512);
    bench_add(&b, 1500, 2, 0, 0);
    for (int i = 0; i < 4; i++) bench_step(&b);
    ck_assert_int_ge(b.s.plan[0].n_prefill_tokens, 200);
    sim_close(&b.s);
}
END_TEST

/* A short prompt behind a long one is answered long before the long one is read. */
START_TEST(a_short_prompt_does_not_wait_for_a_long_one) {
    bench b;
    bench_open(&b, 8, 512);
    client *big = bench_add(&b, 2000, 2, 0, 0);
    bench_step(&b);
    const int64_t began = b.s.now_ns;
    client *small = bench_add(&b, 30, 1, 0, 0);
    while (!small->ended) bench_step(&b);
    ck_assert_int_eq(big->out[0].n, 0);
    ck_assert_int_le((b.s.now_ns - began) / NS_PER_MS, 2 * LIMIT_PREFILL_ALONE_MS + 20);
    sim_close(&b.s);
}
END_TEST

/* Out of blocks, the youngest of the lowest priority yields; the oldest never does. */
START_TEST(who_yields) {
    bench b;
    bench_open(&b, 4, 13);
    client *c[4];
    c[0] = bench_add(&b, 40, 60, -1, 0); /* the oldest, of low priority */
    c[1] = bench_add(&b, 40, 60, 1, 0);
    c[2] = bench_add(&b, 40, 60, 0, 0);
    c[3] = bench_add(&b, 40, 60, 0, 0);
    const seq_group *g3 = c[3]->request.priv.sequences, *g2 = c[2]->request.priv.sequences;
    while (g3->preemptions == 0) bench_step(&b);
    ck_assert_int_eq(g2->preemptions, 0);
    while (!c[0]->ended || !c[1]->ended || !c[2]->ended || !c[3]->ended) bench_step(&b);
    ck_assert_int_eq(c[0]->preemptions, 0);
    ck_assert_int_eq(c[1]->preemptions, 0);
    for (int i = 0; i < 4; i++) ck_assert_int_eq(c[i]->out[0].n, 60);
    sim_close(&b.s);
}
END_TEST

/* Choices share the prompt's blocks; each copies only the one it writes. */
START_TEST(choices_share_the_prompt) {
    bench b;
    bench_open(&b, 8, 64);
    client *c = &b.s.client[b.s.n_arrived++];
    seq_group *g;
    client_init(c, 16 * 8 + 5, 40, 3);
    c->request.n_choices = 4;
    c->request.ignore_eos = true;
    c->request.temperature = 1;
    c->request.priv.arrival_ns = b.s.now_ns;
    ck_assert_int_eq(seq_group_open(&c->request, &b.s.limits, &g), OK);
    c->request.priv.sequences = g;
    sched_add(&b.s.sched, g);
    int copies = 0;
    for (int i = 0; i < 5; i++) {
        bench_step(&b);
        copies += b.s.plan[0].step.n_copies;
    }
    ck_assert_int_eq(b.s.sched.n_running, 4);
    ck_assert_int_eq(copies, 3); /* the last of the four writes in place */
    ck_assert_int_eq(64 - kv_free(&b.s.kv), 8 + 4);
    while (!c->ended) bench_step(&b);
    ck_assert_int_eq(kv_free(&b.s.kv), 64);
    sim_close(&b.s);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("sched");
    tcase_add_loop_test(tc, invariants_hold_and_runs_repeat, 0, 300);
    tcase_add_test(tc, the_simulation_reaches_every_state);
    tcase_add_loop_test(tc, accounts_keep_their_bounds, 0, 200);
    tcase_add_test(tc, the_simulation_fills_accounts);
    tcase_add_test(tc, waiting_order_is_priority_deadline_class_arrival);
    tcase_add_test(tc, accounts_take_turns_by_tokens);
    tcase_add_test(tc, idle_accounts_save_nothing_up);
    tcase_add_test(tc, the_gone_have_had_nothing);
    tcase_add_test(tc, the_hopeless_do_not_take_a_place);
    tcase_add_test(tc, turns_go_before_deadline_classes);
    tcase_add_test(tc, turns_go_before_priorities);
    tcase_add_test(tc, who_lacks_its_share_is_passed_by);
    tcase_add_test(tc, an_account_takes_from_its_own);
    tcase_add_test(tc, a_lowered_bound_stops_nobody);
    tcase_add_test(tc, prefill_beside_decode_is_sized_by_time);
    tcase_add_test(tc, a_short_prompt_does_not_wait_for_a_long_one);
    tcase_add_test(tc, who_yields);
    tcase_add_test(tc, choices_share_the_prompt);
    return check_run("sched", tc);
}
