/* The engine with its thread, against a backend that checks every block (fake_backend.h). Each test
 * runs at both pipeline depths. Greedy streams are compared with an oracle, others with a run of
 * the request alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "tests/check_main.h"
#include "tests/engine/fake_backend.h"
#include "tests/engine/fake_client.h"
#include "tests/engine/fake_gate.h"

enum { MANY = 64, CONTEXT = 256 };

static int depth_of(int i) {
    return 1 + i % 2;
}

/* What greedy decoding must give. */
static void check_greedy(const client *c, int i) {
    int history[2 * CLIENT_TOKENS_MAX], n = c->request.n_prompt;
    const client_output *o = &c->out[0];
    for (int k = 0; k < n; k++) history[k] = c->prompt[k];
    for (int k = 0; k < o->n; k++) {
        const int want = fake_greedy(history, n);
        ck_assert_msg(o->token[k] == want, "client %d token %d: %d, want %d", i, k, o->token[k],
                      want);
        history[n++] = want;
    }
    const bool full = n == CONTEXT;
    if (o->n > 0 && o->token[o->n - 1] == CLIENT_EOG)
        ck_assert_int_eq(o->reason, FINISH_STOP_TOKEN);
    else if (o->n == c->request.max_tokens)
        ck_assert_int_eq(o->reason, FINISH_MAX_TOKENS);
    else
        ck_assert(full && o->reason == FINISH_CONTEXT_FULL);
}

static void make_mixed(client *c, int i) {
    static const int lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 130, 200};
    client_init(c, lengths[i % 12], 1 + (i * 7) % 50, (unsigned)(i % 5)); /* shared prefixes */
    c->request.ignore_eos = i % 3 != 0;
    c->request.priority = i % 3 - 1;
}

static void run_all(engine *e, client *c, int n) {
    ck_assert(client_run_all(e, c, n));
}

/* Pools from scarce (many preemptions) to ample; every stream is what it is alone. */
START_TEST(streams_equal_the_oracle) {
    static const int pools[] = {16, 24, 40, 400}, sizes[] = {16, 32, 64};
    const int bt = sizes[_i / 2 % 3], pool = pools[_i / 6 % 4] * 16 / bt;
    engine_options o = client_options(bt, pool);
    o.prefix_cache = _i / 24 % 2 == 0;
    engine *e = client_engine(&(fake_options){.depth = depth_of(_i)}, &o, CONTEXT);
    client *c = calloc(MANY, sizeof *c);
    for (int i = 0; i < MANY; i++) make_mixed(&c[i], i);
    run_all(e, c, MANY);
    uint64_t prompt_tokens = 0, generated = 0;
    for (int i = 0; i < MANY; i++) {
        prompt_tokens += (uint64_t)c[i].request.n_prompt;
        generated += (uint64_t)c[i].out[0].n;
        ck_assert_int_eq(c[i].end, END_FINISHED);
        check_greedy(&c[i], i);
        ck_assert_int_le(c[i].preemptions, LIMIT_PREEMPTIONS_BEFORE_PIN);
        client_deinit(&c[i]);
    }
    engine_stats s;
    engine_read_stats(e, &s);
    ck_assert_uint_eq(s.finished, MANY);
    ck_assert_uint_eq(s.prompt_tokens, prompt_tokens); /* recomputation is not counted */
    ck_assert_uint_eq(s.generated_tokens, generated);
    ck_assert_uint_eq(s.stalled_steps, 0);
    if (!o.prefix_cache) ck_assert_uint_eq(s.cached_prompt_tokens, 0);
    engine_close(e);
    free(c);
}
END_TEST

/* Six are there from the start and need three times the pool: they push each other out, and nobody
 * can tell. */
START_TEST(preempted_equals_uninterrupted) {
    enum { N = 6 };
    engine_options o = client_options(16, 16);
    o.prefix_cache = _i / 2 % 2 == 0;
    engine *e = client_engine_unstarted(fake_backend_open(&(fake_options){.depth = depth_of(_i)}),
                                        &o, CONTEXT);
    client *c = calloc(N, sizeof *c);
    int preemptions = 0;
    for (int i = 0; i < N; i++) {
        client_init(&c[i], 20 + i, 110, (unsigned)(i + 40));
        c[i].request.ignore_eos = true;
    }
    ck_assert(client_start_with_all(e, c, N));
    for (int i = 0; i < N; i++) {
        ck_assert_int_eq(c[i].out[0].n, 110);
        check_greedy(&c[i], i);
        preemptions += c[i].preemptions;
        client_deinit(&c[i]);
    }
    ck_assert_int_gt(preemptions, 0);
    ck_assert_int_eq(c[0].preemptions, 0); /* the oldest */
    engine_close(e);
    free(c);
}
END_TEST

static void make_fancy(client *c, int i) {
    client_init(c, 1 + (i * 13) % 90, 5 + (i * 11) % 60, (unsigned)i);
    engine_request *r = &c->request;
    r->temperature = i % 4 == 0 ? 0.0f : 0.7f + 0.2f * (float)(i % 3);
    r->seed = (uint64_t)i * 77 + 1;
    r->n_choices = 1 + i % 4;
    if (i % 3 == 1) r->repetition_penalty = 1.3f;
    if (i % 3 == 2) r->frequency_penalty = 0.4f, r->presence_penalty = 0.3f;
    r->min_tokens = i % 5 == 0 ? r->max_tokens : i % 5;
    r->logprobs = i % 2 == 0;
    r->prompt_logprobs = i % 6 == 0;
    r->ignore_eos = i % 7 == 0;
}

static void check_equal(const client *a, const client *b, int i) {
    for (int c = 0; c < a->request.n_choices; c++) {
        ck_assert_msg(a->out[c].n == b->out[c].n, "client %d choice %d: %d and %d tokens", i, c,
                      a->out[c].n, b->out[c].n);
        ck_assert_mem_eq(a->out[c].token, b->out[c].token, sizeof a->out[c].token);
        ck_assert_mem_eq(a->out[c].logprob, b->out[c].logprob, sizeof a->out[c].logprob);
        ck_assert_int_eq(a->out[c].reason, b->out[c].reason);
    }
    ck_assert_int_eq(a->n_prompt_scores, b->n_prompt_scores);
    ck_assert_mem_eq(a->prompt_score, b->prompt_score, sizeof a->prompt_score);
}

/* Choices, penalties, seeds, min_tokens, log-probabilities: together equals one by one. */
START_TEST(together_equals_alone) {
    enum { N = 24 };
    static const int pools[] = {12, 20, 300};
    client *together = calloc(N, sizeof *together), *alone = calloc(N, sizeof *alone);
    engine_options o = client_options(16, pools[_i / 2 % 3]);
    engine *e = client_engine(&(fake_options){.depth = depth_of(_i)}, &o, CONTEXT);
    for (int i = 0; i < N; i++) make_fancy(&together[i], i);
    run_all(e, together, N);
    engine_close(e);

    o = client_options(64, 64);
    o.prefix_cache = false;
    o.max_step_tokens = 4096;
    e = client_engine(&(fake_options){.depth = 1}, &o, CONTEXT);
    for (int i = 0; i < N; i++) {
        make_fancy(&alone[i], i);
        run_all(e, &alone[i], 1);
        const engine_request *r = &alone[i].request;
        check_equal(&together[i], &alone[i], i);
        ck_assert_int_eq(alone[i].n_prompt_scores, r->prompt_logprobs ? r->n_prompt - 1 : 0);
        for (int c = 0; c < r->n_choices; c++) {
            for (int k = 0; k < alone[i].out[c].n && k < r->min_tokens; k++)
                ck_assert(alone[i].out[c].token[k] != CLIENT_EOG || r->ignore_eos);
            for (int d = 0; d < c && r->temperature > 0 && r->max_tokens > 20; d++)
                ck_assert(memcmp(alone[i].out[c].token, alone[i].out[d].token,
                                 sizeof alone[i].out[c].token) != 0);
        }
        client_deinit(&alone[i]);
        client_deinit(&together[i]);
    }
    engine_close(e);
    free(together);
    free(alone);
}
END_TEST

/* A second request with the same prompt takes all full blocks but the one of the last token. */
START_TEST(a_prefix_is_reused) {
    engine_options o = client_options(16, 64);
    engine *e = client_engine(&(fake_options){.depth = depth_of(_i)}, &o, CONTEXT);
    client *c = calloc(4, sizeof *c);
    for (int i = 0; i < 4; i++) client_init(&c[i], 96, 20, 5);
    c[2].request.tenant = 9; /* others' entries are not for it */
    memcpy(c[3].request.cache_salt, "salt", 4);
    c[3].request.cache_salt_bytes = 4;
    for (int i = 0; i < 4; i++) {
        run_all(e, &c[i], 1);
        check_greedy(&c[i], i);
        client_deinit(&c[i]);
    }
    ck_assert_int_eq(c[0].cached_tokens, 0);
    ck_assert_int_eq(c[1].cached_tokens, 80);
    ck_assert_int_eq(c[2].cached_tokens, 0);
    ck_assert_int_eq(c[3].cached_tokens, 0);
    engine_close(e);
    free(c);
}
END_TEST

START_TEST(every_reason_to_finish) {
    engine_options o = client_options(32, 64);
    fake_gate gate;
    fake_gate_init(&gate);
    fake_gate_open(&gate);
    engine *e = client_engine(
        &(fake_options){.depth = depth_of(_i), .in_step = fake_gate_pass, .in_step_ctx = &gate}, &o,
        CONTEXT);
    client *c = calloc(5, sizeof *c);
    for (int i = 0; i < 5; i++) {
        client_init(&c[i], 10 + i, 0, (unsigned)(100 + i));
        c[i].request.ignore_eos = true;
    }
    run_all(e, &c[0], 1); /* no limit: until the context is full */
    ck_assert_int_eq(c[0].out[0].reason, FINISH_CONTEXT_FULL);
    ck_assert_int_eq(c[0].out[0].n, CONTEXT - 10);

    c[1].request.max_tokens = CONTEXT + 50; /* the context is full first */
    run_all(e, &c[1], 1);
    ck_assert_int_eq(c[1].out[0].reason, FINISH_CONTEXT_FULL);

    const int32_t stop = c[0].out[0].token[4]; /* a stop id, also under ignore_eos */
    memcpy(c[2].prompt, c[0].prompt, sizeof c[2].prompt);
    c[2].request.n_prompt = 10;
    c[2].request.stop_ids = &stop;
    c[2].request.n_stop_ids = 1;
    run_all(e, &c[2], 1);
    ck_assert_int_eq(c[2].out[0].reason, FINISH_STOP_TOKEN);
    ck_assert_int_eq(c[2].out[0].stop_token, stop);
    ck_assert_int_eq(c[2].out[0].token[c[2].out[0].n - 1], stop);
    ck_assert_int_le(c[2].out[0].n, 5);

    fake_gate_close(&gate);
    ck_assert_int_eq(engine_submit(e, &c[3].request), OK);
    fake_gate_let(&gate, 3);
    fake_gate_wait_held(&gate);                      /* with the fourth token */
    atomic_fetch_or(&c[3].request.choices_done, 1u); /* the text side found a stop string */
    engine_wake(e);
    fake_gate_open(&gate);
    ck_assert(client_wait(&c[3]));
    ck_assert_int_eq(c[3].out[0].reason, FINISH_STOP_STRING);
    ck_assert_int_eq(c[3].out[0].n, 4); /* at the next step boundary, also with one step ahead */

    c[4].request.time_limit_ns = clock_now_ns() - 1;
    run_all(e, &c[4], 1);
    ck_assert_int_eq(c[4].out[0].reason, FINISH_TIME_LIMIT);
    ck_assert_int_eq(c[4].end, END_FINISHED);
    ck_assert(c[4].started);
    for (int i = 0; i < 5; i++) client_deinit(&c[i]);
    engine_close(e);
    fake_gate_deinit(&gate);
    free(c);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("engine");
    tcase_add_loop_test(tc, streams_equal_the_oracle, 0, 48);
    tcase_add_loop_test(tc, preempted_equals_uninterrupted, 0, 4);
    tcase_add_loop_test(tc, together_equals_alone, 0, 6);
    tcase_add_loop_test(tc, a_prefix_is_reused, 0, 2);
    tcase_add_loop_test(tc, every_reason_to_finish, 0, 2);
    return check_run("engine", tc);
}
