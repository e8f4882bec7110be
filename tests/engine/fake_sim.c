#include "tests/engine/fake_sim.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/model.h"
#include "tests/engine/fake_backend.h"

static uint32_t draw(sim *s, uint32_t below) {
    s->random = s->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(s->random >> 33) % below;
}

static bool chance(sim *s, uint32_t percent) {
    return draw(s, 100) < percent;
}

static void note(sim *s, uint64_t v) {
    s->hash = (s->hash ^ v) * UINT64_C(1099511628211);
}

static bool broken(sim *s, const char *what, long i) {
    if (s->error[0] == '\0')
        snprintf(s->error, sizeof s->error, "step %ld: %s (%ld)", s->n_steps, what, i);
    return false;
}

/* The reader: slow ones pause after some tokens and read on later; stalled ones never do. */
static void hook(client *c, const engine_event *e) {
    sim *s = (sim *)(void *)(uintptr_t)c->request.tenant; /* tests only: a place for a pointer */
    const int i = (int)(c - s->client);
    note(s, (uint64_t)i * 64 + (uint64_t)e->kind * 8 + (uint64_t)e->choice);
    if (e->kind == EVENT_TOKEN) {
        note(s, (uint64_t)e->sampled->token);
        if (c->hook_arg == 0 || c->out[0].n % c->hook_arg != 0) return;
        atomic_store(&c->request.paused, true);
        const bool stalled = c->hook_arg == 5; /* the server cuts it off after a while */
        s->resume_ns[i] = s->now_ns + (stalled ? TIME_NEVER / 4 : (int64_t)(50 * NS_PER_MS));
        if (stalled && s->stop_after[i] < 0) s->stop_after[i] = 100;
    }
    if (e->kind == EVENT_FINISHED) note(s, (uint64_t)e->reason);
    if (e->kind == EVENT_ENDED) {
        s->n_ended++;
        s->phases[e->phase]++;
        s->ends[e->end]++;
    }
}

void sim_open(sim *s, const sim_options *o, uint64_t seed) {
    static const uint64_t key[2] = {3, 4};
    static const int32_t eog[] = {7};
    memset(s, 0, sizeof *s);
    s->o = *o;
    s->random = seed * 2 + 1;
    s->now_ns = NS_PER_S;
    s->limits = (seq_limits){.context = o->context,
                             .n_vocab = FAKE_VOCAB,
                             .kv_blocks = o->kv_blocks,
                             .block_tokens = o->block_tokens,
                             .eog = eog,
                             .n_eog = 1};
    const backend_limits cap = {.n_tokens_max = o->max_step_tokens,
                                .n_seqs_max = o->max_sequences,
                                .n_samples_max = o->max_sequences + 4,
                                .n_blocks_max = blocks_for(o->context, o->block_tokens) * 4,
                                .n_bias_max = 64,
                                .n_seen_max = FAKE_VOCAB * 3,
                                .n_copies_max = o->max_sequences,
                                .kv_block_tokens = o->block_tokens,
                                .kv_blocks = o->kv_blocks};
    backend_memory got;
    s->backend = fake_backend_open(&(fake_options){.depth = o->depth});
    status ok = s->backend->ops->reserve(s->backend, &cap, &got, NULL);
    assert(ok == OK);
    ok = kv_pool_init(&s->kv, o->kv_blocks, o->block_tokens, key, o->prefix_cache);
    assert(ok == OK);
    ok = sched_init(&s->sched, &s->kv, o->max_sequences, o->max_step_tokens);
    assert(ok == OK);
    for (int i = 0; i < o->depth; i++) {
        ok = plan_init(&s->plan[i], &cap);
        assert(ok == OK);
    }
    s->result = calloc((size_t)cap.n_samples_max, sizeof *s->result);
    const size_t n = (size_t)o->n_clients;
    s->client = calloc(n, sizeof *s->client);
    s->stop_after = calloc(n, sizeof *s->stop_after);
    s->resume_ns = calloc(n, sizeof *s->resume_ns);
    s->stopped_for = calloc(n, sizeof *s->stopped_for);
    assert(s->result && s->client && s->stop_after && s->resume_ns && s->stopped_for);
}

void sim_close(sim *s) {
    sched_end_all(&s->sched, END_DRAINING);
    for (; s->n_in_flight > 0; s->n_in_flight--) {
        const unsigned i = (s->n_launched - (unsigned)s->n_in_flight) % (unsigned)s->o.depth;
        sched_commit(&s->sched, &s->plan[i], s->result, 0, 0);
    }
    for (seq_group *g; (g = sched_take_retired(&s->sched)) != NULL;) seq_group_close(g);
    for (int i = 0; i < s->n_arrived; i++) client_deinit(&s->client[i]);
    for (int i = 0; i < s->o.depth; i++) plan_deinit(&s->plan[i]);
    sched_deinit(&s->sched);
    kv_pool_deinit(&s->kv);
    s->backend->ops->close(s->backend);
    free(s->result);
    free(s->client);
    free(s->stop_after);
    free(s->resume_ns);
    free(s->stopped_for);
}

static void arrive(sim *s) {
    const int i = s->n_arrived++;
    int pool = s->o.kv_blocks * s->o.block_tokens;
    client *c = &s->client[i];
    int n_prompt = 1 + (int)draw(s, 60), n_out = 1 + (int)draw(s, 40);
    if (s->o.giants && chance(s, 50)) n_out = 1 + (int)draw(s, 120);
    if (s->o.giants && chance(s, 5)) n_prompt = 1 + (int)draw(s, (uint32_t)(pool - 60));
    if (n_prompt >= s->o.context) n_prompt = s->o.context - 1;
    if (n_prompt + n_out > pool) n_out = pool - n_prompt;
    client_init(c, n_prompt, n_out, chance(s, 40) ? draw(s, 4) : 10 + (unsigned)i);
    engine_request *r = &c->request;
    c->hook = hook;
    r->tenant = (uint64_t)(uintptr_t)s;
    if (s->o.n_accounts > 0) {
        r->account = 1 + (int)draw(s, (uint32_t)s->o.n_accounts);
        r->account_blocks_max = s->o.account_blocks_max;
        r->cache_salt_bytes = 1; /* blocks are shared within an account, as within a tenant */
        r->cache_salt[0] = (char)r->account;
        pool = s->o.account_blocks_max * s->o.block_tokens;
        if (n_prompt + n_out > pool) n_out = pool > n_prompt ? pool - n_prompt : 1;
        if (n_prompt + n_out > pool) n_prompt = c->request.n_prompt = pool - n_out;
        r->max_tokens = n_out;
    }
    r->ignore_eos = chance(s, 50);
    r->n_choices = chance(s, 20) ? 1 + (int)draw(s, 4) : 1;
    r->repetition_penalty = chance(s, 20) ? 1.2f : 0;
    r->prompt_logprobs = chance(s, 20);
    if (s->o.priorities) r->priority = (int)draw(s, 3) - 1;
    if (s->o.deadlines && chance(s, 15)) r->deadline_ns = s->now_ns + draw(s, 800) * NS_PER_MS;
    if (s->o.deadlines && chance(s, 5)) r->time_limit_ns = s->now_ns + draw(s, 400) * NS_PER_MS;
    if (s->o.stalls && chance(s, 15)) c->hook_arg = chance(s, 50) ? 5 : 3; /* stalled, slow */
    s->stop_after[i] = s->o.cancels && chance(s, 25) ? (int)draw(s, 60) : -1;
    r->priv.arrival_ns = s->now_ns;
    seq_group *g = NULL;
    const status ok = seq_group_open(r, &s->limits, &g);
    assert(ok == OK);
    (void)ok;
    r->priv.sequences = g;
    sched_add(&s->sched, g);
}

static bool arrivals(sim *s) {
    int n = chance(s, (uint32_t)s->o.arrivals_percent);
    if (s->o.floods && chance(s, 2)) n += 30;
    if (s->sched.n_live == 0) n = 1;
    while (n-- > 0 && s->n_arrived < s->o.n_clients) arrive(s);
    return true;
}

/* Clients act: disconnect, abort, or read on. */
static void clients_act(sim *s) {
    for (int i = 0; i < s->n_arrived; i++) {
        client *c = &s->client[i];
        if (c->ended) continue;
        if (s->stop_after[i] == 0) {
            atomic_store(&c->request.stop, i % 2 == 0 ? STOP_CANCEL : STOP_ABORT);
            s->stopped_for[i] = 1;
        }
        if (s->stop_after[i] >= 0) s->stop_after[i]--;
        if (atomic_load(&c->request.paused) && s->now_ns >= s->resume_ns[i])
            atomic_store(&c->request.paused, false);
    }
}

/* References are what the tables say, nothing is lost, and no list is torn. */
static bool check_blocks(sim *s) {
    int refs[1024] = {0}, owned = 0, reserved = 0;
    for (const seq_group *g = s->sched.live.next; g != &s->sched.live; g = g->next)
        for (int c = 0; c < g->n_choices; c++) {
            const sequence *q = &g->seq[c];
            reserved += q->n_reserved;
            if (q->n_blocks > 0 && q->state == SEQ_DONE && q->n_in_flight == 0)
                return broken(s, "a finished sequence keeps blocks", c);
            if (q->n_blocks > 0 && q->state != SEQ_DONE && q->state != SEQ_RUNNING)
                return broken(s, "a waiting sequence has blocks", c);
            for (int k = 0; k < q->n_blocks; k++) refs[q->block[k]]++;
        }
    for (int b = 0; b < s->kv.n_blocks; b++) {
        if (refs[b] != s->kv.block[b].refs) return broken(s, "references differ", b);
        owned += refs[b] > 0 || s->kv.block[b].holds > 0;
    }
    if (owned + kv_free(&s->kv) != s->kv.n_blocks) return broken(s, "blocks are lost", owned);
    if (reserved != s->sched.n_reserved) return broken(s, "reservation differs", reserved);
    if (kv_free(&s->kv) < reserved) return broken(s, "reserved blocks were given away", reserved);
    return true;
}

/* An account holds what the tables of its sequences say, and no more than it may. */
static bool check_accounts(sim *s) {
    for (int a = 1; a <= s->o.n_accounts; a++) {
        const sched_account *account = &s->sched.account[a];
        bool held[1024] = {false};
        int n = 0, reserved = 0, running = 0;
        for (const seq_group *g = s->sched.live.next; g != &s->sched.live; g = g->next)
            for (int c = 0; c < g->n_choices && g->account == account; c++) {
                const sequence *q = &g->seq[c];
                reserved += q->n_reserved;
                running += q->state == SEQ_RUNNING;
                for (int k = 0; k < q->n_blocks; k++) {
                    n += !held[q->block[k]];
                    held[q->block[k]] = true;
                }
            }
        if (n != account->n_blocks) return broken(s, "an account's blocks differ", a);
        if (reserved != account->n_reserved) return broken(s, "an account's reserve differs", a);
        if (running != account->n_running) return broken(s, "an account's running differ", a);
        if (n + reserved > s->o.account_blocks_max) return broken(s, "an account is over", a);
        s->n_account_full += n + reserved == s->o.account_blocks_max;
        s->n_passed_by += account->passed_by == s->sched.n_admissions && s->sched.n_admissions > 0;
    }
    return true;
}

/* Stopped and expired requests are gone at the boundary. */
static bool check_gone(sim *s) {
    int waiting = 0;
    for (int i = 0; i < s->n_arrived; i++) {
        const client *c = &s->client[i];
        if (c->ended) continue;
        if (s->stopped_for[i] > 0) return broken(s, "stopped and still there", i);
        if (s->now_ns >= c->request.deadline_ns) return broken(s, "expired and still there", i);
    }
    for (const seq_group *g = s->sched.live.next; g != &s->sched.live; g = g->next) {
        int own_fault = 0; /* pushed out while its reader was slow */
        for (int c = 0; c < g->n_choices; c++)
            own_fault += g->seq[c].preemptions - g->seq[c].n_pushed_out;
        const bool waits = g->request != NULL && g->n_running == 0;
        if (g->waits != waits && !(waits && own_fault > 0))
            return broken(s, "waits, but is not counted, or the reverse", (int)g->arrival);
        waiting += g->waits;
    }
    if (waiting != s->sched.n_groups_waiting) return broken(s, "waiting count differs", waiting);
    return true;
}

/* The oldest running request whose reader reads gets on. */
static bool check_progress(sim *s) {
    const sequence *oldest = NULL;
    bool pinned = false; /* it has been promised its blocks: the oldest may have to wait for it */
    for (int i = 0; i < s->sched.n_running; i++) {
        const sequence *q = s->sched.running[i];
        if (q->n_pushed_out > s->n_pushed_out_max) s->n_pushed_out_max = q->n_pushed_out;
        s->n_pinned += q->pinned;
        pinned = pinned || q->pinned;
        if (!seq_paused(q) && (oldest == NULL || q->age < oldest->age)) oldest = q;
    }
    if (oldest == NULL) return true;
    const int64_t mark = (int64_t)oldest->n_planned * 4096 + oldest->n_output;
    s->n_oldest_waited =
        oldest->age == s->oldest_age && mark == s->oldest_mark ? s->n_oldest_waited + 1 : 0;
    if (pinned != s->had_pinned) s->n_oldest_waited = 0;
    s->had_pinned = pinned;
    s->oldest_age = oldest->age;
    s->oldest_mark = mark;
    if (s->n_oldest_waited > (pinned ? 400 : 12))
        return broken(s, "the oldest does not get on", s->n_oldest_waited);
    if (s->n_pushed_out_max > LIMIT_PREEMPTIONS_BEFORE_PIN)
        return broken(s, "pushed out too often", s->n_pushed_out_max);
    return true;
}

static int64_t cost_ns(const plan *p) {
    return 4 * NS_PER_MS + p->n_decode_tokens * 50000 + (int64_t)p->n_prefill_tokens * 200000;
}

static void finish(sim *s) {
    const unsigned i = (s->n_launched - (unsigned)s->n_in_flight) % (unsigned)s->o.depth;
    plan *p = &s->plan[i];
    const status ok = s->backend->ops->wait_step(s->backend, s->result);
    assert(ok == OK);
    (void)ok;
    s->n_in_flight--;
    s->now_ns += cost_ns(p);
    sched_commit(&s->sched, p, s->result, cost_ns(p), s->now_ns);
    for (seq_group *g; (g = sched_take_retired(&s->sched)) != NULL;) seq_group_close(g);
    note(s, (uint64_t)p->step.n_tokens);
}

bool sim_step(sim *s) {
    if (s->n_ended == s->o.n_clients) return false;
    s->n_steps++;
    arrivals(s);
    clients_act(s);
    sched_sweep(&s->sched, s->now_ns);
    for (seq_group *g; (g = sched_take_retired(&s->sched)) != NULL;) seq_group_close(g);
    if (!check_gone(s) || !check_blocks(s) || !check_accounts(s)) return false;
    plan *next = &s->plan[s->n_launched % (unsigned)s->o.depth];
    bool launched = false;
    if (sched_plan(&s->sched, next, s->n_in_flight, s->now_ns) > 0) {
        const status ok = model_forward(s->backend, 1, &next->step);
        assert(ok == OK);
        (void)ok;
        s->n_launched++;
        s->n_in_flight++;
        launched = true;
    }
    if (s->n_in_flight == s->o.depth || (!launched && s->n_in_flight > 0))
        finish(s);
    else if (s->n_in_flight == 0) {
        if (sched_has_work(&s->sched)) return broken(s, "work is queued and none planned", 0);
        s->now_ns += NS_PER_MS;
    }
    return check_blocks(s) && check_accounts(s) && check_progress(s);
}

bool sim_run(sim *s, long max_steps) {
    while (sim_step(s))
        if (s->n_steps > max_steps) return broken(s, "it does not end", s->n_ended);
    while (s->n_in_flight > 0) finish(s); /* rows of those that ended last */
    return s->error[0] == '\0';
}
