/* SentencePiece merging over artificial vocabularies, against what the sentencepiece library itself
 * answers (tests/data/spm): pieces whose characters are not in the vocabulary, unknown characters
 * with and without byte tokens, equal scores, unused pieces. */
#include <jansson.h>

#include "engine/tokenizer.h"
#include "tests/check_main.h"
#include "tests/engine/gguf_builder.h"

enum { N_VOCABULARIES = 10, PIECES_MAX = 1024, IDS_MAX = 512 };

typedef struct vocabulary {
    const char *token[PIECES_MAX];
    float score[PIECES_MAX];
    int32_t type[PIECES_MAX];
    size_t n;
    char byte[256][8];
} vocabulary;

static void add(vocabulary *v, const char *token, double score, int type) {
    ck_assert_uint_lt(v->n, PIECES_MAX);
    v->token[v->n] = token;
    v->score[v->n] = (float)score;
    v->type[v->n++] = type;
}

static void read_vocabulary(const json_t *o, vocabulary *v) {
    size_t i;
    json_t *piece;
    add(v, "<unk>", 0, TOKEN_UNKNOWN);
    add(v, "<s>", 0, TOKEN_CONTROL);
    add(v, "</s>", 0, TOKEN_CONTROL);
    for (unsigned b = 0; json_is_true(json_object_get(o, "bytes")) && b < 256; b++) {
        (void)snprintf(v->byte[b], sizeof v->byte[b], "<0x%02X>", b);
        add(v, v->byte[b], 0, TOKEN_BYTE);
    }
    json_array_foreach(json_object_get(o, "pieces"), i, piece) {
        add(v, json_string_value(json_array_get(piece, 0)),
            json_number_value(json_array_get(piece, 1)),
            (int)json_integer_value(json_array_get(piece, 2)));
    }
}

static tokenizer *open_vocabulary(const vocabulary *v) {
    gguf_builder b = builder_new();
    gguf *g = NULL;
    tokenizer *t = NULL;
    error err = {0};
    builder_str(&b, "general.architecture", "llama");
    builder_str(&b, "tokenizer.ggml.model", "llama");
    builder_strings(&b, "tokenizer.ggml.tokens", v->token, v->n);
    builder_array(&b, "tokenizer.ggml.scores", GGUF_F32, v->n, v->score, 4 * v->n);
    builder_array(&b, "tokenizer.ggml.token_type", GGUF_I32, v->n, v->type, 4 * v->n);
    bytes f = builder_finish(&b);
    ck_assert_int_eq(gguf_open_memory(f.p, f.n, &g, &err), OK);
    ck_assert_msg(tokenizer_open(g, &t, &err) == OK, "%s", err.text);
    gguf_close(g);
    free(f.p);
    return t;
}

static void list_ids(char *out, size_t size, const int32_t *ids, size_t n) {
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < n && at + 12 < size; i++)
        at += (size_t)snprintf(out + at, size - at, " %d", (int)ids[i]);
}

/* With and without offsets: the two find runs of unknown characters differently. */
static void check_case(const tokenizer *t, const char *name, const json_t *c, bool with_offsets) {
    const char *text = json_string_value(json_array_get(c, 0));
    const json_t *want_json = json_array_get(c, 1);
    const text_part part = {text, strlen(text), true};
    token_list got = {.with_offsets = with_offsets};
    int32_t want[IDS_MAX];
    char got_text[2048], want_text[2048];
    const size_t n = json_array_size(want_json);
    ck_assert_uint_le(n, IDS_MAX);
    for (size_t i = 0; i < n; i++)
        want[i] = (int32_t)json_integer_value(json_array_get(want_json, i));
    ck_assert_int_eq(tokenizer_encode(t, &part, 1, 0, &got), OK);
    list_ids(got_text, sizeof got_text, got.id, got.n);
    list_ids(want_text, sizeof want_text, want, n);
    ck_assert_msg(strcmp(got_text, want_text) == 0, "%s: \"%s\":%s instead of%s", name, text,
                  got_text, want_text);
    token_list_free(&got);
}

START_TEST(as_the_library_does) {
    json_error_t why;
    json_t *all = json_load_file(TEST_DATA "/spm/cases.json", 0, &why), *c;
    ck_assert_msg(all != NULL, "%s", why.text);
    ck_assert_uint_eq(json_array_size(all), N_VOCABULARIES);
    const json_t *o = json_array_get(all, (size_t)_i);
    const char *name = json_string_value(json_object_get(o, "name"));
    static vocabulary v;
    size_t i;
    read_vocabulary(o, &v);
    tokenizer *t = open_vocabulary(&v);
    json_array_foreach(json_object_get(o, "cases"), i, c) {
        check_case(t, name, c, false);
        check_case(t, name, c, true);
    }
    ck_assert_uint_gt(i, 0);
    tokenizer_close(t);
    json_decref(all);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("tokenizer_spm");
    tcase_add_loop_test(tc, as_the_library_does, 0, N_VOCABULARIES);
    return check_run("tokenizer_spm", tc);
}
