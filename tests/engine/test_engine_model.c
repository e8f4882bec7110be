/* The engine on the CPU backend with real models: 64 streams together, in a pool so small that they
 * push each other out, in chunks, with prefix reuse, with choices and penalties, give bit for bit
 * the tokens that each gives alone. The small models are golden data, SmolLM2 is the product's
 * default (INFERD_MODEL, else ~/.cache/inferd). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/gguf.h"
#include "engine/weights.h"
#include "tests/check_main.h"
#include "tests/engine/fake_client.h"
#include "tests/goldens.h"

enum { N = 64, CONTEXT = 512 };

static const char *const golden[] = {"llama-gqa3-tied", "qwen2-gqa7", "llama-quant-Q4_1",
                                     "llama-quant-Q4_K_M"};
enum { N_GOLDEN = sizeof golden / sizeof *golden };

static void default_path(char *out, size_t size) {
    const char *file = getenv("INFERD_MODEL"), *home = getenv("HOME");
    if (file != NULL)
        snprintf(out, size, "%s", file);
    else
        snprintf(out, size, "%s/.cache/inferd/SmolLM2-135M-Instruct.Q4_1.gguf",
                 home != NULL ? home : "");
}

/* Not started. */
static engine *open_model(const char *path, const engine_options *o) {
    error err = {.text = ""};
    gguf *g = NULL;
    weights *w = NULL;
    backend *b = NULL;
    engine *e = NULL;
    ck_assert_msg(gguf_open(path, &g, &err) == OK, "%s", err.text);
    ck_assert_msg(weights_open(g, 0, &w, &err) == OK, "%s", err.text);
    const backend_options device = {.threads = 2};
    ck_assert_msg(backend_open("cpu", &device, &b, &err) == OK, "%s", err.text);
    model_desc d = *weights_desc(w);
    if (d.context_length > CONTEXT) d.context_length = CONTEXT;
    ck_assert_msg(engine_open(b, &d, o, NULL, NULL, &e, &err) == OK, "%s", err.text);
    weights_close(w); /* the engine has what it needs */
    gguf_close(g);
    return e;
}

/* A third greedy, the others drawn; prompts partly alike; choices, penalties and scores among them.
 */
static void make(client *c, int i, int longest, int output) {
    client_init(c, 1 + i * 37 % longest, 1 + i * 11 % output, (unsigned)(i % 2));
    engine_request *r = &c->request;
    r->temperature = i % 3 == 0 ? 0.0f : 0.9f;
    r->top_k = i % 3 == 1 ? 40 : 0;
    r->top_p = i % 3 == 2 ? 0.9f : 0.0f;
    r->repetition_penalty = i % 4 == 1 ? 1.2f : 0.0f;
    r->presence_penalty = i % 4 == 2 ? 0.5f : 0.0f;
    r->seed = (uint64_t)i + 1;
    r->n_choices = i % 8 == 5 ? 3 : 1;
    r->prompt_logprobs = i % 16 == 7;
    r->logprobs = i % 2 == 0;
    r->ignore_eos = true;
}

static void start(engine *e) {
    error err = {.text = ""};
    ck_assert_msg(engine_start(e, &err) == OK, "%s", err.text);
}

static void wait_all(client *c, int n) {
    for (int i = 0; i < n; i++) ck_assert_msg(client_wait(&c[i]), "stream %d never ended", i);
}

static void compare(const client *a, const client *b, int i) {
    ck_assert_int_eq(a->end, END_FINISHED);
    ck_assert_int_eq(b->end, END_FINISHED);
    for (int c = 0; c < a->request.n_choices; c++) {
        const client_output *x = &a->out[c], *y = &b->out[c];
        ck_assert_msg(x->n == y->n, "stream %d choice %d: %d and %d tokens", i, c, x->n, y->n);
        for (int k = 0; k < x->n; k++)
            ck_assert_msg(x->token[k] == y->token[k] && x->logprob[k] == y->logprob[k],
                          "stream %d choice %d token %d: %d and %d", i, c, k, x->token[k],
                          y->token[k]);
    }
    ck_assert_int_eq(a->n_prompt_scores, b->n_prompt_scores);
    ck_assert_mem_eq(a->prompt_score, b->prompt_score, sizeof a->prompt_score);
}

static void together_equals_alone(const char *path, int n, int longest, int output,
                                  const engine_options *crowded) {
    client *together = calloc((size_t)n, sizeof *together),
           *alone = calloc((size_t)n, sizeof *alone);
    engine *e = open_model(path, crowded);
    engine_stats s;
    for (int i = 0; i < n; i++) {
        make(&together[i], i, longest, output);
        ck_assert_int_eq(engine_submit(e, &together[i].request), OK);
    }
    start(e); /* so that all wait for it from the first step on */
    wait_all(together, n);
    ck_assert(client_engine_idle(e));
    engine_read_stats(e, &s);
    ck_assert_uint_gt(s.preemptions, 0);
    ck_assert_uint_gt(s.cached_prompt_tokens, 0);
    engine_close(e);

    const engine_options roomy = {.max_sequences = 4, .kv_blocks = 64, .kv_type = crowded->kv_type};
    e = open_model(path, &roomy); /* default block size, no prefix cache, whole prompts */
    start(e);
    for (int i = 0; i < n; i++) {
        make(&alone[i], i, longest, output);
        ck_assert_int_eq(engine_submit(e, &alone[i].request), OK);
        wait_all(&alone[i], 1);
        compare(&together[i], &alone[i], i);
        client_deinit(&alone[i]);
        client_deinit(&together[i]);
    }
    engine_close(e);
    free(together);
    free(alone);
}

START_TEST(golden_models) {
    char path[GOLDEN_PATH_BYTES];
    golden_path(path, "models/%s.gguf", golden[_i]);
    const engine_options crowded = {.max_sequences = 24,
                                    .max_step_tokens = 48,
                                    .kv_blocks = 26,
                                    .kv_block_tokens = 16,
                                    .kv_type = -1,
                                    .prefix_cache = true};
    together_equals_alone(path, N, 180, 60, &crowded);
}
END_TEST

START_TEST(default_model) {
    char path[4096];
    default_path(path, sizeof path);
    const engine_options crowded = {.max_sequences = 32,
                                    .max_step_tokens = 64,
                                    .kv_blocks = 10,
                                    .kv_block_tokens = 16,
                                    .kv_type = -1,
                                    .prefix_cache = true};
    together_equals_alone(path, N, 48, 24, &crowded);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("engine_model");
    tcase_add_loop_test(tc, golden_models, 0, N_GOLDEN);
    tcase_add_test(tc, default_model);
    return check_run("engine_model", tc);
}
