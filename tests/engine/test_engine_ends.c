/* How requests end other than well, and how the engine refuses, yields, hangs and stops; each at
 * both pipeline depths. Where a moment matters, a gate holds the step (fake_gate.h) or the clock is
 * the test's own: no test depends on how fast the machine is. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "tests/check_main.h"
#include "tests/engine/fake_backend.h"
#include "tests/engine/fake_client.h"
#include "tests/engine/fake_gate.h"
#include "tests/wait.h"

enum { CONTEXT = 256 };

static int depth_of(int i) {
    return 1 + i % 2;
}

static void run_all(engine *e, client *c, int n) {
    ck_assert(client_run_all(e, c, n));
}

/* The first step of e, and each after it, is held at g. */
static engine *gated_engine(fake_gate *g, int depth, const engine_options *o) {
    fake_gate_init(g);
    return client_engine(
        &(fake_options){.depth = depth, .in_step = fake_gate_pass, .in_step_ctx = g}, o, CONTEXT);
}

static engine_stats stats_of(const engine *e) {
    engine_stats s;
    engine_read_stats(e, &s);
    return s;
}

/* One poisoned request fails alone, and what it left is never reused. */
START_TEST(not_finite_fails_one_request) {
    engine_options o = client_options(16, 128);
    engine *e = client_engine(&(fake_options){.depth = depth_of(_i), .nan_token = 96}, &o, CONTEXT);
    client *c = calloc(16, sizeof *c);
    const token_bias never = {.token = 96, .bias = -INFINITY};
    for (int i = 0; i < 16; i++) {
        client_init(&c[i], 40, 30, (unsigned)i);
        for (int k = 0; k < 40; k++) c[i].prompt[k] %= 96;
        c[i].request.bias = &never;
        c[i].request.n_bias = 1; /* nobody draws it by chance */
        if (i % 4 == 1) c[i].prompt[20] = 96;
    }
    for (int round = 0; round < 2; round++) {
        run_all(e, c, 16);
        for (int i = 0; i < 16; i++) {
            ck_assert_int_eq(c[i].end, i % 4 == 1 ? END_NOT_FINITE : END_FINISHED);
            if (i % 4 == 1)
                ck_assert_int_eq(c[i].cached_tokens, 0);
            else if (round == 1)
                ck_assert_int_eq(c[i].cached_tokens, 32);
            client_reset(&c[i]);
        }
    }
    for (int i = 0; i < 16; i++) client_deinit(&c[i]);
    engine_close(e);
    free(c);
}
END_TEST

/* Cached blocks that went bad cost one request; the next with that prompt computes it anew. */
START_TEST(bad_cached_blocks_are_forgotten) {
    engine_options o = client_options(16, 128);
    backend *b = fake_backend_open(&(fake_options){.depth = depth_of(_i)});
    engine *e = client_engine_on(b, &o, CONTEXT);
    client c;
    client_init(&c, 100, 10, 1);
    static const engine_end want[] = {END_FINISHED, END_NOT_FINITE, END_FINISHED, END_FINISHED};
    static const int cached[] = {0, 96, 0, 96};
    for (int i = 0; i < 4; i++) {
        run_all(e, &c, 1);
        ck_assert_int_eq(c.end, want[i]);
        ck_assert_int_eq(c.cached_tokens, cached[i]);
        if (i == 0) fake_backend_corrupt(b);
        client_reset(&c);
    }
    client_deinit(&c);
    engine_close(e);
}
END_TEST

START_TEST(a_device_fault_ends_everything) {
    engine_options o = client_options(16, 64);
    o.max_sequences = 4;
    engine *e =
        client_engine(&(fake_options){.depth = depth_of(_i), .fault_step = 10}, &o, CONTEXT);
    client *c = calloc(12, sizeof *c);
    for (int i = 0; i < 12; i++) {
        client_init(&c[i], 20, 100, (unsigned)i);
        c[i].request.ignore_eos = true;
        const status s = engine_submit(e, &c[i].request);
        ck_assert(s == OK || s == E_DEVICE);
        if (s == E_DEVICE) c[i].ended = true, c[i].end = END_DEVICE;
    }
    for (int i = 0; i < 12; i++) {
        ck_assert(client_wait(&c[i]));
        ck_assert_int_eq(c[i].end, END_DEVICE);
    }
    engine_stats s;
    WAIT_UNTIL((s = stats_of(e), s.kv_blocks_free == s.kv_blocks_total && s.running == 0));
    ck_assert(s.device_fault);
    client_reset(&c[0]);
    ck_assert_int_eq(engine_submit(e, &c[0].request), E_DEVICE);
    for (int i = 0; i < 12; i++) client_deinit(&c[i]);
    engine_close(e);
    free(c);
}
END_TEST

START_TEST(refusals) {
    engine_options o = client_options(16, 8); /* 128 tokens */
    o.max_sequences = 1;
    o.queue_max_requests = 4;
    o.queue_max_tokens = 100;
    fake_gate gate;
    engine *e = gated_engine(&gate, depth_of(_i), &o);
    client *c = calloc(10, sizeof *c);
    for (int i = 0; i < 10; i++) client_init(&c[i], 20, 100, (unsigned)i);
    c[8].request.max_tokens = 109; /* one token too many for the pool */
    ck_assert_int_eq(engine_submit(e, &c[8].request), E_TOO_LARGE);
    c[9].prompt[3] = FAKE_VOCAB;
    ck_assert_int_eq(engine_submit(e, &c[9].request), E_INVAL);
    c[9].prompt[3] = 0;
    c[9].request.n_prompt = CONTEXT;
    ck_assert_int_eq(engine_submit(e, &c[9].request), E_INVAL);

    c[0].request.ignore_eos = true;
    ck_assert_int_eq(engine_submit(e, &c[0].request), OK);
    fake_gate_wait_held(&gate); /* it runs, and takes the only place as long as it is held */
    engine_stats s = stats_of(e);
    ck_assert_uint_eq(s.running, 1);
    for (int i = 1; i <= 4; i++) ck_assert_int_eq(engine_submit(e, &c[i].request), OK);
    ck_assert_int_eq(engine_submit(e, &c[5].request), E_FULL); /* requests */
    s = stats_of(e);
    ck_assert_uint_eq(s.waiting, 4);
    ck_assert_uint_eq(s.waiting_tokens, 80);
    atomic_store(&c[1].request.stop, STOP_CANCEL);
    engine_wake(e);
    fake_gate_let(&gate, 1); /* between two steps it looks */
    ck_assert(client_wait(&c[1]));
    ck_assert_int_eq(c[1].end, END_CANCELLED);
    ck_assert_int_eq(c[1].phase, PHASE_WAITING);
    fake_gate_wait_held(&gate);
    s = stats_of(e);
    ck_assert_uint_eq(s.waiting, 3);
    ck_assert_uint_eq(s.waiting_tokens, 60);
    c[6].request.n_prompt = 41; /* 60 + 41 > 100 */
    c[6].request.max_tokens = 1;
    ck_assert_int_eq(engine_submit(e, &c[6].request), E_FULL);
    c[6].request.n_prompt = 40;
    ck_assert_int_eq(engine_submit(e, &c[6].request), OK);

    engine_stop_all(e);
    fake_gate_open(&gate);
    for (int i = 0; i <= 6; i++)
        if (i != 1 && i != 5) {
            ck_assert(client_wait(&c[i]));
            ck_assert_int_eq(c[i].end, END_DRAINING);
        }
    ck_assert_int_eq(engine_submit(e, &c[7].request), E_STATE);
    ck_assert(client_engine_idle(e));
    for (int i = 0; i < 10; i++) client_deinit(&c[i]);
    engine_close(e);
    fake_gate_deinit(&gate);
    free(c);
}
END_TEST

static void pause_at(client *c, const engine_event *e) {
    if (e->kind == EVENT_TOKEN && c->out[0].n == c->hook_arg)
        atomic_store(&c->request.paused, true);
}

/* Stalled readers hold everything there is, and still the others get on at once. */
START_TEST(a_paused_request_yields) {
    enum { STALLED = 8, HEALTHY = 12 };
    engine_options o = client_options(16, 32);
    o.max_sequences = STALLED;
    engine *e = client_engine(&(fake_options){.depth = depth_of(_i)}, &o, CONTEXT);
    client *c = calloc(STALLED + HEALTHY, sizeof *c);
    for (int i = 0; i < STALLED + HEALTHY; i++) {
        client_init(&c[i], 30, 60, (unsigned)i);
        c[i].request.ignore_eos = true;
        if (i < STALLED) c[i].hook = pause_at, c[i].hook_arg = 5 + i;
    }
    for (int i = 0; i < STALLED; i++) ck_assert_int_eq(engine_submit(e, &c[i].request), OK);
    for (int i = 0; i < STALLED; i++) WAIT_UNTIL(atomic_load(&c[i].request.paused));
    for (int i = STALLED; i < STALLED + HEALTHY; i++)
        ck_assert_int_eq(engine_submit(e, &c[i].request), OK);
    for (int i = STALLED; i < STALLED + HEALTHY; i++) {
        ck_assert(client_wait(&c[i]));
        ck_assert_int_eq(c[i].out[0].n, 60);
    }
    engine_stats stats;
    engine_read_stats(e, &stats);
    ck_assert_uint_eq(stats.waiting, 0); /* those pushed out take no place in the queue */
    for (int i = 0; i < STALLED; i++) {
        ck_assert(!client_ended(&c[i]));
        c[i].hook_arg = -1;
        atomic_store(&c[i].request.paused, false);
    }
    engine_wake(e);
    for (int i = 0; i < STALLED; i++) {
        ck_assert(client_wait(&c[i]));
        ck_assert_int_eq(c[i].out[0].n, 60);
        client_deinit(&c[i]);
    }
    ck_assert(client_engine_idle(e));
    for (int i = STALLED; i < STALLED + HEALTHY; i++) client_deinit(&c[i]);
    engine_close(e);
    free(c);
}
END_TEST

static bool held_or_idle(const engine *e, fake_gate *g) {
    const engine_stats s = stats_of(e);
    return fake_gate_holds(g) || (s.running == 0 && s.waiting == 0);
}

/* Method: rounds of eight requests, of which some are stopped at random moments, so in any state.
 * In every other round the moment is a number of steps, counted at the gate: however the threads
 * are scheduled, all states are met. In the rounds between, the engine runs on meanwhile. After
 * each round every block is free again. */
START_TEST(stopping_in_any_state_leaks_nothing) {
    enum { N = 8, ROUNDS = 250 };
    engine_options o = client_options(16, 20);
    o.max_sequences = 4;
    fake_gate gate;
    engine *e = gated_engine(&gate, depth_of(_i), &o);
    client *c = calloc(N, sizeof *c);
    int phases[3] = {0}, ends[8] = {0};
    srand((unsigned)_i + 1);
    for (int round = 0; round < ROUNDS; round++) {
        const bool counted = round % 2 == 0;
        if (counted)
            fake_gate_close(&gate);
        else
            fake_gate_open(&gate);
        for (int i = 0; i < N; i++) {
            client_init(&c[i], 1 + rand() % 150, 1 + rand() % 40, (unsigned)(round * N + i));
            c[i].request.n_choices = 1 + rand() % 3;
            c[i].request.ignore_eos = true;
            c[i].request.priority = rand() % 3;
            const int64_t in_ns = rand() % 3000000;
            if (i == 7 && counted) c[i].request.deadline_ns = 1; /* past */
            if (i % 4 == 0) c[i].request.deadline_ns = clock_now_ns() + in_ns;
            ck_assert_int_eq(engine_submit(e, &c[i].request), OK);
        }
        for (int k = 0; k < 6; k++) {
            client *v = &c[rand() % N];
            const int moment = rand();
            if (counted) {
                fake_gate_let(&gate, moment % 4);
                WAIT_UNTIL(held_or_idle(e, &gate));
            } else {
                nanosleep(&(struct timespec){.tv_nsec = moment % 200000}, NULL);
            }
            if (k % 3 == 2)
                atomic_store(&v->request.paused, true);
            else
                atomic_fetch_or(&v->request.stop, k % 3 == 0 ? STOP_CANCEL : STOP_ABORT);
            engine_wake(e);
            atomic_store(&v->request.paused, false);
            engine_wake(e);
        }
        fake_gate_open(&gate);
        for (int i = 0; i < N; i++) {
            ck_assert_msg(client_wait(&c[i]), "round %d client %d", round, i);
            phases[c[i].phase]++;
            ends[c[i].end]++;
            client_deinit(&c[i]);
        }
        ck_assert_msg(client_engine_idle(e), "round %d: blocks are missing", round);
    }
    for (int p = 0; p < 3; p++) ck_assert_int_gt(phases[p], 0);
    ck_assert(ends[END_FINISHED] > 0 && ends[END_CANCELLED] > 0 && ends[END_DEADLINE] > 0);
    engine_close(e);
    fake_gate_deinit(&gate);
    free(c);
}
END_TEST

/* Every refusal at start names its reason, and nothing stays behind (the leak checker looks). */
START_TEST(open_refuses) {
    static const struct {
        fake_options f;
        engine_options o;
        status want;
        const char *text;
    } bad[] = {
        {{.depth = 1}, {.kv_block_tokens = 17}, E_INVAL, "kv_block_tokens 17"},
        {{.depth = 1}, {.max_sequences = LIMIT_SEQUENCES + 1}, E_INVAL, "max_sequences 1025"},
        {{.depth = 1}, {.max_step_tokens = -1}, E_INVAL, "max_step_tokens -1"},
        {{.depth = 1}, {.kv_blocks = -1}, E_INVAL, "negative"},
        {{.depth = 2, .no_load = true}, {.kv_blocks = 4}, E_UNSUPPORTED, "no load"},
        {{.depth = 2, .no_memory = true}, {.kv_blocks = 4}, E_NOMEM, "no memory"},
    };
    const model_desc d = fake_model_desc(CONTEXT);
    engine *e = NULL;
    error err = {.text = ""};
    ck_assert_int_eq(
        engine_open(fake_backend_open(&bad[_i].f), &d, &bad[_i].o, NULL, NULL, &e, &err),
        bad[_i].want);
    ck_assert_msg(strstr(err.text, bad[_i].text) != NULL, "%s", err.text);
    ck_assert_ptr_null(e);
    engine_close(NULL);
}
END_TEST

/* What was submitted to an engine that never started ends when it closes. */
START_TEST(close_without_start) {
    const model_desc d = fake_model_desc(CONTEXT);
    const engine_options o = client_options(32, 8);
    engine *e = NULL;
    client c;
    ck_assert_int_eq(engine_open(fake_backend_open(&(fake_options){.depth = depth_of(_i)}), &d, &o,
                                 NULL, NULL, &e, NULL),
                     OK);
    client_init(&c, 10, 5, 1);
    ck_assert_int_eq(engine_submit(e, &c.request), OK);
    engine_close(e);
    ck_assert(c.ended && c.end == END_DRAINING && c.phase == PHASE_WAITING);
    client_deinit(&c);
}
END_TEST

/* An idle engine's heart beats; one that hangs in a step is busy and its heart stands still. */
START_TEST(heartbeat_and_busy) {
    engine_options o = client_options(32, 64);
    fake_gate gate;
    engine *e = gated_engine(&gate, depth_of(_i), &o);
    engine_stats a = stats_of(e), b;
    WAIT_UNTIL((b = stats_of(e), b.heartbeat_ns > a.heartbeat_ns));
    a = b; /* the first may have been the start's */
    WAIT_UNTIL((b = stats_of(e), b.heartbeat_ns > a.heartbeat_ns));
    ck_assert(!b.busy && b.last_step_ns == 0);
    client c;
    client_init(&c, 10, 2, 1);
    c.request.ignore_eos = true;
    ck_assert_int_eq(engine_submit(e, &c.request), OK);
    fake_gate_wait_held(&gate); /* it hangs from here on, however long this takes */
    a = stats_of(e);
    for (int i = 0; i < 60; i++) { /* longer than an idle heart takes, and nobody can wake it */
        engine_wake(e);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    b = stats_of(e);
    ck_assert(b.busy && b.heartbeat_ns == a.heartbeat_ns && b.steps == 0);
    fake_gate_open(&gate);
    ck_assert(client_wait(&c));
    ck_assert(client_engine_idle(e));
    b = stats_of(e);
    ck_assert(b.steps >= 2 && b.last_step_ns > a.heartbeat_ns && b.tokens_per_s > 0);
    client_deinit(&c);
    engine_close(e);
    fake_gate_deinit(&gate);
}
END_TEST

/* A clock on which steps take 10 ms and nothing else takes time. */
static _Atomic int64_t test_clock_ns;

static int64_t test_now(void) {
    return atomic_load(&test_clock_ns);
}

static void take_10_ms(void *ctx) {
    (void)ctx;
    atomic_fetch_add(&test_clock_ns, 10 * NS_PER_MS);
}

static double rate_after(engine *e, int n_tokens) {
    client c;
    client_init(&c, 4, n_tokens, 1);
    c.request.ignore_eos = true;
    ck_assert_int_eq(engine_submit(e, &c.request), OK);
    ck_assert(client_wait(&c));
    ck_assert(client_engine_idle(e));
    client_deinit(&c);
    return stats_of(e).tokens_per_s;
}

/* Push-back is computed from the rate: a pause is no slowness. */
START_TEST(the_rate_is_of_working_time) {
    engine_options o = client_options(32, 64);
    o.now = test_now;
    atomic_store(&test_clock_ns, NS_PER_S);
    engine *e =
        client_engine(&(fake_options){.depth = depth_of(_i), .in_step = take_10_ms}, &o, CONTEXT);
    atomic_fetch_add(&test_clock_ns, 3 * NS_PER_S);
    ck_assert_double_eq_tol(rate_after(e, 60), 100, 5);
    atomic_fetch_add(&test_clock_ns, 3600 * NS_PER_S);
    ck_assert_double_eq_tol(rate_after(e, 2), 100, 5);
    atomic_fetch_add(&test_clock_ns, 3600 * NS_PER_S);
    ck_assert_double_eq_tol(rate_after(e, 60), 100, 5);
    engine_close(e);
}
END_TEST

static void *close_engine(void *e) {
    engine_close(e);
    return NULL;
}

static void *stop_engine(void *e) {
    engine_stop(e);
    return NULL;
}

/* Ends e by `end` when n_steps steps are over and another is held, which goes on once the end has
 * begun; n_steps < 0: at once, whatever it has come to (only for an end that leaves e there). */
static void end_in_a_step(engine *e, fake_gate *g, long n_steps, void *(*end)(void *)) {
    pthread_t thread;
    client probe;
    if (n_steps >= 0) {
        fake_gate_let(g, n_steps);
        fake_gate_wait_held(g);
    }
    ck_assert_int_eq(pthread_create(&thread, NULL, end, e), 0);
    client_init(&probe, 0, 1, 1); /* never taken: E_INVAL as long as requests are */
    WAIT_UNTIL(engine_submit(e, &probe.request) == E_STATE);
    fake_gate_open(g);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    client_deinit(&probe);
}

START_TEST(closing_ends_what_runs) {
    engine_options o = client_options(32, 64);
    fake_gate gate;
    engine *e = gated_engine(&gate, depth_of(_i), &o);
    client *c = calloc(8, sizeof *c);
    for (int i = 0; i < 8; i++) {
        client_init(&c[i], 50, 0, (unsigned)i);
        c[i].request.ignore_eos = true;
        ck_assert_int_eq(engine_submit(e, &c[i].request), OK);
    }
    end_in_a_step(e, &gate, _i / 2 * 4, close_engine);
    for (int i = 0; i < 8; i++) {
        ck_assert(c[i].ended && c[i].end == END_DRAINING);
        client_deinit(&c[i]);
    }
    fake_gate_deinit(&gate);
    free(c);
}
END_TEST

static void count_step(void *ctx, const step_report *r) {
    (void)r;
    atomic_fetch_add((atomic_int *)ctx, 1);
}

/* After engine_stop there is no callback, whatever was in flight; the rest stays legal. */
START_TEST(a_stopped_engine_is_silent) {
    engine_options o = client_options(32, 64);
    atomic_int n_calls = 0;
    fake_gate gate;
    o.on_step = count_step;
    o.on_step_ctx = &n_calls;
    engine *e = gated_engine(&gate, depth_of(_i), &o);
    client c;
    client_init(&c, 50, 0, 1);
    c.request.ignore_eos = true;
    ck_assert_int_eq(engine_submit(e, &c.request), OK);
    end_in_a_step(e, &gate, _i / 2 - 1, stop_engine);
    ck_assert(c.ended && c.end == END_DRAINING);
    const int n = atomic_load(&n_calls);
    client_reset(&c);
    ck_assert_int_eq(engine_submit(e, &c.request), E_STATE);
    engine_wake(e);
    const engine_stats s = stats_of(e);
    ck_assert_uint_eq(s.running + s.waiting, 0);
    nanosleep(&(struct timespec){.tv_nsec = 5000000L}, NULL);
    engine_stop(e);
    engine_close(e);
    ck_assert_int_eq(atomic_load(&n_calls), n);
    client_deinit(&c);
    fake_gate_deinit(&gate);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("engine_ends");
    tcase_add_loop_test(tc, not_finite_fails_one_request, 0, 2);
    tcase_add_loop_test(tc, bad_cached_blocks_are_forgotten, 0, 2);
    tcase_add_loop_test(tc, a_device_fault_ends_everything, 0, 2);
    tcase_add_loop_test(tc, refusals, 0, 2);
    tcase_add_loop_test(tc, a_paused_request_yields, 0, 2);
    tcase_add_loop_test(tc, stopping_in_any_state_leaks_nothing, 0, 4);
    tcase_add_loop_test(tc, open_refuses, 0, 6);
    tcase_add_loop_test(tc, close_without_start, 0, 2);
    tcase_add_loop_test(tc, heartbeat_and_busy, 0, 2);
    tcase_add_loop_test(tc, the_rate_is_of_working_time, 0, 2);
    tcase_add_loop_test(tc, closing_ends_what_runs, 0, 10);
    tcase_add_loop_test(tc, a_stopped_engine_is_silent, 0, 10);
    return check_run("engine_ends", tc);
}
