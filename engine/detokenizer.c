/* Ids to text, as a stream: whole characters only. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/tokenizer.h"

void text_buffer_free(text_buffer *b) {
    free(b->s);
    *b = (text_buffer){0};
}

static status reserve(text_buffer *b, size_t more) {
    if (more > SIZE_MAX / 4 - b->len) return E_NOMEM;
    const size_t need = b->len + more + 1;
    if (need <= b->capacity) return OK;
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need) capacity *= 2;
    char *s = realloc(b->s, capacity);
    if (!s) return E_NOMEM;
    b->s = s;
    b->capacity = capacity;
    return OK;
}

status text_buffer_append(text_buffer *b, const char *s, size_t len) {
    const status st = reserve(b, len);
    if (st != OK) return st;
    if (len > 0) memcpy(b->s + b->len, s, len);
    b->len += len;
    b->s[b->len] = '\0';
    return OK;
}

void detokenizer_init(detokenizer *d, const tokenizer *t, bool keep_special, bool strip_space) {
    *d = (detokenizer){.t = t, .keep_special = keep_special, .strip_space = strip_space};
}

/* Appends s, invalid parts replaced. */
static status append_sanitised(text_buffer *out, const char *s, size_t len) {
    if (len > SIZE_MAX / 8) return E_NOMEM;
    const status st = reserve(out, 3 * len);
    if (st != OK) return st;
    out->len += utf8_sanitise(s, len, out->s + out->len);
    out->s[out->len] = '\0';
    return OK;
}

/* Pushes bytes; they and the held ones come out up to the last whole character. */
static status push_bytes(detokenizer *d, const char *s, size_t len, text_buffer *out) {
    enum { STEP = 60 };
    char window[4 + STEP];
    while (len > 0) { /* the window holds what is unfinished and the next bytes */
        const size_t n_held = (size_t)d->n_held, n = len < STEP ? len : STEP;
        memcpy(window, d->held, n_held);
        memcpy(window + n_held, s, n);
        const size_t ready = utf8_complete_prefix(window, n_held + n);
        const size_t rest = n_held + n - ready;
        assert(rest <= sizeof d->held);
        const status st = append_sanitised(out, window, ready);
        if (st != OK) return st;
        memcpy(d->held, window + ready, rest);
        d->n_held = (int)rest;
        s += n;
        len -= n;
    }
    return OK;
}

status detokenizer_push(detokenizer *d, int32_t id, text_buffer *out) {
    size_t len;
    const char *s = tokenizer_piece(d->t, id, d->keep_special, &len);
    if (!d->started) {
        /* A leading control token has no text of its own; the space after it goes all the same. */
        const token_type type = tokenizer_type(d->t, id);
        const bool silent = !d->keep_special && (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN);
        d->started = !silent;
        if (!silent && d->strip_space && len > 0 && s[0] == ' ') {
            s++;
            len--;
        }
    }
    return push_bytes(d, s, len, out);
}

status detokenizer_finish(detokenizer *d, text_buffer *out) {
    if (d->n_held == 0) return OK;
    const status st = append_sanitised(out, (const char *)d->held, (size_t)d->n_held);
    d->n_held = 0;
    return st;
}
