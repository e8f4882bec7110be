/* Method: with each golden vocabulary, texts of one repeated unit: twice the text takes at most 2.3
 * times the time, 2 MiB take at most a second, a stack of 64 KiB is enough, memory stays in
 * proportion, and decoding gives the text back. Time is CPU time, the best of a few runs. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cost.h"
#include "engine/tokenizer.h"
#include "tests/check_main.h"
#include "tests/goldens.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { MIB = 1 << 16, STACK_BYTES = 1 << 20, SLOWER = 4 };
#else
enum { MIB = 1 << 20, STACK_BYTES = 64 << 10, SLOWER = 1 };
#endif

static const char *const names[] = {"qwen2", "llama-bpe", "llama-spm", "phi-3", "gpt-2", "smollm2"};
enum { N_NAMES = sizeof names / sizeof names[0] };

static const char *const units[] = {
    "a",  " ",     "\n",         "\xCC\x81", "<",
    "漢", "hello", "<|im_start", "</s> ",    "The quick brown fox's 1,234. "};
enum { N_UNITS = sizeof units / sizeof units[0] };

static tokenizer *open_golden(const char *name) {
    char path[GOLDEN_PATH_BYTES];
    gguf *g;
    tokenizer *t;
    error err = {0};
    golden_path(path, "tokenizer/ggml-vocab-%s.gguf", name);
    ck_assert_msg(gguf_open(path, &g, &err) == OK, "%s", err.text);
    ck_assert_msg(tokenizer_open(g, &t, &err) == OK, "%s", err.text);
    gguf_close(g);
    return t;
}

/* About `bytes` of whole units; *len is the length. Owned by the caller. */
static char *text_of(const char *unit, size_t bytes, size_t *len) {
    const size_t n = strlen(unit);
    char *s = malloc(bytes + n);
    ck_assert(s != NULL);
    for (*len = 0; *len < bytes; *len += n) memcpy(s + *len, unit, n);
    return s;
}

static double encode_seconds(const tokenizer *t, const char *unit, size_t bytes, bool literal) {
    size_t len;
    char *s = text_of(unit, bytes, &len);
    const text_part part = {s, len, literal};
    token_list ids = {0};
    struct timespec a, b;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    const status st = tokenizer_encode(t, &part, 1, 0, &ids);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    ck_assert_int_eq(st, OK);
    ck_assert_uint_gt(ids.n, 0);
    token_list_free(&ids);
    free(s);
    return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

/* The kinds differ here: BPE with and without NFC, SentencePiece. */
static const char *const timed[] = {"qwen2", "smollm2", "llama-spm"};
enum { N_TIMED = sizeof timed / sizeof timed[0] };

START_TEST(time_is_linear) {
    tokenizer *t = open_golden(timed[_i]);
    /* 2.3 on a quiet machine; beside other work the caches are not ours, and 3.5 still tells linear
     * from quadratic. */
    const double bound = cost_crowded() > 1 ? 3.5 : 2.3;
    double worst_ratio = 0.0, worst_time = 0.0;
    const char *slowest = "";
    for (int u = 0; u < N_UNITS; u++) {
        double one = 1e9, two = 1e9;
        for (int run = 0; run < 12 || (run < 40 && two > bound * one); run++) {
            if (two <= 2.3 * one && two <= 1.0) break;
            const double x = encode_seconds(t, units[u], MIB, u % 2);
            const double y = encode_seconds(t, units[u], 2 * MIB, u % 2);
            one = x < one ? x : one;
            two = y < two ? y : two;
        }
        if (two / one > worst_ratio) worst_ratio = two / one;
        if (two > worst_time) {
            worst_time = two;
            slowest = units[u];
        }
        ck_assert_msg(two <= bound * one * SLOWER + 0.010, "unit %d '%s': %.0f ms, then %.0f ms", u,
                      units[u], one * 1e3, two * 1e3);
        ck_assert_msg(two <= 1.0 * SLOWER * cost_crowded(), "unit %d '%s': %.0f ms", u, units[u],
                      two * 1e3);
    }
    printf("%s: worst ratio %.2f, slowest 2 MiB %.0f ms (of '%s')\n", timed[_i], worst_ratio,
           worst_time * 1e3, slowest);
    tokenizer_close(t);
}
END_TEST

static void *encode_all_units(void *arg) {
    const tokenizer *t = arg;
    for (int u = 0; u < N_UNITS; u++) encode_seconds(t, units[u], MIB / 16, u % 2);
    return NULL;
}

START_TEST(a_small_stack_is_enough) {
    tokenizer *t = open_golden(names[_i]);
    pthread_attr_t attr;
    pthread_t thread;
    ck_assert_int_eq(pthread_attr_init(&attr), 0);
    ck_assert_int_eq(pthread_attr_setstacksize(&attr, STACK_BYTES), 0);
    ck_assert_int_eq(pthread_create(&thread, &attr, encode_all_units, t), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attr);
    tokenizer_close(t);
}
END_TEST

/* Texts that are their own NFC and have no byte that SmolLM2 lacks come back as they were. */
START_TEST(decoding_gives_the_text_back) {
    static const char *const texts[] = {"Hello, world!",
                                        " leading",
                                        "trailing ",
                                        "  two",
                                        "a\n\nb\r\n\tc",
                                        "naïve café",
                                        "漢字かな 한국어",
                                        "👩🏽‍🚀🏳️‍🌈 x",
                                        "<|im_start|> as text </s> <s>",
                                        "1234567890 3.14",
                                        "\u00a0\u3000",
                                        "x=y;{}[]",
                                        "''s 'RE"};
    tokenizer *t = open_golden(names[_i]);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const text_part part = {texts[i], strlen(texts[i]), true};
        token_list ids = {0};
        detokenizer d;
        text_buffer out = {0};
        ck_assert_int_eq(tokenizer_encode(t, &part, 1, TOKENIZE_ADD_SPECIAL, &ids), OK);
        detokenizer_init(&d, t, false, tokenizer_strips_leading_space(t));
        for (size_t k = 0; k < ids.n; k++) {
            ck_assert_int_eq(detokenizer_push(&d, ids.id[k], &out), OK);
        }
        ck_assert_int_eq(detokenizer_finish(&d, &out), OK);
        if (strcmp(names[_i], "phi-3") != 0 || !strstr(texts[i], "</s>")) {
            ck_assert_str_eq(out.s, texts[i]); /* Phi-3's </s> is a token and eats a space */
        }
        text_buffer_free(&out);
        token_list_free(&ids);
    }
    tokenizer_close(t);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("limits");
    tcase_add_loop_test(tc, time_is_linear, 0, N_TIMED);
    tcase_add_loop_test(tc, a_small_stack_is_enough, 0, N_NAMES);
    tcase_add_loop_test(tc, decoding_gives_the_text_back, 0, N_NAMES);
    return check_run("tokenizer_limits", tc);
}
