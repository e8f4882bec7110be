/* Text to ids: join the parts, cut at special tokens, and for each fragment between them normalise
 * (Qwen), split into words (BPE) and merge. All memory is in proportion to the text. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/tokenizer_internal.h"
#include "engine/unicode.h"

typedef struct encoder {
    const tokenizer *t;
    token_list *out;
    const char *text; /* the parts, joined */
    size_t len;
    const text_part *parts;
    int n_parts, i_next; /* parts from i_next on begin at region_end */
    size_t region_end;   /* of the stretch of literal text or of markup that is being read */
    bool region_literal;
    size_t first; /* tokens of the fragment start here in out */
    merger m;
    text_buffer fragment; /* rewritten fragment */
    text_map map;
} encoder;

void token_list_free(token_list *l) {
    free(l->id);
    free(l->start);
    free(l->end);
    l->id = NULL;
    l->start = l->end = NULL;
    l->n = l->capacity = 0;
}

static bool grow(void **array, size_t capacity, size_t size) {
    void *p = realloc(*array, capacity * size);
    if (p) *array = p;
    return p != NULL;
}

static status emit(token_list *l, int32_t id, size_t start, size_t end) {
    if (l->n == l->capacity) {
        const size_t capacity = l->capacity ? 2 * l->capacity : 32;
        if (!grow((void **)&l->id, capacity, sizeof *l->id)) return E_NOMEM;
        if (l->with_offsets && (!grow((void **)&l->start, capacity, sizeof *l->start) ||
                                !grow((void **)&l->end, capacity, sizeof *l->end))) {
            return E_NOMEM;
        }
        l->capacity = capacity;
    }
    l->id[l->n] = id;
    if (l->with_offsets) {
        l->start[l->n] = (uint32_t)start;
        l->end[l->n] = (uint32_t)end;
    }
    l->n++;
    return OK;
}

/* Offsets of the tokens from `first` on: from the rewritten text to base + its source. */
static void map_offsets(token_list *l, size_t first, const text_map *m, size_t out_len,
                        size_t in_len, size_t base) {
    size_t cursor = 0;
    for (size_t i = first; i < l->n; i++) {
        text_map_range(m, out_len, in_len, &l->start[i], &l->end[i], &cursor);
        l->start[i] += (uint32_t)base;
        l->end[i] += (uint32_t)base;
    }
}

/* One word of byte-level BPE at offset base. Bytes without a token vanish before merging, so their
 * neighbours meet: as Hugging Face does it. */
static status encode_word(encoder *e, const char *word, size_t len, size_t base) {
    const tokenizer *t = e->t;
    if (t->ignore_merges && len <= t->piece_max) {
        const int32_t id = string_index_find(&t->by_piece, &t->piece, word, len);
        if (id >= 0) return emit(e->out, id, base, base + len);
    }
    status s = merger_reserve(&e->m, len);
    if (s != OK) return s;
    symbol *v = e->m.symbols;
    size_t first = len, last = len, n = 0;
    for (size_t i = 0; i < len; i++) {
        const int32_t id = t->byte_id[(unsigned char)word[i]];
        if (id < 0) continue;
        v[i].id = id;
        if (n++ == 0) {
            first = i;
        } else {
            v[last].next = (uint32_t)i;
            e->m.pairs[i].prev = (uint32_t)last;
        }
        last = i;
    }
    if (n == 0) return OK;
    v[last].next = (uint32_t)len;
    if (n > 1) s = merger_run(&e->m, t, word, len, first, n);
    for (size_t i = first; i < len && s == OK; i = v[i].next) {
        s = emit(e->out, v[i].id, base + i, base + v[i].next);
    }
    return s;
}

static status encode_bpe(encoder *e, size_t start, size_t end) {
    const char *s = e->text + start;
    size_t len = end - start, base = start;
    const size_t first = e->first = e->out->n;
    const bool rewrite = e->t->nfc && unicode_may_need_nfc(s, len);
    status st = OK;
    if (rewrite) {
        e->fragment.len = 0;
        text_map_reset(&e->map);
        st = unicode_nfc(s, len, &e->fragment, e->out->with_offsets ? &e->map : NULL);
        if (st != OK) return st;
        s = e->fragment.s;
        len = e->fragment.len;
        base = 0;
    }
    pretok_cursor c;
    pretok_init(&c, e->t->pre, s, len);
    size_t a, b;
    while (st == OK && pretok_next(&c, &a, &b)) st = encode_word(e, s + a, b - a, base + a);
    if (st == OK && rewrite && e->out->with_offsets) {
        map_offsets(e->out, first, &e->map, len, end - start, start);
    }
    return st;
}

/* The bytes of one character that is not in a SentencePiece vocabulary. */
static status emit_bytes(encoder *e, const char *s, size_t len, size_t at) {
    const int32_t *byte_id = e->t->byte_id;
    const bool space = len == 1 && s[0] == ' '; /* it stands for U+2581 */
    const char *bytes = space ? "\xE2\x96\x81" : s;
    const size_t n = space ? 3 : len;
    bool all = true;
    for (size_t i = 0; i < n; i++) all = all && byte_id[(unsigned char)bytes[i]] >= 0;
    if (!all) {
        token_list *l = e->out; /* a run of unknown characters is one token */
        if (e->t->unk < 0) return OK;
        if (l->n > e->first && l->id[l->n - 1] == e->t->unk &&
            (!l->with_offsets || l->end[l->n - 1] == at)) {
            if (l->with_offsets) l->end[l->n - 1] = (uint32_t)(at + len);
            return OK;
        }
        return emit(l, e->t->unk, at, at + len);
    }
    status st = OK;
    for (size_t i = 0; i < n && st == OK; i++) {
        st = emit(e->out, byte_id[(unsigned char)bytes[i]], at + (space ? 0 : i),
                  space ? at + 1 : at + i + 1);
    }
    return st;
}

static int32_t find_piece(const tokenizer *t, const char *s, size_t len) {
    return len <= t->piece_max ? string_index_find(&t->by_piece, &t->piece, s, len) : -1;
}

/* What merging left at s[at..end). An unused piece is never emitted: it is taken apart again, as
 * sentencepiece does. The ends of right halves wait. */
static status emit_symbol(encoder *e, int32_t id, const char *s, size_t at, size_t end) {
    const tokenizer *t = e->t;
    uint32_t ends[SPM_PIECE_BYTES_MAX];
    int depth = 0;
    status st = OK;
    for (;;) {
        const size_t left =
            id >= 0 && t->type[id] == TOKEN_UNUSED && e->m.left_bytes ? e->m.left_bytes[id] : 0;
        if (left > 0) {
            ends[depth++] = (uint32_t)end;
            end = at + left;
        } else {
            st = id >= 0 ? emit(e->out, id, at, end) : emit_bytes(e, s + at, end - at, at);
            if (depth == 0 || st != OK) return st;
            at = end;
            end = ends[--depth];
        }
        id = find_piece(t, s + at, end - at);
    }
}

/* The fragment with a space before it and U+2581 as a space. */
static status rewrite_spm(encoder *e, const char *s, size_t len) {
    text_map *map = e->out->with_offsets ? &e->map : NULL;
    e->fragment.len = 0;
    text_map_reset(&e->map);
    status st = OK;
    if (e->t->space_prefix) {
        st = text_buffer_append(&e->fragment, " ", 1);
        if (st == OK && map) st = text_map_add(map, 0, 0, false);
    }
    for (size_t i = 0; i < len && st == OK;) {
        size_t n = i;
        while (n < len && !(len - n >= 3 && memcmp(s + n, "\xE2\x96\x81", 3) == 0)) n++;
        if (n > i) {
            if (map) st = text_map_add(map, e->fragment.len, i, true);
            if (st == OK) st = text_buffer_append(&e->fragment, s + i, n - i);
        }
        if (n < len && st == OK) {
            if (map) st = text_map_add(map, e->fragment.len, n, false);
            if (st == OK) st = text_buffer_append(&e->fragment, " ", 1);
            n += 3;
        }
        i = n;
    }
    return st;
}

static status encode_spm(encoder *e, size_t start, size_t end) {
    const tokenizer *t = e->t;
    const size_t first = e->first = e->out->n;
    status st = rewrite_spm(e, e->text + start, end - start);
    if (st == OK) st = merger_reserve(&e->m, e->fragment.len);
    if (st != OK) return st;
    const char *s = e->fragment.s;
    const size_t len = e->fragment.len;
    symbol *v = e->m.symbols;
    size_t n = 0;
    for (size_t i = 0, last = 0; i < len; n++) {
        uint32_t cp;
        const size_t width = utf8_decode(s + i, len - i, &cp);
        v[i].id = find_piece(t, s + i, width);
        e->m.pairs[i].prev = (uint32_t)last;
        v[i].next = (uint32_t)(i + width);
        last = i;
        i += width;
    }
    st = merger_run(&e->m, t, s, len, 0, n);
    for (size_t i = 0; i < len && st == OK; i = v[i].next) {
        st = emit_symbol(e, v[i].id, s, i, v[i].next);
    }
    if (st == OK && e->out->with_offsets) {
        map_offsets(e->out, first, &e->map, len, end - start, start);
    }
    return st;
}

/* Where the markup that holds pos ends; pos itself in literal text. For ascending pos. */
static size_t markup_end(encoder *e, size_t pos) {
    while (pos >= e->region_end && e->i_next < e->n_parts) {
        e->region_literal = e->parts[e->i_next].literal;
        do { /* parts of one kind in a row are one stretch */
            e->region_end += e->parts[e->i_next++].len;
        } while (e->i_next < e->n_parts && (e->parts[e->i_next].len == 0 ||
                                            e->parts[e->i_next].literal == e->region_literal));
    }
    return e->region_literal ? pos : e->region_end;
}

static size_t skip_space(const char *s, size_t len, size_t pos) {
    size_t width;
    while (pos < len && unicode_classes_at(s, len, pos, &width) & UNI_SPACE) pos += width;
    return pos;
}

static status encode_fragment(encoder *e, size_t start, size_t end) {
    if (start == end) return OK;
    return e->t->spm ? encode_spm(e, start, end) : encode_bpe(e, start, end);
}

static status encode_text(encoder *e) {
    const special_list *l = &e->t->specials;
    size_t start = 0, pos = 0;
    status s = OK;
    while (pos < e->len && s == OK) {
        const uint8_t starts = l->starts[(unsigned char)e->text[pos]];
        const special *found = NULL;
        if (starts) {
            const size_t end = markup_end(e, pos);
            if (end > pos || starts & 2) found = special_match(l, e->text, e->len, pos, end);
        }
        if (!found) {
            pos++;
            continue;
        }
        s = encode_fragment(e, start, pos);
        if (s == OK) s = emit(e->out, found->id, pos, pos + found->len);
        pos += found->len;
        if (found->eats_space) pos = skip_space(e->text, e->len, pos);
        start = pos;
    }
    return s == OK ? encode_fragment(e, start, e->len) : s;
}

/* Replaces invalid bytes by U+FFFD, with a map back. */
static status sanitise(const char *s, size_t len, text_buffer *out, text_map *map) {
    static const char replacement[] = "\xEF\xBF\xBD";
    status st = OK;
    for (size_t i = 0; i < len && st == OK;) {
        uint32_t cp;
        const size_t width = utf8_decode(s + i, len - i, &cp);
        st = text_map_add(map, out->len, i, cp != UTF8_BAD);
        if (st == OK) {
            st = cp == UTF8_BAD ? text_buffer_append(out, replacement, 3)
                                : text_buffer_append(out, s + i, width);
        }
        i += width;
    }
    return st;
}

/* Invalid text: the parts are rewritten one by one, so that their borders stay known. */
static status encode_invalid(const tokenizer *t, const text_part *parts, int n_parts,
                             unsigned flags, token_list *out) {
    text_part *clean = calloc((size_t)n_parts, sizeof *clean);
    text_buffer all = {0};
    text_map map = {0};
    const size_t first = out->n;
    size_t in_len = 0;
    status s = clean ? OK : E_NOMEM;
    for (int i = 0; i < n_parts && s == OK; i++) {
        text_map part_map = {0};
        const size_t at = all.len;
        s = sanitise(parts[i].s, parts[i].len, &all, &part_map);
        for (size_t k = 0; k < part_map.n && s == OK; k++) {
            /* sanitise counts out from the start of `all` and in from the part's start */
            s = text_map_add(&map, part_map.spans[k].out, in_len + part_map.spans[k].in,
                             part_map.spans[k].copied);
        }
        clean[i] = (text_part){NULL, all.len - at, parts[i].literal};
        in_len += parts[i].len;
        text_map_free(&part_map);
    }
    size_t at = 0;
    for (int i = 0; i < n_parts && s == OK; i++) {
        clean[i].s = all.s + at;
        at += clean[i].len;
    }
    if (s == OK) s = tokenizer_encode(t, clean, n_parts, flags, out);
    if (s == OK && out->with_offsets) map_offsets(out, first, &map, all.len, in_len, 0);
    text_map_free(&map);
    text_buffer_free(&all);
    free(clean);
    return s;
}

status tokenizer_encode(const tokenizer *t, const text_part *parts, int n_parts, unsigned flags,
                        token_list *out) {
    assert(t && out && n_parts >= 0);
    const text_part none = {"", 0, true};
    if (n_parts == 0) {
        parts = &none;
        n_parts = 1;
    }
    size_t len = 0;
    for (int i = 0; i < n_parts; i++) {
        if (parts[i].len > UINT32_MAX / 8 || len + parts[i].len > UINT32_MAX / 8) {
            return E_TOO_LARGE;
        }
        len += parts[i].len;
    }
    for (int i = 0; i < n_parts; i++) {
        if (!utf8_valid(parts[i].s, parts[i].len)) {
            return encode_invalid(t, parts, n_parts, flags, out);
        }
    }
    encoder e = {.t = t, .out = out, .len = len, .parts = parts, .n_parts = n_parts};
    char *joined = NULL;
    if (n_parts == 1) {
        e.text = parts[0].s;
    } else {
        e.text = joined = malloc(len ? len : 1);
        if (!joined) return E_NOMEM;
        for (size_t i = 0, at = 0; i < (size_t)n_parts; at += parts[i].len, i++) {
            if (parts[i].len > 0) memcpy(joined + at, parts[i].s, parts[i].len);
        }
    }
    const bool add = flags & TOKENIZE_ADD_SPECIAL;
    status s = add && t->add_bos && t->bos >= 0 ? emit(out, t->bos, 0, 0) : OK;
    if (s == OK) s = encode_text(&e);
    if (s == OK && add && t->add_eos && t->eos >= 0) s = emit(out, t->eos, len, len);
    text_map_free(&e.map);
    text_buffer_free(&e.fragment);
    merger_deinit(&e.m);
    free(joined);
    return s;
}
