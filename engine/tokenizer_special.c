/* Special tokens: which they are, where they match, which of them end a generation.
 *
 * Matching is leftmost-longest, as Hugging Face's added-token matcher. The tokens are sorted by
 * spelling; a match narrows a range of them byte by byte with binary search, so its cost does not
 * grow with their number. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"

static bool equals(const char *s, size_t len, const char *word) {
    return strlen(word) == len && memcmp(s, word, len) == 0;
}

/* "[PAD<id>]": a row that only fills the embedding matrix; converters type it in many ways. */
static bool is_padding(const tokenizer *t, int32_t id, const char *s, size_t len) {
    if (t->type[id] == TOKEN_UNUSED) return true;
    if (t->type[id] == TOKEN_NORMAL || t->type[id] == TOKEN_BYTE) return false;
    char own[24];
    const int n = snprintf(own, sizeof own, "[PAD%d]", (int)id);
    return n > 0 && (size_t)n == len && memcmp(own, s, len) == 0;
}

/* Spellings that end a generation wherever they occur. Source: llama.cpp src/llama-vocab.cpp. */
static const char *const eog_names[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|repo_name|>",
    "<|fim_repo|>",
    "<fim-repo>",
    "<reponame>",
    "<REPO>",
    "<|file_sep|>",
};

static int compare_ids(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void add_eog(tokenizer *t, int32_t id) {
    if (id < 0) return;
    for (int i = 0; i < t->n_eog; i++) {
        if (t->eog[i] == id) return;
    }
    t->eog[t->n_eog++] = id;
}

/* A token id from the metadata; -1 if the key is absent. */
static status read_id(const tokenizer *t, const gguf *g, const char *key, int32_t *out,
                      error *err) {
    bool found;
    uint64_t v;
    *out = -1;
    const status s = gguf_get_u64(g, key, &found, &v, err);
    if (s != OK || !found) return s;
    if (v >= (uint64_t)t->n_vocab) {
        return error_set(err, E_FORMAT, "%s is %llu, but there are %d tokens", key,
                         (unsigned long long)v, t->n_vocab);
    }
    *out = (int32_t)v;
    return OK;
}

static bool ends_by_name(const tokenizer *t, int32_t id) {
    return id >= 0 && t->type[id] != TOKEN_NORMAL && t->type[id] != TOKEN_BYTE;
}

static status load_eog(tokenizer *t, const gguf *g, const string_index *by_spelling, error *err) {
    enum { N_NAMES = sizeof eog_names / sizeof eog_names[0] };
    static const char *const keys[] = {
        "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id",
        "tokenizer.ggml.fim_sep_token_id",
    };
    enum { N_KEYS = sizeof keys / sizeof keys[0] };
    t->eog = malloc((N_NAMES + N_KEYS + 1) * sizeof *t->eog);
    if (!t->eog) return error_set(err, E_NOMEM, "tokenizer: end-of-generation ids");
    add_eog(t, t->eos);
    for (int i = 0; i < N_KEYS; i++) {
        int32_t id;
        const status s = read_id(t, g, keys[i], &id, err);
        if (s != OK) return s;
        add_eog(t, id);
    }
    /* gpt-oss ends messages with <|end|> but turns with <|return|> or <|call|>. */
    const bool harmony = string_index_find(by_spelling, &t->spelling, "<|return|>", 10) >= 0 &&
                         string_index_find(by_spelling, &t->spelling, "<|call|>", 8) >= 0;
    for (int i = 0; i < N_NAMES; i++) {
        const char *name = eog_names[i];
        if (harmony && strcmp(name, "<|end|>") == 0) continue;
        const int32_t id = string_index_find(by_spelling, &t->spelling, name, strlen(name));
        if (ends_by_name(t, id)) add_eog(t, id);
    }
    qsort(t->eog, (size_t)t->n_eog, sizeof *t->eog, compare_ids);
    return OK;
}

static bool contains(const char *s, size_t len, const char *word) { /* ASCII case ignored */
    const size_t n = strlen(word);
    for (size_t i = 0; i + n <= len; i++) {
        size_t k = 0;
        while (k < n &&
               (s[i + k] >= 'A' && s[i + k] <= 'Z' ? s[i + k] | 0x20 : s[i + k]) == word[k])
            k++;
        if (k == n) return true;
    }
    return false;
}

/* Phi-3's special tokens eat the white space after them. GGUF has no key for that: llama.cpp goes
 * by the model's name; a SentencePiece vocabulary in a phi3 model is the same tokenizer. */
static status eats_space(const tokenizer *t, const gguf *g, bool *out, error *err) {
    bool found;
    gguf_str name = {0}, architecture = {0};
    status s = gguf_get_str(g, "general.name", &found, &name, err);
    if (s != OK) return s;
    *out = found && (contains(name.s, name.len, "phi-3") || contains(name.s, name.len, "phi3"));
    s = gguf_get_str(g, "general.architecture", &found, &architecture, err);
    if (s != OK) return s;
    *out = *out || (found && t->spm && equals(architecture.s, architecture.len, "phi3"));
    return OK;
}

static int compare_specials(const void *a, const void *b) {
    const special *x = a, *y = b;
    const int c = memcmp(x->s, y->s, x->len < y->len ? x->len : y->len);
    return c != 0 ? c : (x->len > y->len) - (x->len < y->len);
}

static bool is_special_type(uint8_t type) {
    return type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_USER_DEFINED;
}

/* A user-defined token is found in any text, as every reference tokenizer does it, unless it works
 * like a control token whatever the file calls it: the ids that end a turn, and <|...|>. */
static bool works_as_control(const tokenizer *t, int32_t id, const char *s, size_t len) {
    if (t->type[id] != TOKEN_USER_DEFINED || id == t->eos || id == t->bos) return true;
    return len > 4 && memcmp(s, "<|", 2) == 0 && memcmp(s + len - 2, "|>", 2) == 0;
}

static status collect_specials(tokenizer *t, bool phi3, error *err) {
    special_list *l = &t->specials;
    size_t n = 0;
    for (int32_t id = 0; id < t->n_vocab; id++) n += is_special_type(t->type[id]);
    l->v = malloc((n ? n : 1) * sizeof *l->v);
    if (!l->v) return error_set(err, E_NOMEM, "tokenizer: %zu special tokens", n);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        size_t len;
        const char *s = string_at(&t->spelling, id, &len);
        if (!is_special_type(t->type[id]) || len == 0) continue;
        if (t->padding && t->padding[id]) continue;
        if (len > SPECIAL_BYTES_MAX) {
            return error_set(err, E_FORMAT, "special token %d has %zu bytes, the limit is %d",
                             (int)id, len, SPECIAL_BYTES_MAX);
        }
        const bool plain =
            equals(s, len, "<unk>") || equals(s, len, "<s>") || equals(s, len, "<|endoftext|>");
        l->v[l->n++] =
            (special){s, (uint32_t)len, id, works_as_control(t, id, s, len), phi3 && !plain};
    }
    qsort(l->v, l->n, sizeof *l->v, compare_specials);
    for (size_t i = 0; i < l->n; i++) {
        const unsigned char b = (unsigned char)l->v[i].s[0];
        l->first[b + 1] = i + 1;
        l->starts[b] |= l->v[i].control ? 1 : 3;
        l->any_user_defined |= !l->v[i].control;
    }
    for (int b = 0; b < 256; b++) {
        if (l->first[b + 1] < l->first[b]) l->first[b + 1] = l->first[b];
    }
    return OK;
}

static status mark_padding(tokenizer *t, error *err) {
    for (int32_t id = 0; id < t->n_vocab; id++) {
        size_t len;
        const char *s = string_at(&t->spelling, id, &len);
        if (!is_padding(t, id, s, len)) continue;
        if (!t->padding) t->padding = calloc((size_t)t->n_vocab, 1);
        if (!t->padding) return error_set(err, E_NOMEM, "tokenizer: %d padding flags", t->n_vocab);
        t->padding[id] = 1;
    }
    return OK;
}

status special_load(tokenizer *t, const gguf *g, const string_index *by_spelling, error *err) {
    status s = read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err);
    if (s == OK) s = read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err);
    if (s == OK) s = read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, err);
    static const char *const others[] = {
        "tokenizer.ggml.seperator_token_id", "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.mask_token_id",      "tokenizer.ggml.fim_pre_token_id",
        "tokenizer.ggml.fim_suf_token_id",   "tokenizer.ggml.fim_mid_token_id"};
    for (size_t i = 0; i < sizeof others / sizeof others[0] && s == OK; i++) {
        int32_t unused; /* not needed here, but a file that is wrong about them is not trusted */
        s = read_id(t, g, others[i], &unused, err);
    }
    if (s != OK) return s;
    if (t->spm) { /* the defaults of a file without these keys */
        if (t->bos < 0 && t->n_vocab > 1) t->bos = 1;
        if (t->eos < 0 && t->n_vocab > 2) t->eos = 2;
        if (t->unk < 0) t->unk = 0;
    }
    s = mark_padding(t, err);
    if (s == OK) s = load_eog(t, g, by_spelling, err);
    bool phi3 = false;
    if (s == OK) s = eats_space(t, g, &phi3, err);
    if (s == OK) s = collect_specials(t, phi3, err);
    return s;
}

/* First of v[lo..hi) whose byte at depth d is >= b. All are longer than d. */
static size_t lower_bound(const special *v, size_t lo, size_t hi, size_t d, unsigned b) {
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)v[mid].s[d] < b) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

const special *special_match(const special_list *l, const char *text, size_t len, size_t pos,
                             size_t markup_end) {
    const special *best = NULL;
    const unsigned char b0 = (unsigned char)text[pos];
    size_t lo = l->first[b0], hi = l->first[b0 + 1];
    for (size_t d = 1; lo < hi; d++) {
        if (l->v[lo].len == d) { /* a prefix of all others in the range */
            if (!l->v[lo].control || pos + d <= markup_end) best = &l->v[lo];
            lo++;
        }
        if (lo == hi || pos + d >= len) break;
        const unsigned b = (unsigned char)text[pos + d];
        lo = lower_bound(l->v, lo, hi, d, b);
        hi = lower_bound(l->v, lo, hi, d, b + 1);
    }
    return best;
}

static bool contains_id(const int32_t *ids, int n, int32_t id) {
    for (int i = 0; i < n; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}

bool tokenizer_is_eog(const tokenizer *t, int32_t id) {
    return contains_id(t->eog, t->n_eog, id);
}

int tokenizer_eog_ids(const tokenizer *t, const int32_t **ids) {
    *ids = t->eog;
    return t->n_eog;
}
