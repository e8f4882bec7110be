/* The CPU backend through its door: a sequence's logits do not depend, in a single bit, on its
 * batch-mates, the chunking, the block size, the number of threads; copies of blocks are copies;
 * wrong steps and wrong sizes are refused. (What the logits must be: tests/conformance.) */
#include <stdio.h>

#include "tests/check_main.h"
#include "tiny_model.h"

enum { N_VARIANTS = 4, LENGTH = 150 };

static const dtype TYPES[N_VARIANTS] = {DTYPE_Q4_1, DTYPE_Q4_K, DTYPE_F16, DTYPE_IQ4_XS};
static int32_t tokens[TINY_SEQS][TINY_CONTEXT];

static void random_tokens(rng *r, int n_vocab) {
    for (int s = 0; s < TINY_SEQS; s++) {
        for (int i = 0; i < TINY_CONTEXT; i++)
            tokens[s][i] = (int32_t)(rng_u32(r) % (unsigned)n_vocab);
    }
}

static float *logit_array(const tiny_model *t) {
    return calloc((size_t)TINY_SEQS * TINY_CONTEXT * (size_t)t->m.n_vocab, sizeof(float));
}

static void check_same(const tiny_model *t, const float *a, const float *b, int seq, int length,
                       const char *what) {
    const size_t n = (size_t)t->m.n_vocab, at = (size_t)seq * TINY_CONTEXT * n;
    for (int r = 0; r < length; r++)
        ck_assert_msg(same_bits(a + at + (size_t)r * n, b + at + (size_t)r * n, n),
                      "%s: sequence %d row %d differs", what, seq, r);
}

/* Whole sequences, one by one. */
static float *alone(const tiny_model *t, int threads, int block, int kv_type) {
    float *out = logit_array(t);
    backend *b = tiny_backend(t, threads, block, kv_type, LENGTH);
    for (int s = 0; s < 4; s++) {
        const part p = {.seq = s, .from = 0, .to = LENGTH - 13 * s};
        tiny_step(b, t, block, &p, 1, tokens, out);
    }
    b->ops->close(b);
    return out;
}

/* Random mixes: each step advances some sequences by random chunks. */
static float *mixed(const tiny_model *t, rng *r, int threads, int block, int kv_type) {
    float *out = logit_array(t);
    backend *b = tiny_backend(t, threads, block, kv_type, 4 * LENGTH);
    int done[4] = {0}, left = 4;
    while (left > 0) {
        part parts[4];
        int n = 0;
        for (int s = 0; s < 4; s++) {
            const int all = LENGTH - 13 * s;
            if (done[s] == all || rng_u32(r) % 4 == 0) continue;
            int chunk = rng_u32(r) % 2 == 0 ? 1 : 1 + (int)(rng_u32(r) % 50);
            if (chunk > all - done[s]) chunk = all - done[s];
            parts[n++] = (part){.seq = s, .from = done[s], .to = done[s] + chunk};
            done[s] += chunk;
            left -= done[s] == all;
        }
        if (n > 0) tiny_step(b, t, block, parts, n, tokens, out);
    }
    b->ops->close(b);
    return out;
}

START_TEST(logits_do_not_depend_on_company) {
    const int variant = _i % N_VARIANTS, kv_types[] = {-1, DTYPE_F16, DTYPE_BF16, DTYPE_I8};
    const int kv_type = kv_types[_i / N_VARIANTS];
    tiny_model t;
    tiny_model_make(&t, variant, TYPES[variant]);
    rng r = {.s = (uint64_t)_i};
    random_tokens(&r, t.m.n_vocab);
    float *want = alone(&t, 1, 32, kv_type);
    for (int s = 0; s < 4; s++) { /* not all zero, not all the same */
        const float *row = want + ((size_t)s * TINY_CONTEXT + 100) * (size_t)t.m.n_vocab;
        ck_assert(isfinite(row[0]) && fabsf(row[0] - row[1]) > 1e-4f);
    }
    const int blocks[] = {16, 32, 64};
    for (int k = 0; k < 3; k++) {
        float *got = mixed(&t, &r, 1 + k, blocks[k], kv_type);
        for (int s = 0; s < 4; s++) check_same(&t, want, got, s, LENGTH - 13 * s, "mixed");
        free(got);
    }
    free(want);
    tiny_model_free(&t);
}
END_TEST

/* A sequence that goes on in copied blocks gives what it would have given in its own. */
START_TEST(copied_blocks_are_equal) {
    tiny_model t;
    tiny_model_make(&t, 0, DTYPE_Q4_0);
    rng r = {.s = 1};
    random_tokens(&r, t.m.n_vocab);
    float *out = logit_array(&t);
    backend *b = tiny_backend(&t, 2, 16, -1, 64);
    const part head = {.seq = 0, .from = 0, .to = 40}, next = {.seq = 0, .from = 40, .to = 41};
    tiny_step(b, &t, 16, &head, 1, tokens, out);
    tiny_step(b, &t, 16, &next, 1, tokens, out);

    block_copy copies[3] = {{0, 5}, {TINY_SEQS, 6}, {2 * TINY_SEQS, 7}};
    int32_t block[3] = {5, 6, 7}, seq_start[2] = {0, 1}, kv_len[1] = {41}, block_start[2] = {0, 3};
    sample_row sample[1] = {{.row = 0, .target = -1}};
    const step s = {.n_tokens = 1,
                    .n_seqs = 1,
                    .n_decode = 1,
                    .n_samples = 1,
                    .n_blocks = 3,
                    .n_copies = 3,
                    .token = &tokens[0][40],
                    .seq_start = seq_start,
                    .kv_len = kv_len,
                    .block_start = block_start,
                    .block = block,
                    .sample = sample,
                    .copies = copies};
    sampled result;
    float logits[512];
    ck_assert_int_eq(model_forward(b, TINY_LAYERS, &s), OK);
    ck_assert_int_eq(b->ops->wait_step(b, &result), OK);
    ck_assert_int_eq(b->ops->read_logits(b, logits, 512), OK);
    ck_assert(same_bits(logits, out + (size_t)40 * (size_t)t.m.n_vocab, (size_t)t.m.n_vocab));
    int best = 0;
    for (int i = 0; i < t.m.n_vocab; i++) best = logits[i] > logits[best] ? i : best;
    ck_assert_int_eq(result.token, best);
    ck_assert_int_eq(b->ops->read_logits(b, logits, 10), E_INVAL);
    b->ops->close(b);
    free(out);
    tiny_model_free(&t);
}
END_TEST

START_TEST(wrong_steps_are_refused) {
    tiny_model t;
    tiny_model_make(&t, 0, DTYPE_Q4_0);
    backend *b = tiny_backend(&t, 1, 16, -1, 8);
    int32_t token[9] = {0}, block[1] = {0}, seq_start[2] = {0, 1}, kv_len[1] = {1};
    int32_t block_start[2] = {0, 1};
    sample_row sample[1] = {{.row = 0, .target = -1}};
    block_copy copy = {.from = 0, .to = 1};
    const step good = {.n_tokens = 1,
                       .n_seqs = 1,
                       .n_samples = 1,
                       .n_blocks = 1,
                       .token = token,
                       .seq_start = seq_start,
                       .kv_len = kv_len,
                       .block_start = block_start,
                       .block = block,
                       .sample = sample,
                       .copies = &copy};
#define REFUSED(change)                                                                            \
    do {                                                                                           \
        step s = good;                                                                             \
        change;                                                                                    \
        ck_assert_msg(b->ops->begin_step(b, &s) == E_INVAL, "%s", #change);                        \
    } while (0)
    REFUSED(s.n_tokens = 9);
    REFUSED(s.n_tokens = 0);
    REFUSED(s.n_seqs = TINY_SEQS + 1);
    REFUSED(s.n_samples = 9);
    REFUSED(token[0] = t.m.n_vocab);
    REFUSED(token[0] = -1);
    token[0] = 0;
    REFUSED(block[0] = TINY_SEQS * TINY_CONTEXT / 16);
    REFUSED(block[0] = -1);
    block[0] = 0;
    REFUSED(kv_len[0] = 17); /* more than its blocks hold */
    REFUSED(kv_len[0] = 0);
    kv_len[0] = 1;
    REFUSED(sample[0].row = 1);
    sample[0].row = 0;
    REFUSED(sample[0].target = t.m.n_vocab);
    sample[0].target = -1;
    REFUSED((s.n_copies = 1, copy.to = 100000));
    REFUSED((s.n_copies = 1, copy.to = 0));
#undef REFUSED
    sampled out;
    ck_assert_int_eq(model_forward(b, TINY_LAYERS, &good), OK); /* and it still works */
    ck_assert_int_eq(b->ops->wait_step(b, &out), OK);
    ck_assert(out.finite);
    b->ops->close(b);
    tiny_model_free(&t);
}
END_TEST

static status try_load(const tiny_model *t, error *e) {
    backend *b = NULL;
    ck_assert_int_eq(cpu_backend_open(&(backend_options){.threads = 1}, &b, e), OK);
    const status s = b->ops->load(b, &t->m, NULL, NULL, e);
    b->ops->close(b);
    return s;
}

START_TEST(impossible_models_are_refused_by_name) {
    tiny_model t;
    error e = {.text = ""};
    tiny_model_make(&t, 0, DTYPE_Q4_0);
    t.m.head_dim = 258;
    ck_assert_int_eq(try_load(&t, &e), E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(e.text, "258"));
    t.m.head_dim = 32;
    t.m.n_kv_heads = 4;
    ck_assert_int_eq(try_load(&t, &e), E_INVAL);
    t.m.n_heads = t.m.n_kv_heads = 513; /* a task each in attention: more than the pool takes */
    ck_assert_int_eq(try_load(&t, &e), E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(e.text, "513 KV heads"));
    t.m.n_heads = 6;
    t.m.n_kv_heads = 2;
    t.layer[1].up.n_out = 100;
    t.layer[1].up.name = "blk.1.ffn_up.weight";
    ck_assert_int_eq(try_load(&t, &e), E_INVAL);
    ck_assert_ptr_nonnull(strstr(e.text, "blk.1.ffn_up.weight"));
    t.layer[1].up.n_out = 512;
    t.layer[0].attn_norm.data = NULL;
    ck_assert_int_eq(try_load(&t, &e), E_INVAL);
    tiny_model_free(&t);
}
END_TEST

static void note_progress(void *ctx, double fraction) {
    double *last = ctx;
    ck_assert(fraction >= *last && fraction <= 1.0);
    *last = fraction;
}

START_TEST(memory_is_reserved_by_arithmetic) {
    tiny_model t;
    tiny_model_make(&t, 0, DTYPE_Q4_0);
    backend *b = NULL;
    error e = {.text = ""};
    double last = 0;
    ck_assert_int_eq(backend_open("auto", &(backend_options){0}, &b, &e), OK);
    ck_assert_int_eq(b->ops->load(b, &t.m, note_progress, &last, &e), OK);
    ck_assert(last >= 1.0);
    ck_assert_int_eq(b->ops->load(b, &t.m, NULL, NULL, &e), E_STATE);
    backend_memory got;
    backend_limits l = {.n_tokens_max = 64,
                        .n_seqs_max = 2,
                        .n_samples_max = 64,
                        .kv_block_tokens = 32,
                        .kv_type = -1};
    l.kv_block_tokens = 33;
    ck_assert_int_eq(b->ops->reserve(b, &l, &got, &e), E_INVAL);
    l.kv_block_tokens = 32;
    l.kv_type = DTYPE_Q4_0;
    ck_assert_int_eq(b->ops->reserve(b, &l, &got, &e), E_UNSUPPORTED);
    l.kv_type = -1;
    l.kv_memory_bytes = 1000;
    ck_assert_int_eq(b->ops->reserve(b, &l, &got, &e), E_NOMEM);
    l.kv_memory_bytes = 0;
    l.kv_blocks = INT32_MAX;
    ck_assert_int_eq(b->ops->reserve(b, &l, &got, &e), E_NOMEM);
    l.kv_blocks = 0;
    ck_assert_int_eq(b->ops->reserve(b, &l, &got, &e), OK);
    ck_assert_int_eq(got.kv_blocks, 2 * TINY_CONTEXT / 32); /* all that two sequences can use */
    ck_assert_int_eq((int)got.kv_type, DTYPE_F32);
    ck_assert_uint_eq(got.kv_bytes, (uint64_t)got.kv_blocks * 32 * TINY_LAYERS * 2 * 2 * 32 * 4);
    ck_assert_int_eq(b->ops->reserve(b, &l, &got, &e), E_STATE);
    b->ops->close(b);

    ck_assert_int_eq(backend_open("tpu", &(backend_options){0}, &b, &e), E_INVAL);
    ck_assert_ptr_nonnull(strstr(e.text, "tpu"));
    tiny_model_free(&t);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("forward");
    tcase_add_loop_test(tc, logits_do_not_depend_on_company, 0, 4 * N_VARIANTS);
    tcase_add_test(tc, copied_blocks_are_equal);
    tcase_add_test(tc, wrong_steps_are_refused);
    tcase_add_test(tc, impossible_models_are_refused_by_name);
    tcase_add_test(tc, memory_is_reserved_by_arithmetic);
    return check_run("forward", tc);
}
