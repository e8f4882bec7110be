/* Method: small vocabularies made here. Merging against the plainest algorithm over random
 * vocabularies; literal parts, special tokens, offsets, bytes that are no text; every way a
 * vocabulary can be wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/tokenizer.h"
#include "tests/check_main.h"
#include "tests/engine/gguf_builder.h"

enum { TOKENS_MAX = 700 };

/* A vocabulary to be written into a file. Strings are borrowed. */
typedef struct vocabulary {
    const char *model, *pre;
    const char *token[TOKENS_MAX], *merge[TOKENS_MAX];
    int32_t type[TOKENS_MAX];
    float score[TOKENS_MAX];
    size_t n_tokens, n_merges;
    size_t n_types, n_scores; /* 0: no such array */
    uint32_t bos, eos;        /* UINT32_MAX: no such key */
} vocabulary;

static char byte_spelling[256][4];

/* The 256 single-byte tokens of a byte-level vocabulary, id = byte. */
static vocabulary *byte_level(void) {
    vocabulary *v = calloc(1, sizeof *v);
    ck_assert(v != NULL);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        const bool self = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        byte_spelling[b][utf8_put(self ? b : next++, byte_spelling[b])] = '\0';
        v->token[v->n_tokens++] = byte_spelling[b];
    }
    for (size_t i = 0; i < TOKENS_MAX; i++) v->type[i] = TOKEN_NORMAL;
    v->model = "gpt2";
    v->pre = "gpt-2";
    v->bos = v->eos = UINT32_MAX;
    return v;
}

static int32_t add(vocabulary *v, const char *token, token_type type, float score) {
    ck_assert_uint_lt(v->n_tokens, TOKENS_MAX);
    v->token[v->n_tokens] = token;
    v->type[v->n_tokens] = (int32_t)type;
    v->score[v->n_tokens] = score;
    v->n_types = v->n_tokens + 1;
    return (int32_t)v->n_tokens++;
}

static void add_merge(vocabulary *v, const char *merge) {
    v->merge[v->n_merges++] = merge;
}

static void write_vocabulary(gguf_builder *b, const vocabulary *v) {
    builder_str(b, "general.architecture", "llama");
    if (v->model) builder_str(b, "tokenizer.ggml.model", v->model);
    if (v->pre) builder_str(b, "tokenizer.ggml.pre", v->pre);
    builder_strings(b, "tokenizer.ggml.tokens", v->token, v->n_tokens);
    if (v->n_types) {
        builder_array(b, "tokenizer.ggml.token_type", GGUF_I32, v->n_types, v->type,
                      4 * v->n_types);
    }
    if (v->n_scores) {
        builder_array(b, "tokenizer.ggml.scores", GGUF_F32, v->n_scores, v->score, 4 * v->n_scores);
    }
    if (v->model && strcmp(v->model, "gpt2") == 0) {
        builder_strings(b, "tokenizer.ggml.merges", v->merge, v->n_merges);
    }
    if (v->bos != UINT32_MAX) builder_u32(b, "tokenizer.ggml.bos_token_id", v->bos);
    if (v->eos != UINT32_MAX) builder_u32(b, "tokenizer.ggml.eos_token_id", v->eos);
}

/* Opens what the builder holds; frees the builder's bytes. */
static status open_built(gguf_builder *b, tokenizer **t, error *err) {
    bytes file = builder_finish(b);
    gguf *g;
    status s = gguf_open_memory(file.p, file.n, &g, err);
    ck_assert_msg(s == OK, "%s", err->text);
    s = tokenizer_open(g, t, err);
    gguf_close(g); /* the tokenizer has copied what it needs */
    memset(file.p, 0xAA, file.n);
    free(file.p);
    return s;
}

static tokenizer *open_vocabulary(vocabulary *v) {
    gguf_builder b = builder_new();
    write_vocabulary(&b, v);
    tokenizer *t;
    error err = {0};
    ck_assert_msg(open_built(&b, &t, &err) == OK, "%s", err.text);
    free(v);
    return t;
}

/* Encodes parts: 'm' markup, 'l' literal before each text, e.g. {"m<s>", "lhi"}. */
static void encode(const tokenizer *t, const char *const *text, int n, token_list *out) {
    text_part parts[8];
    ck_assert_int_le(n, 8);
    for (int i = 0; i < n; i++) {
        parts[i] = (text_part){text[i] + 1, strlen(text[i]) - 1, text[i][0] == 'l'};
    }
    ck_assert_int_eq(tokenizer_encode(t, parts, n, 0, out), OK);
}

#define ENCODES(t, want, ...)                                                                      \
    do {                                                                                           \
        static const char *const text_[] = {__VA_ARGS__};                                          \
        check_ids(t, text_, (int)(sizeof text_ / sizeof text_[0]), want, __LINE__);                \
    } while (0)

/* want: ids in decimal with blanks between. */
static void check_ids(const tokenizer *t, const char *const *text, int n, const char *want,
                      int line) {
    token_list got = {0};
    char shown[2048] = "";
    size_t at = 0;
    encode(t, text, n, &got);
    for (size_t i = 0; i < got.n; i++) {
        at += (size_t)snprintf(shown + at, sizeof shown - at, "%s%d", i ? " " : "", got.id[i]);
    }
    ck_assert_msg(strcmp(shown, want) == 0, "line %d: got %s want %s", line, shown, want);
    token_list_free(&got);
}

/* Values of tokenizer.ggml.pre that share a splitter, and those that take whole words first: "hi"
 * is a token here that no merge makes. */
START_TEST(rules_by_name) {
    static const struct {
        const char *pre, *name;
        bool whole_words, adds_bos;
    } rules[] = {{"llama-bpe", "llama-bpe", true, true}, {"pixtral", "llama-bpe", true, true},
                 {"dbrx", "dbrx", false, false},         {"smaug-bpe", "dbrx", false, false},
                 {"tekken", "tekken", true, true},       {"gpt-4o", "gpt-4o", true, false},
                 {"megrez", "qwen2", false, false},      {"stablelm2", "qwen2", false, false},
                 {"command-r", "smollm", false, false},  {"exaone", "smollm", false, false},
                 {"jais", "gpt-2", false, false},        {NULL, "default", false, false}};
    vocabulary *v = byte_level();
    add(v, "hi", TOKEN_NORMAL, 0);
    v->pre = rules[_i].pre;
    v->bos = 0;
    tokenizer *t = open_vocabulary(v);
    ck_assert_str_eq(tokenizer_name(t), rules[_i].name);
    ck_assert_int_eq(tokenizer_add_bos(t), rules[_i].adds_bos);
    ENCODES(t, rules[_i].whole_words ? "256" : "104 105", "lhi");
    tokenizer_close(t);
}
END_TEST

START_TEST(literal_parts_make_no_special_token) {
    vocabulary *v = byte_level();
    add(v, "he", TOKEN_NORMAL, 0);             /* 256 */
    add(v, "ll", TOKEN_NORMAL, 0);             /* 257 */
    add(v, "hell", TOKEN_NORMAL, 0);           /* 258 */
    add(v, "<|a|>", TOKEN_CONTROL, 0);         /* 259 */
    add(v, "<|a|><|b|>", TOKEN_CONTROL, 0);    /* 260 */
    add(v, "<|b|>", TOKEN_CONTROL, 0);         /* 261 */
    add(v, "<u>", TOKEN_USER_DEFINED, 0);      /* 262 */
    add(v, "<|end|>", TOKEN_USER_DEFINED, 0);  /* 263: looks like a control token, so it is one */
    add(v, "<eos>", TOKEN_USER_DEFINED, 0);    /* 264: the end of sequence, so it is one */
    add(v, "[PAD265]", TOKEN_USER_DEFINED, 0); /* a padding row: never text */
    add(v, "unused", TOKEN_UNUSED, 0);         /* 266 */
    add_merge(v, "h e");
    add_merge(v, "l l");
    add_merge(v, "he ll");
    v->eos = 264;
    tokenizer *t = open_vocabulary(v);
    ENCODES(t, "258", "mhell");
    ENCODES(t, "258", "mhe", "lll");
    ENCODES(t, "258", "lh", "me", "ll", "ml");
    ENCODES(t, "259", "m<|a|>");
    ENCODES(t, "60 124 97 124 62", "l<|a|>");
    ENCODES(t, "259", "m<|", "ma|>");
    ENCODES(t, "259", "m<|", "l", "ma|>");
    ENCODES(t, "60 124 97 124 62", "m<|", "la", "m|>");
    ENCODES(t, "60 124 97 124 62", "m<|", "la|>");
    ENCODES(t, "60 124 97 124 62", "l<|", "ma|>");
    ENCODES(t, "259 60 124 98 124 62", "m<|a|>", "l<|b|>");
    ENCODES(t, "260", "m<|a|><|b|>");
    ENCODES(t, "259 259", "m<|a|><|a|>");
    ENCODES(t, "259 60 124", "m<|a|><|");
    ENCODES(t, "262", "l<u>");
    ENCODES(t, "262", "l<", "mu>");
    ENCODES(t, "60 124 101 110 100 124 62 263", "l<|end|>", "m<|end|>");
    ENCODES(t, "60 101 111 115 62 264", "l<eos>", "m<eos>");
    ENCODES(t, "91 80 65 68 50 54 53 93", "m[PAD265]");
    ENCODES(t, "117 110 117 115 101 100", "munused");
    ENCODES(t, "", "m", "l");
    ck_assert(tokenizer_never_sampled(t)[265] && tokenizer_never_sampled(t)[266]);
    ck_assert(!tokenizer_never_sampled(t)[264] && !tokenizer_never_sampled(t)[0]);
    ck_assert(tokenizer_is_eog(t, 263) && tokenizer_is_eog(t, 264) && !tokenizer_is_eog(t, 259));
    token_list none = {0};
    ck_assert_int_eq(tokenizer_encode(t, NULL, 0, 0, &none), OK);
    ck_assert_uint_eq(none.n, 0);
    tokenizer_close(t);
}
END_TEST

START_TEST(pieces_and_the_stream) {
    vocabulary *v = byte_level();
    const int32_t control = add(v, "<c>", TOKEN_CONTROL, 0),
                  user = add(v, "<u> ▁", TOKEN_USER_DEFINED, 0);
    tokenizer *t = open_vocabulary(v);
    size_t len;
    tokenizer_piece(t, control, false, &len);
    ck_assert_uint_eq(len, 0);
    ck_assert_mem_eq(tokenizer_piece(t, control, true, &len), "<c>", 3);
    ck_assert_mem_eq(tokenizer_piece(t, user, false, &len), "<u>  ", 5);
    ck_assert_mem_eq(tokenizer_spelling(t, 32, &len), "\xC4\xA0", 2);
    /* a, half a euro sign, b, the whole sign, a bad byte, a control token inside a character */
    static const int32_t ids[] = {'a',  0xE2, 0x82, 'b',  0xE2, 0x82, 0xAC,
                                  0xFF, 0xC3, 256,  0xA9, 0xF0, 0x9F};
    static const char *const emits[] = {"a",      "", "", "\uFFFDb", "", "", "\u20AC",
                                        "\uFFFD", "", "", "\u00E9",  "", ""};
    detokenizer d;
    text_buffer out = {0};
    detokenizer_init(&d, t, false, false);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        const size_t before = out.len;
        ck_assert_int_eq(detokenizer_push(&d, ids[i], &out), OK);
        ck_assert_msg(strcmp(out.s ? out.s + before : "", emits[i]) == 0, "after token %zu", i);
    }
    ck_assert_int_eq(detokenizer_finish(&d, &out), OK);
    ck_assert_str_eq(out.s, "a\uFFFDb\u20AC\uFFFD\u00E9\uFFFD");
    text_buffer_free(&out);
    tokenizer_close(t);
}
END_TEST

START_TEST(bytes_without_a_token_vanish) {
    vocabulary *v = byte_level();
    v->token['x'] = "xx"; /* no token is "x" now */
    add(v, "ab", TOKEN_NORMAL, 0);
    add_merge(v, "a b");
    tokenizer *t = open_vocabulary(v);
    ENCODES(t, "256", "maxb"); /* and their neighbours meet */
    ENCODES(t, "", "mxxx");
    tokenizer_close(t);
}
END_TEST

START_TEST(invalid_text_is_replaced) {
    tokenizer *t = open_vocabulary(byte_level());
    const text_part bad[] = {{"a\xFF", 2, false}, {"\xC3", 1, true}, {"(b", 2, false}};
    const text_part good[] = {{"a\xEF\xBF\xBD\xEF\xBF\xBD(b", 9, false}};
    token_list x = {.with_offsets = true}, y = {0};
    ck_assert_int_eq(tokenizer_encode(t, bad, 3, 0, &x), OK);
    ck_assert_int_eq(tokenizer_encode(t, good, 1, 0, &y), OK);
    ck_assert_uint_eq(x.n, y.n);
    ck_assert_mem_eq(x.id, y.id, x.n * sizeof *x.id);
    ck_assert_uint_eq(x.start[1], 1);
    ck_assert_uint_eq(x.end[1], 2);
    ck_assert_uint_eq(x.start[4], 2);
    ck_assert_uint_eq(x.end[4], 3);
    ck_assert_uint_eq(x.start[8], 4);
    ck_assert_uint_eq(x.end[8], 5);
    token_list_free(&x);
    token_list_free(&y);
    tokenizer_close(t);
}
END_TEST

/* The plainest merging: while there is a pair, join the best one, leftmost first. */
typedef struct plain_pair {
    int32_t left, right, id;
    float score; /* higher first */
} plain_pair;
static size_t merge_plainly(int32_t *id, size_t n, const plain_pair *pairs, size_t n_pairs) {
    for (;;) {
        const plain_pair *best = NULL;
        size_t best_at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            for (size_t k = 0; k < n_pairs; k++) {
                if (pairs[k].left != id[i] || pairs[k].right != id[i + 1]) continue;
                if (best && !(pairs[k].score > best->score)) continue;
                best = &pairs[k];
                best_at = i;
            }
        }
        if (!best) return n;
        id[best_at] = best->id;
        memmove(id + best_at + 1, id + best_at + 2, (n - best_at - 2) * sizeof *id);
        n--;
    }
}

enum { RANDOM_PAIRS = 60, RANDOM_LEN = 400 };
static char made[RANDOM_PAIRS][300], made_merge[RANDOM_PAIRS][300];

/* Random pairs over the letters a to d and what they make; returns their number. */
static size_t random_pairs(vocabulary *v, plain_pair *pairs, bool spm) {
    size_t n = 0;
    for (int tries = 0; tries < 1000 && n < RANDOM_PAIRS; tries++) {
        const int32_t pool[2] = {rand() % 4, rand() % 4};
        int32_t side[2];
        for (int k = 0; k < 2; k++) {
            side[k] = n > 0 && rand() % 2 ? pairs[rand() % (int)n].id : 'a' + pool[k];
            if (spm && side[k] < 256) side[k] = pool[k] + 1;
        }
        const char *a = v->token[side[0]], *b = v->token[side[1]];
        if (strlen(a) + strlen(b) > 40) continue;
        snprintf(made[n], sizeof made[n], "%s%s", a, b);
        bool known = false;
        for (size_t i = 0; i < v->n_tokens; i++) known = known || strcmp(v->token[i], made[n]) == 0;
        if (known) continue;
        snprintf(made_merge[n], sizeof made_merge[n], "%s %s", a, b);
        const float score = spm ? (float)-(rand() % 20) : (float)-(int)n;
        pairs[n] = (plain_pair){side[0], side[1], add(v, made[n], TOKEN_NORMAL, score), score};
        if (!spm) add_merge(v, made_merge[n]);
        n++;
    }
    return n;
}

START_TEST(merging_equals_the_plain_algorithm) {
    srand((unsigned)_i);
    vocabulary *v = byte_level();
    plain_pair pairs[RANDOM_PAIRS];
    const size_t n_pairs = random_pairs(v, pairs, false);
    tokenizer *t = open_vocabulary(v);
    for (int round = 0; round < 40; round++) {
        char text[RANDOM_LEN];
        int32_t want[RANDOM_LEN];
        const size_t len = (size_t)(rand() % (round % 4 ? 60 : RANDOM_LEN));
        for (size_t i = 0; i < len; i++) {
            text[i] = (char)('a' + rand() % (1 + _i % 4));
            want[i] = text[i];
        }
        const size_t n = merge_plainly(want, len, pairs, n_pairs);
        const text_part part = {text, len, false};
        token_list got = {.with_offsets = true};
        ck_assert_int_eq(tokenizer_encode(t, &part, 1, 0, &got), OK);
        ck_assert_msg(got.n == n, "seed %d round %d", _i, round);
        ck_assert_msg(n == 0 || memcmp(got.id, want, n * sizeof *want) == 0, "seed %d round %d", _i,
                      round);
        for (size_t i = 0; i < n; i++) { /* the ranges tile the text, and are the pieces */
            size_t piece_len;
            const char *piece = tokenizer_piece(t, got.id[i], false, &piece_len);
            ck_assert_uint_eq(got.start[i], i ? got.end[i - 1] : 0);
            ck_assert_uint_eq(got.end[i] - got.start[i], piece_len);
            ck_assert_mem_eq(text + got.start[i], piece, piece_len);
        }
        token_list_free(&got);
    }
    tokenizer_close(t);
}
END_TEST

/* SentencePiece: any split of a token's bytes can make it; the best score wins. */
static size_t merge_spm_plainly(const vocabulary *v, int32_t *id, size_t n) {
    for (;;) {
        int32_t best = -1;
        size_t best_at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            char both[700];
            snprintf(both, sizeof both, "%s%s", v->token[id[i]], v->token[id[i + 1]]);
            for (size_t k = 1; k < v->n_tokens; k++) {
                if (strcmp(v->token[k], both) != 0) continue;
                if (best >= 0 && !(v->score[k] > v->score[best])) continue;
                best = (int32_t)k;
                best_at = i;
            }
        }
        if (best < 0) return n;
        id[best_at] = best;
        memmove(id + best_at + 1, id + best_at + 2, (n - best_at - 2) * sizeof *id);
        n--;
    }
}

static vocabulary *spm_letters(void) {
    vocabulary *v = calloc(1, sizeof *v);
    ck_assert(v != NULL);
    v->model = "llama";
    v->bos = v->eos = UINT32_MAX;
    add(v, "<unk>", TOKEN_UNKNOWN, 0);
    add(v, "a", TOKEN_NORMAL, -90);
    add(v, "b", TOKEN_NORMAL, -91);
    add(v, "c", TOKEN_NORMAL, -92);
    add(v, "d", TOKEN_NORMAL, -93);
    add(v, "▁", TOKEN_NORMAL, -94);
    return v;
}

START_TEST(spm_merging_equals_the_plain_algorithm) {
    srand((unsigned)_i);
    vocabulary *v = spm_letters(), *copy = malloc(sizeof *copy);
    plain_pair pairs[RANDOM_PAIRS];
    random_pairs(v, pairs, true);
    v->n_scores = v->n_tokens;
    *copy = *v;
    tokenizer *t = open_vocabulary(v);
    for (int round = 0; round < 30; round++) {
        char text[RANDOM_LEN];
        int32_t want[RANDOM_LEN + 1] = {5}; /* the prefix */
        const size_t len = 1 + (size_t)(rand() % (round % 4 ? 40 : 200));
        for (size_t i = 0; i < len; i++) {
            const int letter = rand() % (1 + _i % 4);
            text[i] = (char)('a' + letter);
            want[i + 1] = letter + 1;
        }
        const size_t n = merge_spm_plainly(copy, want, len + 1);
        const text_part part = {text, len, false};
        token_list got = {.with_offsets = true};
        ck_assert_int_eq(tokenizer_encode(t, &part, 1, 0, &got), OK);
        ck_assert_msg(got.n == n, "seed %d round %d", _i, round);
        ck_assert_msg(memcmp(got.id, want, n * sizeof *want) == 0, "seed %d round %d", _i, round);
        ck_assert_uint_eq(got.end[n - 1], len);
        token_list_free(&got);
    }
    free(copy);
    tokenizer_close(t);
}
END_TEST

START_TEST(spm_without_bytes_has_unknowns) {
    vocabulary *v = spm_letters();
    add(v, "<x>", TOKEN_CONTROL, 0);
    v->n_scores = v->n_tokens;
    tokenizer *t = open_vocabulary(v);
    ENCODES(t, "5 1 0 2", "maééb"); /* a run of them is one */
    ENCODES(t, "5 1 5 2", "ma b");
    ENCODES(t, "5 1 5 2", "ma▁b"); /* text cannot tell the two apart */
    ENCODES(t, "5 1 6 5 2", "ma<x>b");
    ENCODES(t, "6", "m<x>");
    ck_assert_int_eq(tokenizer_bos(t), 1); /* the default of a file without the key */
    ck_assert(tokenizer_strips_leading_space(t));
    const text_part part = {"a", 1, false};
    token_list got = {.with_offsets = true};
    ck_assert_int_eq(tokenizer_encode(t, &part, 1, TOKENIZE_ADD_SPECIAL, &got), OK);
    ck_assert_uint_eq(got.n, 3); /* BOS, prefix, a */
    ck_assert_uint_eq(got.start[1], 0);
    ck_assert_uint_eq(got.end[1], 0);
    ck_assert_uint_eq(got.end[2], 1);
    token_list_free(&got);
    tokenizer_close(t);
}
END_TEST

/* ---- files that must be refused ---- */
enum wrong {
    RIGHT,
    NO_MODEL,
    OTHER_MODEL,
    OTHER_PRE,
    NO_TOKENS,
    TOKENS_OF_INTEGERS,
    SAME_TOKEN_TWICE,
    TYPES_TOO_FEW,
    TYPE_0,
    TYPE_7,
    TYPES_OF_STRINGS,
    MERGE_WITHOUT_SPACE,
    MERGE_WITHOUT_LEFT,
    MERGE_WITHOUT_RIGHT,
    MERGE_OF_UNKNOWN,
    MERGE_TO_UNKNOWN,
    MERGE_TO_CONTROL,
    MERGES_OF_INTEGERS,
    NO_MERGES,
    BOS_TOO_HIGH,
    EOS_HUGE,
    EOT_TOO_HIGH,
    UNK_TOO_HIGH,
    PAD_TOO_HIGH,
    BOS_IS_TEXT,
    ADD_BOS_IS_NUMBER,
    TOKEN_TOO_LONG,
    SPECIAL_TOO_LONG,
    BYTE_TOKEN_IS_WORD,
    ROWS_DIFFER,
    SPM_NO_SCORES,
    SPM_SCORES_TOO_FEW,
    SPM_SCORE_NAN,
    SPM_PIECE_TOO_LONG,
    N_WRONG
};

static char long_token[6000];

static void spoil_tokens(vocabulary *v, enum wrong w) {
    memset(long_token, 'q', sizeof long_token - 1);
    long_token[w == TOKEN_TOO_LONG ? 5000 : w == SPM_PIECE_TOO_LONG ? 1025 : 600] = '\0';
    if (w == SAME_TOKEN_TWICE) add(v, "ab", TOKEN_NORMAL, 0);
    if (w == TYPES_TOO_FEW) v->n_types--;
    if (w == TYPE_0) v->type[3] = 0;
    if (w == TYPE_7) v->type[3] = 7;
    if (w == MERGE_WITHOUT_SPACE) add_merge(v, "ab");
    if (w == MERGE_WITHOUT_LEFT) add_merge(v, " a");
    if (w == MERGE_WITHOUT_RIGHT) add_merge(v, "a ");
    if (w == MERGE_OF_UNKNOWN) add_merge(v, "zz a");
    if (w == MERGE_TO_UNKNOWN) add_merge(v, "b b");
    if (w == MERGE_TO_CONTROL) {
        add(v, "ba", TOKEN_CONTROL, 0);
        add_merge(v, "b a");
    }
    if (w == BOS_TOO_HIGH) v->bos = (uint32_t)v->n_tokens;
    if (w == EOS_HUGE) v->eos = UINT32_MAX - 1;
    if (w == TOKEN_TOO_LONG || w == SPM_PIECE_TOO_LONG) add(v, long_token, TOKEN_NORMAL, 0);
    if (w == SPECIAL_TOO_LONG) add(v, long_token, TOKEN_CONTROL, 0);
    if (w == BYTE_TOKEN_IS_WORD) add(v, "<0xGG>", TOKEN_BYTE, 0);
    if (w >= SPM_NO_SCORES) v->n_scores = v->n_tokens;
    if (w == SPM_NO_SCORES) v->n_scores = 0;
    if (w == SPM_SCORES_TOO_FEW) v->n_scores--;
    if (w == SPM_SCORE_NAN) v->score[3] = NAN;
    if (w == NO_MODEL) v->model = NULL;
    if (w == OTHER_MODEL) v->model = "bert";
    if (w == OTHER_PRE) v->pre = "klingon";
}

static void write_wrong(gguf_builder *b, vocabulary *v, enum wrong w) {
    static const int32_t numbers[4] = {1, 2, 3, 4};
    static const char *const words[2] = {"a", "b"};
    if (w == NO_TOKENS || w == TOKENS_OF_INTEGERS || w == MERGES_OF_INTEGERS || w == NO_MERGES ||
        w == TYPES_OF_STRINGS) {
        builder_str(b, "tokenizer.ggml.model", "gpt2");
        if (w == TOKENS_OF_INTEGERS) {
            builder_array(b, "tokenizer.ggml.tokens", GGUF_I32, 4, numbers, sizeof numbers);
        } else if (w != NO_TOKENS) {
            builder_strings(b, "tokenizer.ggml.tokens", words, 2);
        }
        if (w == TYPES_OF_STRINGS) builder_strings(b, "tokenizer.ggml.token_type", words, 2);
        if (w == MERGES_OF_INTEGERS) {
            builder_array(b, "tokenizer.ggml.merges", GGUF_I32, 4, numbers, sizeof numbers);
        } else if (w != NO_MERGES) {
            builder_strings(b, "tokenizer.ggml.merges", words, 0);
        }
        return;
    }
    write_vocabulary(b, v);
    if (w == EOT_TOO_HIGH) builder_u32(b, "tokenizer.ggml.eot_token_id", 100000);
    if (w == UNK_TOO_HIGH) builder_u32(b, "tokenizer.ggml.unknown_token_id", 100000);
    if (w == PAD_TOO_HIGH) builder_u32(b, "tokenizer.ggml.padding_token_id", 100000);
    if (w == BOS_IS_TEXT) builder_str(b, "tokenizer.ggml.bos_token_id", "1");
    if (w == ADD_BOS_IS_NUMBER) builder_u32(b, "tokenizer.ggml.add_bos_token", 1);
    if (w == ROWS_DIFFER) {
        static const float row[3] = {0};
        const uint64_t ne[2] = {1, 3};
        builder_tensor(b, "token_embd.weight", 2, ne, 0, row, sizeof row);
    }
}

START_TEST(wrong_vocabularies_are_refused) {
    const enum wrong w = (enum wrong)_i;
    vocabulary *v = w >= SPM_NO_SCORES ? spm_letters() : byte_level();
    add(v, "ab", TOKEN_NORMAL, 0);
    if (w < SPM_NO_SCORES) add_merge(v, "a b");
    spoil_tokens(v, w);
    gguf_builder b = builder_new();
    write_wrong(&b, v, w);
    tokenizer *t = NULL;
    error err = {0};
    const status s = open_built(&b, &t, &err);
    if (w == RIGHT) {
        ck_assert_msg(s == OK, "%s", err.text);
        tokenizer_close(t);
    } else {
        const bool unsupported = w == OTHER_MODEL || w == OTHER_PRE;
        ck_assert_msg(s == (unsupported ? E_UNSUPPORTED : E_FORMAT), "case %d: %s %s", _i,
                      status_name(s), err.text);
        ck_assert(t == NULL && err.text[0] != '\0');
    }
    free(v);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("tokenizer");
    tcase_add_loop_test(tc, rules_by_name, 0, 12);
    tcase_add_test(tc, literal_parts_make_no_special_token);
    tcase_add_test(tc, pieces_and_the_stream);
    tcase_add_test(tc, bytes_without_a_token_vanish);
    tcase_add_test(tc, invalid_text_is_replaced);
    tcase_add_loop_test(tc, merging_equals_the_plain_algorithm, 0, 16);
    tcase_add_loop_test(tc, spm_merging_equals_the_plain_algorithm, 0, 16);
    tcase_add_test(tc, spm_without_bytes_has_unknowns);
    tcase_add_loop_test(tc, wrong_vocabularies_are_refused, 0, N_WRONG);
    return check_run("tokenizer", tc);
}
