/* Method: every encode and stream case of the shared goldens, through the public interface. Phi-3's
 * `</s>` in plain text: either answer is right by the goldens' README; ours is `ids`. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/tokenizer.h"
#include "tests/check_main.h"
#include "tests/goldens.h"

static const char *const names[] = {"qwen2", "llama-bpe", "llama-spm", "phi-3", "gpt-2", "smollm2"};
enum { N_NAMES = sizeof names / sizeof names[0] };

static tokenizer *open_golden(const char *name) {
    char path[GOLDEN_PATH_BYTES];
    error err = {0};
    gguf *g;
    tokenizer *t;
    golden_path(path, "tokenizer/ggml-vocab-%s.gguf", name);
    ck_assert_msg(gguf_open(path, &g, &err) == OK, "%s", err.text);
    const clock_t start = clock();
    ck_assert_msg(tokenizer_open(g, &t, &err) == OK, "%s: %s", name, err.text);
    printf("%s: %d tokens, opened in %.1f ms\n", tokenizer_name(t), tokenizer_n_vocab(t),
           (double)(clock() - start) * 1e3 / CLOCKS_PER_SEC);
    gguf_close(g);
    return t;
}

/* Calls fn with each record of a file; returns their number. */
static int each_record(const char *name, const char *suffix, const tokenizer *t,
                       void (*fn)(const tokenizer *t, json_t *record)) {
    char path[GOLDEN_PATH_BYTES];
    golden_path(path, "tokenizer/%s%s", name, suffix);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s: cannot open", path);
    json_t *record;
    int n = 0;
    while ((record = json_loadf(f, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, NULL))) {
        fn(t, record);
        json_decref(record);
        n++;
    }
    fclose(f);
    return n;
}

static const char *bytes_of(json_t *record, const char *key, size_t *len) {
    const json_t *v = json_object_get(record, key);
    ck_assert(json_is_string(v));
    *len = json_string_length(v);
    return json_string_value(v);
}

static void check_encode(const tokenizer *t, json_t *record) {
    text_part part = {.literal = !json_is_true(json_object_get(record, "parse_special"))};
    part.s = bytes_of(record, "text", &part.len);
    const bool add = json_is_true(json_object_get(record, "add_special"));
    token_list got = {.with_offsets = true};
    ck_assert_int_eq(tokenizer_encode(t, &part, 1, add ? TOKENIZE_ADD_SPECIAL : 0u, &got), OK);
    const json_t *want = json_object_get(record, "ids");
    bool equal = json_array_size(want) == got.n;
    for (size_t i = 0; equal && i < got.n; i++) {
        equal = json_integer_value(json_array_get(want, i)) == got.id[i];
    }
    if (!equal) {
        char *dump = json_dumps(record, JSON_COMPACT);
        fprintf(stderr, "%s: %.400s\n  got", tokenizer_name(t), dump);
        for (size_t i = 0; i < got.n && i < 60; i++) fprintf(stderr, " %d", got.id[i]);
        fprintf(stderr, "\n");
        free(dump);
    }
    ck_assert(equal);
    for (size_t i = 0; i < got.n; i++) {
        ck_assert_uint_le(got.start[i], got.end[i]);
        ck_assert_uint_le(got.end[i], part.len);
        if (i > 0) ck_assert_uint_le(got.start[i - 1], got.start[i]);
    }
    token_list_free(&got);
}

static size_t from_hex(const char *hex, unsigned char *out) {
    size_t n = 0;
    unsigned v;
    for (; hex[2 * n] && sscanf(hex + 2 * n, "%2x", &v) == 1; n++) out[n] = (unsigned char)v;
    return n;
}

static void check_stream(const tokenizer *t, json_t *record) {
    const json_t *ids = json_object_get(record, "ids");
    const json_t *pieces = json_object_get(record, "pieces_hex");
    const json_t *emits = json_object_get(record, "emits_hex");
    unsigned char want[4096];
    text_buffer all = {0};
    detokenizer d;
    detokenizer_init(&d, t, false, false);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const int32_t id = (int32_t)json_integer_value(json_array_get(ids, i));
        size_t len, n = from_hex(json_string_value(json_array_get(pieces, i)), want);
        const char *piece = tokenizer_piece(t, id, false, &len);
        ck_assert_mem_eq(piece, want, len);
        ck_assert_uint_eq(len, n);
        const size_t before = all.len;
        ck_assert_int_eq(detokenizer_push(&d, id, &all), OK);
        if (!emits) continue;
        n = from_hex(json_string_value(json_array_get(emits, i)), want);
        ck_assert_uint_eq(all.len - before, n);
        if (n > 0) ck_assert_mem_eq(all.s + before, want, n);
    }
    ck_assert_int_eq(detokenizer_finish(&d, &all), OK);
    size_t len;
    const char *text = bytes_of(record, "text", &len);
    ck_assert_uint_eq(all.len, len);
    if (len > 0) ck_assert_mem_eq(all.s, text, len);
    text_buffer_free(&all);
}

START_TEST(encode_equals_the_reference) {
    tokenizer *t = open_golden(names[_i]);
    const clock_t start = clock();
    const int n = each_record(names[_i], ".jsonl", t, check_encode);
    printf("  %d encode cases in %.0f ms\n", n, (double)(clock() - start) * 1e3 / CLOCKS_PER_SEC);
    ck_assert_int_gt(n, 0);
    tokenizer_close(t);
}
END_TEST

START_TEST(stream_equals_the_reference) {
    tokenizer *t = open_golden(names[_i]);
    ck_assert_int_gt(each_record(names[_i], ".stream.jsonl", t, check_stream), 0);
    tokenizer_close(t);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("goldens");
    tcase_add_loop_test(tc, encode_equals_the_reference, 0, N_NAMES);
    tcase_add_loop_test(tc, stream_equals_the_reference, 0, N_NAMES);
    return check_run("tokenizer_goldens", tc);
}
