#include "engine/tokenizer.h"

#include <assert.h>
#include <stdlib.h>

#include "engine/tokenizer_internal.h"

status tokenizer_open(const gguf *g, tokenizer **out, error *err) {
    assert(g && out);
    tokenizer *t = calloc(1, sizeof *t);
    if (!t) return error_set(err, E_NOMEM, "tokenizer: %zu bytes", sizeof *t);
    const status s = vocab_load(t, g, err);
    if (s != OK) {
        tokenizer_close(t);
        return s;
    }
    *out = t;
    return OK;
}

void tokenizer_close(tokenizer *t) {
    if (!t) return;
    free(t->padding);
    free(t->eog);
    free(t->specials.v);
    free(t->rank);
    merge_table_deinit(&t->merges);
    string_index_deinit(&t->by_piece);
    free(t->piece.start);
    free(t->piece.bytes);
    free(t->spelling.start);
    free(t->spelling.bytes);
    free(t->type);
    free(t);
}

int tokenizer_n_vocab(const tokenizer *t) {
    return t->n_vocab;
}

const char *tokenizer_piece(const tokenizer *t, int32_t id, bool keep_special, size_t *len) {
    assert(id >= 0 && id < t->n_vocab);
    const uint8_t type = t->type[id];
    if (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_UNUSED) {
        const char *s = string_at(&t->spelling, id, len);
        if (!keep_special) *len = 0;
        return s;
    }
    return string_at(&t->piece, id, len);
}

token_type tokenizer_type(const tokenizer *t, int32_t id) {
    assert(id >= 0 && id < t->n_vocab);
    return (token_type)t->type[id];
}

const char *tokenizer_spelling(const tokenizer *t, int32_t id, size_t *len) {
    assert(id >= 0 && id < t->n_vocab);
    return string_at(&t->spelling, id, len);
}

int32_t tokenizer_bos(const tokenizer *t) {
    return t->bos;
}

int32_t tokenizer_eos(const tokenizer *t) {
    return t->eos;
}

bool tokenizer_add_bos(const tokenizer *t) {
    return t->add_bos && t->bos >= 0;
}

bool tokenizer_strips_leading_space(const tokenizer *t) {
    return t->spm && t->space_prefix;
}

const char *tokenizer_name(const tokenizer *t) {
    return t->name;
}

const uint8_t *tokenizer_never_sampled(const tokenizer *t) {
    return t->padding;
}
