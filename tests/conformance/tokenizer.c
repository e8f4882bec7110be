/* Tokenizers: every encode case exactly, every streamed decode piece by piece. */
#include "engine/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suites.h"

typedef struct tally {
    int n, n_wrong;
    char first[160]; /* the first wrong case */
} tally;

static void fail_case(tally *t, const char *tag, int line, const char *what) {
    if (t->n_wrong++ == 0)
        (void)snprintf(t->first, sizeof t->first, "; first: line %d (%.32s): %.80s", line, tag,
                       what);
}

static bool ids_equal(const json_t *want, const token_list *got) {
    if (!json_is_array(want) || json_array_size(want) != got->n) return false;
    for (size_t i = 0; i < got->n; i++)
        if (json_integer_value(json_array_get(want, i)) != got->id[i]) return false;
    return true;
}

/* The offsets must cover each token's share of the text, in order. */
static bool offsets_sane(const token_list *l, size_t text_len) {
    for (size_t i = 0; i < l->n; i++) {
        if (l->start[i] > l->end[i] || l->end[i] > text_len) return false;
        if (i > 0 && l->start[i] < l->start[i - 1]) return false;
    }
    return true;
}

static void encode_case(const tokenizer *t, const json_t *o, int line, tally *y) {
    const json_t *text = json_object_get(o, "text");
    const char *tag = json_string_value(json_object_get(o, "tag"));
    const text_part part = {json_string_value(text), json_string_length(text),
                            !json_is_true(json_object_get(o, "parse_special"))};
    const unsigned flags =
        json_is_true(json_object_get(o, "add_special")) ? TOKENIZE_ADD_SPECIAL : 0;
    token_list plain = {0}, with = {.with_offsets = true};
    y->n++;
    if (tokenizer_encode(t, &part, 1, flags, &plain) != OK ||
        tokenizer_encode(t, &part, 1, flags, &with) != OK)
        fail_case(y, tag, line, "encode failed");
    else if (!ids_equal(json_object_get(o, "ids"), &plain))
        fail_case(y, tag, line, "ids differ");
    else if (!ids_equal(json_object_get(o, "ids"), &with) || !offsets_sane(&with, part.len))
        fail_case(y, tag, line, "offsets");
    token_list_free(&plain);
    token_list_free(&with);
}

static bool bytes_are_hex(const char *s, size_t len, const char *hex) {
    size_t n;
    unsigned char *want = files_hex(hex, &n);
    const bool ok = want != NULL && n == len && (n == 0 || memcmp(want, s, n) == 0);
    free(want);
    return ok;
}

static const char *check_pieces(const tokenizer *t, const int32_t *ids, int n, const json_t *o) {
    const json_t *pieces = json_object_get(o, "pieces_hex");
    for (int i = 0; i < n; i++) {
        size_t len = 0;
        const char *piece = tokenizer_piece(t, ids[i], false, &len);
        const char *hex = json_string_value(json_array_get(pieces, (size_t)i));
        if (hex == NULL || !bytes_are_hex(piece, len, hex)) return "a piece's bytes differ";
    }
    return NULL;
}

/* Pushes the ids one by one; after each, what came out must be what may be sent. */
static const char *check_stream(const tokenizer *t, const int32_t *ids, int n, const json_t *o) {
    const json_t *emits = json_object_get(o, "emits_hex"), *text = json_object_get(o, "text");
    const char *wrong = NULL;
    detokenizer d;
    text_buffer out = {0};
    detokenizer_init(&d, t, false, false);
    for (int i = 0; i < n && wrong == NULL; i++) {
        const size_t before = out.len;
        const char *hex = json_string_value(json_array_get(emits, (size_t)i));
        if (detokenizer_push(&d, ids[i], &out) != OK)
            wrong = "push failed";
        else if (hex != NULL && !bytes_are_hex(out.s + before, out.len - before, hex))
            wrong = "a streamed piece differs";
    }
    if (wrong == NULL && detokenizer_finish(&d, &out) != OK) wrong = "finish failed";
    const size_t len = json_string_length(text);
    if (wrong == NULL &&
        (out.len != len || memcmp(out.s == NULL ? "" : out.s, json_string_value(text), len) != 0))
        wrong = "the whole text differs";
    text_buffer_free(&out);
    return wrong;
}

static void decode_case(const tokenizer *t, const json_t *o, int line, tally *y) {
    const char *tag = json_string_value(json_object_get(o, "tag"));
    int n = 0;
    int32_t *ids = files_ints(json_object_get(o, "ids"), &n);
    const char *wrong = ids == NULL ? "no ids" : NULL;
    for (int i = 0; i < n && wrong == NULL; i++)
        if (ids[i] < 0 || ids[i] >= tokenizer_n_vocab(t)) wrong = "an id beyond the vocabulary";
    if (wrong == NULL) wrong = check_pieces(t, ids, n, o);
    if (wrong == NULL) wrong = check_stream(t, ids, n, o);
    y->n++;
    if (wrong != NULL) fail_case(y, tag, line, wrong);
    free(ids);
}

typedef void line_case(const tokenizer *t, const json_t *o, int line, tally *y);

/* Each line of DIR/tokenizer/NAME<suffix> is a case. */
static void run_lines(const suite_context *c, const tokenizer *t, const char *name,
                      const char *suffix, const char *what, line_case *run) {
    char path[1024];
    char *line = NULL;
    size_t capacity = 0;
    tally y = {0};
    files_path(path, sizeof path, c->goldens, "tokenizer", name, suffix);
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        report_skip(c->report, "tokenizer", name, "no %s%s", name, suffix);
        return;
    }
    for (int n = 1; getline(&line, &capacity, f) > 0; n++) {
        json_error_t e;
        json_t *o = json_loads(line, JSON_ALLOW_NUL, &e);
        if (o == NULL)
            fail_case(&y, "?", n, e.text);
        else
            run(t, o, n, &y);
        json_decref(o);
    }
    free(line);
    fclose(f);
    if (y.n == 0 && y.n_wrong == 0)
        report_fail(c->report, "tokenizer", name, "%s is empty", path);
    else
        report_measure(c->report, "tokenizer", name, what, y.n_wrong, 0, "%d of %d%s",
                       y.n - y.n_wrong, y.n, y.first);
}

void suite_tokenizer(const suite_context *c) {
    static const char prefix[] = "ggml-vocab-";
    const name_list list = files_list(c->goldens, "tokenizer", ".gguf");
    if (list.n == 0) report_skip(c->report, "tokenizer", "-", "no %s/tokenizer", c->goldens);
    for (size_t i = 0; i < list.n; i++) {
        const char *file = list.name[i];
        const char *name =
            strncmp(file, prefix, sizeof prefix - 1) == 0 ? file + sizeof prefix - 1 : file;
        char path[1024];
        error err = {0};
        gguf *g = NULL;
        tokenizer *t = NULL;
        if (!suite_wants(c, name)) continue;
        files_path(path, sizeof path, c->goldens, "tokenizer", file, ".gguf");
        status s = gguf_open(path, &g, &err);
        if (s == OK) s = tokenizer_open(g, &t, &err);
        gguf_close(g);
        if (s != OK) {
            report_fail(c->report, "tokenizer", name, "%s: %s", status_name(s), err.text);
            continue;
        }
        run_lines(c, t, name, ".jsonl", "encode wrong", encode_case);
        run_lines(c, t, name, ".stream.jsonl", "decode wrong", decode_case);
        tokenizer_close(t);
    }
    free(list.name);
}
