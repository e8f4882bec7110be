/* Processor time of a step on the host: plan + commit, without a device, at several batch sizes.
 * Budget: 20 us at 256 sequences. Prints the mean, and what a step costs while prompts come and go.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "engine/sched.h"

enum { STEPS = 2000, OUTPUT = 2000, CONTEXT = 8192, BLOCKS = 1 << 15, BT = 32, VOCAB = 32000 };

typedef struct world {
    kv_pool kv;
    sched sched;
    plan plan;
    sampled *result;
    seq_limits limits;
    engine_request *request;
    int32_t *prompt;
    int n_ended;
} world;

static void on_event(void *ctx, const engine_event *e) {
    if (e->kind == EVENT_ENDED) ((world *)ctx)->n_ended++;
}

static void check(status s) {
    if (s == OK) return;
    fprintf(stderr, "bench_sched: %s\n", status_name(s));
    exit(1);
}

static void add(world *w, int i, int n_prompt, int max_tokens, bool penalties) {
    engine_request *r = &w->request[i];
    seq_group *g;
    *r = (engine_request){.prompt = w->prompt,
                          .n_prompt = n_prompt,
                          .max_tokens = max_tokens,
                          .n_choices = 1,
                          .ignore_eos = true,
                          .repetition_penalty = penalties ? 1.1f : 0,
                          .deadline_ns = TIME_NEVER,
                          .time_limit_ns = TIME_NEVER,
                          .on_event = on_event,
                          .ctx = w};
    check(seq_group_open(r, &w->limits, &g));
    r->priv.sequences = g;
    sched_add(&w->sched, g);
}

static void open_world(world *w, int n) {
    static const uint64_t key[2] = {1, 2};
    const backend_limits cap = {.n_tokens_max = n + 2048,
                                .n_seqs_max = n,
                                .n_samples_max = n + 16,
                                .n_blocks_max = n * (CONTEXT / BT),
                                .n_bias_max = 4096,
                                .n_seen_max = n * 2 * OUTPUT,
                                .n_copies_max = n,
                                .kv_block_tokens = BT,
                                .kv_blocks = BLOCKS};
    memset(w, 0, sizeof *w);
    w->limits =
        (seq_limits){.context = CONTEXT, .n_vocab = VOCAB, .kv_blocks = BLOCKS, .block_tokens = BT};
    check(kv_pool_init(&w->kv, BLOCKS, BT, key, true));
    check(sched_init(&w->sched, &w->kv, n, n + 2048));
    check(plan_init(&w->plan, &cap));
    w->result = calloc((size_t)cap.n_samples_max, sizeof *w->result);
    w->request = calloc((size_t)n + 4 * STEPS, sizeof *w->request);
    w->prompt = calloc(CONTEXT, sizeof *w->prompt);
    if (!w->result || !w->request || !w->prompt) check(E_NOMEM);
    for (int i = 0; i < cap.n_samples_max; i++) w->result[i] = (sampled){.finite = true};
    for (int i = 0; i < CONTEXT; i++) w->prompt[i] = i * 7 % VOCAB;
}

static void close_world(world *w) {
    sched_end_all(&w->sched, END_DRAINING);
    for (seq_group *g; (g = sched_take_retired(&w->sched)) != NULL;) seq_group_close(g);
    plan_deinit(&w->plan);
    sched_deinit(&w->sched);
    kv_pool_deinit(&w->kv);
    free(w->result);
    free(w->request);
    free(w->prompt);
}

/* This thread's processor time: what others do on the machine is not counted. */
static int64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void run_step(world *w, int i) {
    const int64_t now = (int64_t)i * NS_PER_MS + 1;
    const int n = sched_plan(&w->sched, &w->plan, 0, now);
    for (int k = 0; k < w->plan.step.n_samples; k++) w->result[k].token = (i + k) % VOCAB;
    if (n > 0) sched_commit(&w->sched, &w->plan, w->result, NS_PER_MS, now);
    for (seq_group *g; (g = sched_take_retired(&w->sched)) != NULL;) seq_group_close(g);
}

static double steady(int n, bool penalties) {
    world w;
    open_world(&w, n);
    for (int i = 0; i < n; i++) add(&w, i, 512, OUTPUT, penalties);
    for (int i = 0; w.sched.n_groups_waiting > 0 || w.plan.n_prefill_tokens > 0 || i < 2; i++)
        run_step(&w, i);
    const int64_t began = cpu_ns();
    for (int i = 0; i < STEPS / 2; i++) run_step(&w, i);
    const int64_t ns = cpu_ns() - began;
    close_world(&w);
    return (double)ns / (STEPS / 2) / 1e3;
}

/* Every sequence makes 64 tokens; a newcomer takes each place that becomes free. */
static double churn(int n) {
    world w;
    open_world(&w, n);
    int made = 0;
    for (; made < n; made++) add(&w, made, 256, 1 + made % 64, false);
    const int64_t began = cpu_ns();
    for (int i = 0; i < STEPS; i++) {
        while (made - w.n_ended < n && made < n + 4 * STEPS) add(&w, made++, 256, 64, false);
        run_step(&w, i);
    }
    const int64_t ns = cpu_ns() - began;
    close_world(&w);
    return (double)ns / STEPS / 1e3;
}

int main(void) {
    static const int sizes[] = {1, 8, 64, 256, 1024};
    printf("%9s %14s %14s %14s\n", "sequences", "decode us", "penalties us", "churn us");
    for (int i = 0; i < 5; i++)
        printf("%9d %14.2f %14.2f %14.2f\n", sizes[i], steady(sizes[i], false),
               sizes[i] <= 256 ? steady(sizes[i], true) : 0.0, churn(sizes[i]));
    return 0;
}
