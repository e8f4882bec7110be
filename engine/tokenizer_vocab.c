/* Reads the vocabulary of a GGUF file into flat arrays. Everything in the file is doubted: counts,
 * types, duplicates, merges of unknown tokens, scores that are not numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/utf8.h"
#include "engine/tokenizer_internal.h"

#define KEY(name) "tokenizer.ggml." name

static status get_array(const gguf *g, const char *key, uint64_t count_min, bool *found,
                        gguf_array *out, error *err) {
    const status s = gguf_get_array(g, key, found, out, err);
    if (s != OK || !*found || out->count >= count_min) return s;
    return error_set(err, E_FORMAT, "%s has %llu entries, but there are %llu tokens", key,
                     (unsigned long long)out->count, (unsigned long long)count_min);
}

static status wrong_type(const char *key, error *err) {
    return error_set(err, E_FORMAT, "%s has elements of the wrong type", key);
}

/* Makes room for n strings of `bytes` in all. */
static status list_init(string_list *l, size_t n, size_t bytes, error *err) {
    l->bytes = malloc(bytes ? bytes : 1);
    l->start = malloc((n + 1) * sizeof *l->start);
    if (l->bytes && l->start) return OK;
    return error_set(err, E_NOMEM, "tokenizer: %zu bytes of spellings", bytes);
}

static status load_spellings(tokenizer *t, const gguf *g, error *err) {
    bool found;
    gguf_array a;
    status s = get_array(g, KEY("tokens"), 1, &found, &a, err);
    if (s != OK) return s;
    if (!found) return error_set(err, E_FORMAT, "%s is missing", KEY("tokens"));
    if (a.type != GGUF_STRING) return wrong_type(KEY("tokens"), err);
    if (a.count > LIMIT_VOCAB) {
        return error_set(err, E_FORMAT, "%llu tokens, the limit is %d", (unsigned long long)a.count,
                         LIMIT_VOCAB);
    }
    t->n_vocab = (int)a.count;
    size_t bytes = 0;
    gguf_str v;
    for (uint64_t i = 0; i < a.count; i++) {
        if (!gguf_array_str(&a, i, &v)) return wrong_type(KEY("tokens"), err);
        if (v.len > TOKEN_BYTES_MAX) {
            return error_set(err, E_FORMAT, "token %llu has %zu bytes, the limit is %d",
                             (unsigned long long)i, v.len, TOKEN_BYTES_MAX);
        }
        bytes += v.len;
    }
    if (bytes > UINT32_MAX / 2) {
        return error_set(err, E_FORMAT, "the tokens have %zu bytes in all", bytes);
    }
    s = list_init(&t->spelling, (size_t)a.count, bytes, err);
    uint32_t at = 0;
    for (uint64_t i = 0; s == OK && i < a.count; i++) {
        if (!gguf_array_str(&a, i, &v)) return wrong_type(KEY("tokens"), err);
        if (v.len > bytes - at) return error_set(err, E_FORMAT, "%s changes", KEY("tokens"));
        t->spelling.start[i] = at;
        if (v.len > 0) memcpy(t->spelling.bytes + at, v.s, v.len);
        at += (uint32_t)v.len;
    }
    if (s == OK) t->spelling.start[a.count] = at;
    return s;
}

static status load_types(tokenizer *t, const gguf *g, error *err) {
    const size_t n = (size_t)t->n_vocab;
    t->type = malloc(n);
    if (!t->type) return error_set(err, E_NOMEM, "tokenizer: %zu token types", n);
    memset(t->type, TOKEN_NORMAL, n);
    bool found;
    gguf_array a;
    const status s = get_array(g, KEY("token_type"), n, &found, &a, err);
    if (s != OK || !found) return s;
    for (size_t i = 0; i < n; i++) {
        int64_t v;
        if (!gguf_array_i64(&a, i, &v)) return wrong_type(KEY("token_type"), err);
        if (v < TOKEN_NORMAL || v > TOKEN_BYTE) {
            return error_set(err, E_FORMAT, "token %zu has type %lld", i, (long long)v);
        }
        t->type[i] = (uint8_t)v;
    }
    return OK;
}

/* The character that spells byte b in a byte-level vocabulary: printable Latin-1 spells itself, the
 * 68 others are U+0100 and up in ascending order. */
enum { BYTE_CHARS = 324 };
static bool spells_itself(int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}
static void byte_of_char(int16_t of[BYTE_CHARS]) {
    int next = 256;
    for (int c = 0; c < BYTE_CHARS; c++) of[c] = -1;
    for (int b = 0; b < 256; b++) of[spells_itself(b) ? b : next++] = (int16_t)b;
}

/* Decodes a byte-level spelling. SIZE_MAX if it holds a character that spells no byte. */
static size_t decode_byte_level(const int16_t of[BYTE_CHARS], const char *s, size_t len,
                                char *out) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += utf8_decode(s + i, len - i, &cp);
        if (cp >= BYTE_CHARS || of[cp] < 0) return SIZE_MAX;
        out[n++] = (char)of[cp];
    }
    return n;
}

/* Copies s with U+2581 as a space. */
static size_t decode_spm(const char *s, size_t len, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        if (len - i >= 3 && memcmp(s + i, "\xE2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = s[i++];
        }
    }
    return n;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The value of "<0xHH>", or -1. */
static int byte_token(const char *s, size_t len) {
    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    const int hi = hex_digit(s[3]), lo = hex_digit(s[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

/* The bytes of token id at out; *mergeable: pieces of text can become this token by merging. */
static status decode_piece(const tokenizer *t, const int16_t of[BYTE_CHARS], int32_t id, char *out,
                           size_t *n, bool *mergeable, error *err) {
    size_t len;
    const char *s = string_at(&t->spelling, id, &len);
    *mergeable = false;
    if (t->type[id] == TOKEN_BYTE) {
        const int b = byte_token(s, len);
        if (b < 0) return error_set(err, E_FORMAT, "byte token %d is not <0xHH>", (int)id);
        out[0] = (char)b;
        *n = 1;
        return OK;
    }
    if (t->type[id] == TOKEN_USER_DEFINED || t->spm) {
        *n = decode_spm(s, len, out);
        /* A spelling with a plain space is out of reach: text has U+2581 there. */
        const bool unused = t->type[id] == TOKEN_UNUSED && *n <= SPM_PIECE_BYTES_MAX;
        *mergeable = (unused || t->type[id] == TOKEN_NORMAL) && len > 0 && !memchr(s, ' ', len);
        if (*mergeable && *n > SPM_PIECE_BYTES_MAX) {
            return error_set(err, E_FORMAT, "token %d has %zu bytes, the limit is %d", (int)id, *n,
                             SPM_PIECE_BYTES_MAX);
        }
        return OK;
    }
    *n = decode_byte_level(of, s, len, out);
    *mergeable = t->type[id] == TOKEN_NORMAL && *n != SIZE_MAX && *n > 0;
    if (*n == SIZE_MAX) memcpy(out, s, *n = len);
    return OK;
}

static void set_byte_ids(tokenizer *t, int32_t id, size_t n, bool mergeable) {
    size_t len;
    const char *s = string_at(&t->spelling, id, &len);
    const char *piece = t->piece.bytes + t->piece.start[id];
    if (!t->spm) {
        if (mergeable && n == 1) t->byte_id[(unsigned char)piece[0]] = id;
        return;
    }
    const int b = byte_token(s, len);
    const bool typed = t->type[id] == TOKEN_BYTE; /* old files type them NORMAL */
    if (b >= 0 && (typed || t->byte_id[b] < 0)) t->byte_id[b] = id;
}

/* Spellings differ, or index_spellings refuses them; then pieces do too. */
static void add_pieces(tokenizer *t, const int32_t *ids, int n) {
    int32_t other;
    for (int done = 0; done < n; done++)
        done += string_index_add(&t->by_piece, &t->piece, ids + done, n - done, &other);
}

static status load_pieces(tokenizer *t, error *err) {
    const size_t n_vocab = (size_t)t->n_vocab;
    int16_t of[BYTE_CHARS];
    byte_of_char(of);
    for (int b = 0; b < 256; b++) t->byte_id[b] = -1;
    /* No piece is longer than its spelling. */
    status s = list_init(&t->piece, n_vocab, t->spelling.start[n_vocab], err);
    if (s != OK) return s;
    const bool index = t->spm || t->ignore_merges;
    if (index && string_index_init(&t->by_piece, n_vocab) != OK) {
        return error_set(err, E_NOMEM, "tokenizer: index of %zu tokens", n_vocab);
    }
    uint32_t at = 0;
    int32_t pending[INDEX_BATCH];
    int n_pending = 0;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        size_t n = 0;
        bool mergeable;
        s = decode_piece(t, of, id, t->piece.bytes + at, &n, &mergeable, err);
        if (s != OK) return s;
        t->piece.start[id] = at;
        at += (uint32_t)n;
        t->piece.start[id + 1] = at;
        set_byte_ids(t, id, n, mergeable);
        if (!index || !mergeable) continue;
        if (n > t->piece_max) t->piece_max = n;
        if (t->type[id] == TOKEN_UNUSED) t->unused_pieces = true;
        pending[n_pending++] = id;
        if (n_pending < INDEX_BATCH) continue;
        add_pieces(t, pending, n_pending);
        n_pending = 0;
    }
    add_pieces(t, pending, n_pending);
    return OK;
}

static status index_spellings(const tokenizer *t, string_index *x, error *err) {
    if (string_index_init(x, (size_t)t->n_vocab) != OK) {
        return error_set(err, E_NOMEM, "tokenizer: index of %d tokens", t->n_vocab);
    }
    for (int32_t id = 0; id < t->n_vocab; id += INDEX_BATCH) {
        int32_t ids[INDEX_BATCH], other;
        int n = 0;
        while (n < INDEX_BATCH && id + n < t->n_vocab) ids[n] = id + n, n++;
        const int added = string_index_add(x, &t->spelling, ids, n, &other);
        if (added < n) {
            return error_set(err, E_FORMAT, "tokens %d and %d have the same spelling", (int)other,
                             (int)ids[added]);
        }
    }
    return OK;
}

static status bad_merge(uint64_t i, const char *why, error *err) {
    return error_set(err, E_FORMAT, "%s[%llu] %s", KEY("merges"), (unsigned long long)i, why);
}

/* One line of the merges: left and right are its two words, joined is both together. */
typedef struct merge_line {
    gguf_str word[3]; /* left, right, joined */
    uint64_t hash[3];
    int32_t id[3];
    char joined[256]; /* longer ones are taken one by one */
} merge_line;

enum { MERGE_BATCH = 32 };

static status read_merge(const tokenizer *t, const string_index *x, uint64_t rank, gguf_str m,
                         merge_line *out, error *err) {
    const char *space = m.len > 1 ? memchr(m.s + 1, ' ', m.len - 1) : NULL;
    if (!space || space + 1 == m.s + m.len) return bad_merge(rank, "is not \"LEFT RIGHT\"", err);
    const size_t left = (size_t)(space - m.s), right = m.len - left - 1;
    char huge[2 * TOKEN_BYTES_MAX];
    if (left > TOKEN_BYTES_MAX || right > TOKEN_BYTES_MAX) {
        return bad_merge(rank, "is too long", err);
    }
    char *joined = left + right <= sizeof out->joined ? out->joined : huge;
    memcpy(joined, m.s, left);
    memcpy(joined + left, space + 1, right);
    out->word[0] = (gguf_str){m.s, left};
    out->word[1] = (gguf_str){space + 1, right};
    out->word[2] = (gguf_str){out->joined, left + right};
    for (int k = 0; k < 3; k++) {
        const char *s = k == 2 ? joined : out->word[k].s;
        out->hash[k] = string_index_hash(x, s, out->word[k].len);
        string_index_fetch(x, &t->spelling, out->hash[k], 0);
    }
    out->id[2] = joined == huge ? string_index_find(x, &t->spelling, huge, left + right) : -1;
    return OK;
}

static status add_merge(tokenizer *t, uint64_t rank, const merge_line *m, error *err) {
    if (m->id[0] < 0 || m->id[1] < 0 || m->id[2] < 0) {
        return bad_merge(rank, "names a token that is not in the vocabulary", err);
    }
    /* Plain text must never merge into a control token. */
    const uint8_t type = t->type[m->id[2]];
    if (type != TOKEN_NORMAL && type != TOKEN_USER_DEFINED) {
        return bad_merge(rank, "makes a token that is not ordinary text", err);
    }
    merge_table_add(&t->merges, m->id[0], m->id[1], (uint32_t)rank, m->id[2]);
    return OK;
}

/* n lines from `first` on. Each step waits for memory that the step before asked for. */
static status load_merge_batch(tokenizer *t, const gguf_array *a, const string_index *x,
                               uint64_t first, int n, error *err) {
    merge_line line[MERGE_BATCH];
    status s = OK;
    for (int i = 0; i < n && s == OK; i++) {
        gguf_str m;
        if (!gguf_array_str(a, first + (uint64_t)i, &m)) return wrong_type(KEY("merges"), err);
        s = read_merge(t, x, first + (uint64_t)i, m, &line[i], err);
    }
    if (s != OK) return s;
    for (int stage = 1; stage <= 2; stage++) {
        for (int i = 0; i < n; i++) {
            for (int k = 0; k < 3; k++) string_index_fetch(x, &t->spelling, line[i].hash[k], stage);
        }
    }
    for (int i = 0; i < n; i++) {
        merge_line *m = &line[i];
        for (int k = 0; k < 3; k++) {
            if (k == 2 && m->word[2].len > sizeof m->joined) continue; /* done */
            m->id[k] =
                string_index_find_hashed(x, &t->spelling, m->word[k].s, m->word[k].len, m->hash[k]);
        }
        merge_table_fetch(&t->merges, m->id[0], m->id[1]);
    }
    for (int i = 0; i < n && s == OK; i++) s = add_merge(t, first + (uint64_t)i, &line[i], err);
    return s;
}

static status load_merges(tokenizer *t, const gguf *g, const string_index *x, error *err) {
    bool found;
    gguf_array a;
    status s = gguf_get_array(g, KEY("merges"), &found, &a, err);
    if (s != OK) return s;
    if (!found) return error_set(err, E_FORMAT, "%s is missing", KEY("merges"));
    if (a.count > 0 && a.type != GGUF_STRING) return wrong_type(KEY("merges"), err);
    if (a.count > 2 * (uint64_t)LIMIT_VOCAB) {
        return error_set(err, E_FORMAT, "%llu merges", (unsigned long long)a.count);
    }
    if (merge_table_init(&t->merges, (size_t)a.count) != OK) {
        return error_set(err, E_NOMEM, "tokenizer: %llu merges", (unsigned long long)a.count);
    }
    for (uint64_t i = 0; s == OK && i < a.count; i += MERGE_BATCH) {
        const uint64_t rest = a.count - i;
        s = load_merge_batch(t, &a, x, i, rest < MERGE_BATCH ? (int)rest : MERGE_BATCH, err);
    }
    return s;
}

typedef struct scored {
    float score;
    int32_t id;
} scored;

static int compare_scores(const void *a, const void *b) { /* best first */
    const scored *x = a, *y = b;
    return (x->score < y->score) - (x->score > y->score);
}

static status load_scores(tokenizer *t, const gguf *g, error *err) {
    const size_t n = (size_t)t->n_vocab;
    bool found;
    gguf_array a;
    const status s = get_array(g, KEY("scores"), n, &found, &a, err);
    if (s != OK) return s;
    if (!found) return error_set(err, E_FORMAT, "%s is missing", KEY("scores"));
    scored *v = malloc(n * sizeof *v);
    t->rank = malloc(n * sizeof *t->rank);
    if (!v || !t->rank) {
        free(v);
        return error_set(err, E_NOMEM, "tokenizer: %zu scores", n);
    }
    for (size_t i = 0; i < n; i++) {
        double score;
        if (!gguf_array_f64(&a, i, &score) || isnan(score)) {
            free(v);
            return error_set(err, E_FORMAT, "%s[%zu] is not a number", KEY("scores"), i);
        }
        v[i] = (scored){(float)score, (int32_t)i};
    }
    qsort(v, n, sizeof *v, compare_scores);
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && v[i].score < v[i - 1].score) rank++;
        t->rank[v[i].id] = rank;
    }
    free(v);
    return OK;
}

/* The kind of tokenizer and its rules; defaults by kind where the file is silent. */
static status load_rules(tokenizer *t, const gguf *g, error *err) {
    bool found;
    gguf_str model, pre;
    status s = gguf_get_str(g, KEY("model"), &found, &model, err);
    if (s != OK) return s;
    if (!found) return error_set(err, E_FORMAT, "%s is missing", KEY("model"));
    t->spm = model.len == 5 && memcmp(model.s, "llama", 5) == 0;
    if (!t->spm && !(model.len == 4 && memcmp(model.s, "gpt2", 4) == 0)) {
        return error_set(err, E_UNSUPPORTED, "%s \"%.*s\" (known: gpt2, llama)", KEY("model"),
                         (int)(model.len < 64 ? model.len : 64), model.s);
    }
    if (!t->spm) {
        s = gguf_get_str(g, KEY("pre"), &found, &pre, err);
        if (s != OK) return s;
        t->pre = PRE_DEFAULT;
        if (found && !pretokenizer_find(pre.s, pre.len, &t->pre)) {
            return error_set(err, E_UNSUPPORTED, "%s \"%.*s\"", KEY("pre"),
                             (int)(pre.len < 64 ? pre.len : 64), pre.s);
        }
        t->nfc = found && pre.len == 5 && memcmp(pre.s, "qwen2", 5) == 0;
        t->ignore_merges = t->pre == PRE_LLAMA3 || t->pre == PRE_TEKKEN || t->pre == PRE_GPT4O;
    }
    snprintf(t->name, sizeof t->name, "%s", t->spm ? "llama-spm" : pretokenizer_name(t->pre));
    t->add_bos = t->spm || t->pre == PRE_LLAMA3 || t->pre == PRE_TEKKEN;
    t->space_prefix = t->spm;
    s = gguf_get_bool(g, KEY("add_bos_token"), &found, &t->add_bos, err);
    if (s == OK) s = gguf_get_bool(g, KEY("add_eos_token"), &found, &t->add_eos, err);
    if (s == OK && t->spm) {
        s = gguf_get_bool(g, KEY("add_space_prefix"), &found, &t->space_prefix, err);
    }
    return s;
}

static status check_rows(const tokenizer *t, const gguf *g, error *err) {
    const gguf_tensor *embed = gguf_find_tensor(g, "token_embd.weight");
    if (!embed || embed->n_dims < 2 || embed->ne[1] == t->n_vocab) return OK;
    return error_set(err, E_FORMAT, "token_embd.weight has %lld rows, but there are %d tokens",
                     (long long)embed->ne[1], t->n_vocab);
}

status vocab_load(tokenizer *t, const gguf *g, error *err) {
    string_index by_spelling = {0};
    status s = load_rules(t, g, err);
    if (s == OK) s = load_spellings(t, g, err);
    if (s == OK) s = check_rows(t, g, err);
    if (s == OK) s = load_types(t, g, err);
    if (s == OK) s = load_pieces(t, err);
    if (s == OK) s = index_spellings(t, &by_spelling, err);
    if (s == OK) s = t->spm ? load_scores(t, g, err) : load_merges(t, g, &by_spelling, err);
    if (s == OK) s = special_load(t, g, &by_spelling, err);
    string_index_deinit(&by_spelling);
    return s;
}
