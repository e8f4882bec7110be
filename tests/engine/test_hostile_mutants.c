/* Hostile model files, made by the thousand: truncation at every byte, structured mutants, files
 * built to be slow or greedy. None may crash, leak or cost much; what is accepted must load and
 * give two tokens. Single wrong files are test_hostile.c's. */
#include "cost.h"
#include "engine/tokenizer.h"
#include "engine/weights.h"
#include "gguf_builder.h"
#include "tests/check_main.h"
#include "two_tokens.h"

enum { BACKEND_RUNS_MAX = 200 };

/* ---- from bytes to two tokens ---- */

static void use_tokenizer(const gguf *g) {
    static const text_part text = {"ab <s>\xC3\xA9 c", 10, false};
    tokenizer *t = NULL;
    token_list ids = {.with_offsets = true};
    error err;
    if (tokenizer_open(g, &t, &err) != OK) return;
    if (tokenizer_encode(t, &text, 1, TOKENIZE_ADD_SPECIAL, &ids) == OK)
        for (size_t i = 0; i < ids.n; i++)
            ck_assert(ids.id[i] >= 0 && ids.id[i] < tokenizer_n_vocab(t));
    token_list_free(&ids);
    tokenizer_close(t);
}

typedef struct tally {
    int n, n_accepted, n_loaded, n_run;
    cost worst; /* of a refusal: its time, and the peak's growth from the first file on */
} tally;

static void try_file(const uint8_t *p, size_t n, tally *t) {
    gguf *g = NULL;
    weights *w = NULL;
    error err = {0};
    const cost start = cost_now();
    status s = gguf_open_memory(p, n, &g, &err);
    t->n++;
    if (s == OK) {
        t->n_accepted++;
        use_tokenizer(g);
        s = weights_open(g, 0, &w, &err);
    }
    if (s != OK) {
        const cost c = cost_since(start);
        ck_assert_msg(err.text[0] != '\0', "a refusal without a text");
        if (c.ns > t->worst.ns) t->worst.ns = c.ns;
        t->worst.peak_kib += c.peak_kib;
    }
    if (s == OK && t->n_loaded++ < BACKEND_RUNS_MAX) {
        t->n_run++;
        const status run = two_tokens(weights_desc(w), &err);
        ck_assert_msg(run == OK || run == E_UNSUPPORTED || run == E_NOMEM, "%s: %s",
                      status_name(run), err.text);
    }
    weights_close(w);
    gguf_close(g);
}

static tiny_model smallest(const char *arch) {
    tiny_model m = tiny_default(arch);
    m.n_layers = 1;
    m.n_embd = m.n_ff = 8;
    m.n_heads = 1;
    m.head_dim = 8;
    m.no_tokenizer = true;
    m.n_vocab = 4;
    return m;
}

START_TEST(truncation_at_every_byte) {
    tiny_model m = smallest("qwen2");
    gguf_builder b = tiny_builder(&m);
    bytes f = builder_finish(&b);
    for (size_t n = 0; n < f.n; n++) {
        uint8_t *copy = malloc(n == 0 ? 1 : n); /* exactly n bytes: the sanitizer sees one more */
        gguf *g = NULL;
        error err = {0};
        memcpy(copy, f.p, n);
        const status s = gguf_open_memory(copy, n, &g, &err);
        /* Only padding after the last tensor may be missing. */
        ck_assert_msg(s == E_FORMAT || (s == OK && n + 32 > f.n), "%zu of %zu: %s", n, f.n,
                      status_name(s));
        gguf_close(g);
        free(copy);
    }
    free(f.p);
}
END_TEST

static uint64_t next_random(uint64_t *x) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* Numbers that parsers get wrong. */
static const uint64_t interesting[] = {0,
                                       1,
                                       2,
                                       3,
                                       7,
                                       8,
                                       13,
                                       31,
                                       32,
                                       33,
                                       63,
                                       64,
                                       255,
                                       256,
                                       4095,
                                       65535,
                                       65536,
                                       INT32_MAX,
                                       UINT32_MAX,
                                       UINT64_C(1) << 32,
                                       INT64_MAX,
                                       UINT64_C(1) << 63,
                                       UINT64_MAX - 31,
                                       UINT64_MAX};

/* One to four changes: mostly in the header (counts, lengths, types, offsets lie there). */
static void mutate(uint8_t *p, size_t *n, size_t header_bytes, uint64_t *x) {
    const int changes = 1 + (int)(next_random(x) % 4);
    for (int c = 0; c<changes && * n> 16; c++) {
        const size_t span = next_random(x) % 8 == 0 ? *n : header_bytes < *n ? header_bytes : *n;
        const size_t at = next_random(x) % (span - 8);
        const uint64_t v =
            interesting[next_random(x) % (sizeof interesting / sizeof interesting[0])];
        switch (next_random(x) % 8) {
        case 0:
            p[at] ^= (uint8_t)(1u << (next_random(x) % 8));
            break;
        case 1:
            p[at] = (uint8_t)next_random(x);
            break;
        case 2:
            memcpy(p + at, &v, 8);
            break;
        case 3:
            memcpy(p + at, &v, 4);
            break;
        case 4: /* a small step of a number */
            p[at] = (uint8_t)(p[at] + (next_random(x) % 2 ? 1 : 255));
            break;
        case 5: /* bytes taken out */
            memmove(p + at, p + at + 4, *n - at - 4);
            *n -= 4;
            break;
        case 6: /* a piece copied over another */
            memmove(p + at, p + next_random(x) % (span - 8), 8);
            break;
        default:
            *n -= next_random(x) % 64;
        }
    }
}

/* INFERD_MUTANTS: how many in all (100,000 when unset), an eighth a seed. */
static int mutants_per_seed(void) {
    const char *env = getenv("INFERD_MUTANTS");
    const long n = env != NULL ? strtol(env, NULL, 10) : 100000;
    return n > 8 && n < 100000000 ? (int)(n / 8) : 12500;
}

START_TEST(mutants_do_no_harm) {
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "phi3"};
    tiny_model m = smallest(archs[_i % 4]);
    if (_i >= 4) { /* with a vocabulary */
        m.no_tokenizer = false;
        m.n_vocab = 264;
    }
    gguf_builder b = tiny_builder(&m);
    const size_t header_bytes = 24 + b.kv.n + b.infos.n;
    bytes f = builder_finish(&b);
    uint64_t x = 88172645463325252u + (uint64_t)_i;
    uint8_t *copy = malloc(f.n);
    tally t = {0};
    for (int k = mutants_per_seed(); k > 0; k--) {
        size_t n = f.n;
        memcpy(copy, f.p, n);
        mutate(copy, &n, header_bytes, &x);
        try_file(copy, n, &t);
    }
    printf("%s, %zu bytes: %d mutants, %d parsed, %d loaded, %d run; refusals: slowest %.1f ms, "
           "%ld KiB in all\n",
           m.arch, f.n, t.n, t.n_accepted, t.n_loaded, t.n_run, (double)t.worst.ns / 1e6,
           t.worst.peak_kib);
    cost_check_refusal(t.worst, f.n, m.arch);
    ck_assert_int_gt(t.n_accepted, 0); /* else the mutator is too rough to test anything */
    ck_assert_int_lt(t.n_accepted, t.n);
    ck_assert_int_gt(t.n_run, 0);
    free(copy);
    free(f.p);
}
END_TEST

/* ---- cost ---- */

/* A vocabulary as large as Qwen's that is right up to its last merge. */
START_TEST(a_late_refusal_is_cheap) {
    enum { TOKENS = 152000, MERGES = 300000 };
    gguf_builder b = builder_new();
    char text[32];
    builder_str(&b, "tokenizer.ggml.model", "gpt2");
    builder_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, TOKENS, "", 0);
    for (unsigned i = 0; i < TOKENS; i++) {
        (void)snprintf(text, sizeof text, "%x", i);
        bytes_str(&b.kv, text);
    }
    builder_array(&b, "tokenizer.ggml.merges", GGUF_STRING, MERGES, "", 0);
    for (unsigned i = 0; i < MERGES; i++) {
        const unsigned right = 16 + i % (TOKENS / 16 - 16);
        (void)snprintf(text, sizeof text, "1 %x", i == MERGES - 1 ? TOKENS : right);
        bytes_str(&b.kv, text);
    }
    bytes f = builder_finish(&b);
    gguf *g = NULL;
    tokenizer *t = NULL;
    error err = {0};
    const cost start = cost_now();
    ck_assert_int_eq(gguf_open_memory(f.p, f.n, &g, &err), OK);
    ck_assert_int_eq(tokenizer_open(g, &t, &err), E_FORMAT);
    gguf_close(g);
    const cost c = cost_since(start);
    ck_assert_msg(strstr(err.text, "merges[299999]") != NULL, "%s", err.text);
    printf("%zu bytes: %.1f ms, %ld KiB: %s\n", f.n, (double)c.ns / 1e6, c.peak_kib, err.text);
    cost_check_refusal(c, 0, err.text);
    free(f.p);
}
END_TEST

/* Large files built to be slow or greedy. The file itself is in memory before the count starts. */
START_TEST(refusals_are_cheap) {
    enum { SIZE = 48 << 20 };
    uint8_t *p = calloc(1, SIZE);
    gguf_builder b = builder_new();
    error err = {0};
    gguf *g = NULL;
    ck_assert_ptr_nonnull(p);
    if (_i == 0) builder_array(&b, "k", GGUF_STRING, SIZE / 8 - 64, "", 0); /* empty strings */
    if (_i == 1) builder_array(&b, "k", GGUF_STRING, (1 << 21) + 1, "", 0); /* one above the cap */
    if (_i == 2) builder_array(&b, "k", GGUF_BOOL, SIZE, "", 0);
    if (_i == 3) b.claim_n_tensors = 65536;
    if (_i == 4) b.claim_n_kv = 65536;
    if (_i == 5) builder_array(&b, "k", GGUF_STRING, 1 << 21, "", 0); /* then tensors are missing */
    if (_i < 3 || _i == 5) b.claim_n_tensors = 1;
    bytes head = builder_finish(&b);
    memset(p, 0, SIZE);
    memcpy(p, head.p, head.n);
    const cost start = cost_now();
    const status s = gguf_open_memory(p, SIZE, &g, &err);
    const cost c = cost_since(start);
    ck_assert_msg(s == E_FORMAT, "case %d: %s: %s", _i, status_name(s), err.text);
    printf("case %d: %.1f ms, %ld KiB: %s\n", _i, (double)c.ns / 1e6, c.peak_kib, err.text);
    cost_check_refusal(c, 0, err.text);
    free(head.p);
    free(p);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("hostile_mutants");
    tcase_add_test(tc, truncation_at_every_byte);
    tcase_add_loop_test(tc, mutants_do_no_harm, 0, 8);
    tcase_add_loop_test(tc, refusals_are_cheap, 0, 6);
    tcase_add_test(tc, a_late_refusal_is_cheap);
    return check_run("hostile_mutants", tc);
}
