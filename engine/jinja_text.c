/* Buffers with origins, the text of values as Python writes it, and characters. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/limits.h"
#include "base/utf8.h"
#include "engine/jinja.h"

/* What one short append costs, in bytes touched. */
enum { CALL_BYTES = 32 };

/* Room for len more bytes; false: x has failed. */
static bool reserve(jinja *x, jinja_buffer *b, size_t len) {
    if (!jinja_touch(x, len + CALL_BYTES)) return false;
    if (len > LIMIT_TEMPLATE_OUTPUT_BYTES || b->len + len > LIMIT_TEMPLATE_OUTPUT_BYTES) {
        jinja_fail(x, E_TOO_LARGE, "the chat template makes more than %u bytes of text",
                   LIMIT_TEMPLATE_OUTPUT_BYTES);
        return false;
    }
    if (b->len + len <= b->capacity) return true;
    size_t capacity = b->capacity ? 2 * b->capacity : 256;
    while (capacity < b->len + len) capacity *= 2;
    char *s = jinja_alloc(x, 2 * capacity); /* text, then mask */
    if (!s) return false;
    uint8_t *mask = (uint8_t *)s + capacity;
    if (b->len > 0) {
        memcpy(s, b->s, b->len);
        memcpy(mask, b->mask, b->len);
    }
    b->s = s;
    b->mask = mask;
    b->capacity = capacity;
    return true;
}

void jinja_append(jinja *x, jinja_buffer *b, const char *s, size_t len, int origin) {
    if (len == 0 || !reserve(x, b, len)) return;
    memcpy(b->s + b->len, s, len);
    memset(b->mask + b->len, origin, len);
    b->len += len;
}

void jinja_append_sub(jinja *x, jinja_buffer *b, const jinja_str *s, size_t from, size_t to) {
    if (from == to || !reserve(x, b, to - from)) return;
    memcpy(b->s + b->len, s->s + from, to - from);
    if (s->origin == ORIGIN_MIXED) {
        memcpy(b->mask + b->len, s->mask + from, to - from);
    } else {
        memset(b->mask + b->len, s->origin, to - from);
    }
    b->len += to - from;
}

void jinja_append_str(jinja *x, jinja_buffer *b, const jinja_str *s) {
    jinja_append_sub(x, b, s, 0, s->len);
}

static void append_text(jinja *x, jinja_buffer *b, const char *text) {
    jinja_append(x, b, text, strlen(text), ORIGIN_MARKUP);
}

/* The buffer's bytes are not copied: it must not grow afterwards. */
jinja_value jinja_buffer_value(jinja *x, const jinja_buffer *b) {
    const jinja_value v = jinja_string(x, b->len ? b->s : "", b->len, ORIGIN_MARKUP);
    if (x->st != OK || b->len == 0) return v;
    jinja_str *s = (jinja_str *)v.u.s;
    if (!jinja_touch(x, b->len)) return jinja_undefined(NULL);
    const bool mixed = memchr(b->mask, b->mask[0] ^ 1, b->len) != NULL;
    s->origin = mixed ? ORIGIN_MIXED : b->mask[0];
    s->mask = mixed ? b->mask : NULL;
    return v;
}

size_t jinja_format_float(double f, char out[32]) {
    if (isnan(f)) return (size_t)snprintf(out, 32, "nan");
    if (isinf(f)) return (size_t)snprintf(out, 32, f < 0 ? "-inf" : "inf");
    char digits[40];
    int precision = 1; /* the shortest that reads back the same */
    for (; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
        const double back = strtod(digits, NULL);
        if (back <= f && back >= f) break;
    }
    snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
    const char *e = strchr(digits, 'e');
    const int exponent = e ? (int)strtol(e + 1, NULL, 10) : 0;
    if (exponent < -4 || exponent >= 16) { /* d.ddde+XX, as repr */
        return (size_t)snprintf(out, 32, "%s", digits);
    }
    const int decimals = precision - 1 - exponent;
    return (size_t)snprintf(out, 32, "%.*f", decimals > 0 ? decimals : 1, f);
}

static void append_number(jinja *x, jinja_buffer *b, jinja_value v) {
    char text[32];
    size_t n;
    if (v.kind == JINJA_INT) {
        n = (size_t)snprintf(text, sizeof text, "%" PRId64, v.u.i);
    } else {
        n = jinja_format_float(v.u.f, text);
    }
    jinja_append(x, b, text, n, ORIGIN_MARKUP);
}

static bool printable(uint32_t cp) {
    if (cp < 0x7F) return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

/* Python's repr of a string. Escapes take the origin of what they stand for. */
static void append_quoted(jinja *x, jinja_buffer *b, const jinja_str *s) {
    if (!jinja_touch(x, 4 * s->len)) return;
    const bool single = s->len && memchr(s->s, '\'', s->len);
    const bool twice = s->len && memchr(s->s, '"', s->len);
    const char quote = single && !twice ? '"' : '\'';
    jinja_append(x, b, &quote, 1, ORIGIN_MARKUP);
    size_t from = 0;
    for (size_t i = 0; i < s->len && x->st == OK;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
        char escape[12] = "";
        if (cp == '\n' || cp == '\r' || cp == '\t' || cp == '\\' || cp == (uint32_t)quote) {
            snprintf(escape, sizeof escape, "\\%c",
                     cp == '\n'   ? 'n'
                     : cp == '\r' ? 'r'
                     : cp == '\t' ? 't'
                                  : (char)cp);
        } else if (!printable(cp)) {
            if (cp < 0x100) {
                snprintf(escape, sizeof escape, "\\x%02" PRIx32, cp);
            } else if (cp < 0x10000) {
                snprintf(escape, sizeof escape, "\\u%04" PRIx32, cp);
            } else {
                snprintf(escape, sizeof escape, "\\U%08" PRIx32, cp);
            }
        }
        if (escape[0]) {
            const int origin = s->origin == ORIGIN_MIXED ? s->mask[i] : s->origin;
            jinja_append_sub(x, b, s, from, i);
            jinja_append(x, b, escape, strlen(escape), origin);
            from = i + n;
        }
        i += n;
    }
    jinja_append_sub(x, b, s, from, s->len);
    jinja_append(x, b, &quote, 1, ORIGIN_MARKUP);
}

static void append_list(jinja *x, jinja_buffer *b, const jinja_list *l) {
    append_text(x, b, l->tuple ? "(" : "[");
    for (size_t i = 0; i < l->n && x->st == OK; i++) {
        if (i > 0) append_text(x, b, ", ");
        jinja_append_repr(x, b, l->v[i]);
    }
    append_text(x, b, l->tuple ? (l->n == 1 ? ",)" : ")") : "]");
}

static void append_dict(jinja *x, jinja_buffer *b, const jinja_dict *d) {
    append_text(x, b, "{");
    for (size_t i = 0; i < d->n && x->st == OK; i++) {
        if (i > 0) append_text(x, b, ", ");
        jinja_append_repr(x, b, d->v[i].key);
        append_text(x, b, ": ");
        jinja_append_repr(x, b, d->v[i].value);
    }
    append_text(x, b, "}");
}

void jinja_append_repr(jinja *x, jinja_buffer *b, jinja_value v) {
    if (!jinja_touch(x, 8)) return;
    if (++x->depth > 8 * LIMIT_TEMPLATE_DEPTH) {
        jinja_fail(x, E_TOO_LARGE, "chat template: values are nested too deep");
        return;
    }
    switch (v.kind) {
    case JINJA_UNDEFINED:
        append_text(x, b, "Undefined");
        break;
    case JINJA_NONE:
        append_text(x, b, "None");
        break;
    case JINJA_BOOL:
        append_text(x, b, v.u.b ? "True" : "False");
        break;
    case JINJA_INT:
    case JINJA_FLOAT:
        append_number(x, b, v);
        break;
    case JINJA_STRING:
        append_quoted(x, b, v.u.s);
        break;
    case JINJA_LIST:
        append_list(x, b, v.u.list);
        break;
    case JINJA_DICT:
    case JINJA_NAMESPACE:
        append_dict(x, b, v.u.dict);
        break;
    default:
        append_text(x, b, "<");
        append_text(x, b, jinja_kind_name(v));
        append_text(x, b, ">");
    }
    x->depth--;
}

void jinja_append_value(jinja *x, jinja_buffer *b, jinja_value v) {
    if (v.kind == JINJA_STRING) {
        jinja_append_str(x, b, v.u.s);
    } else if (v.kind != JINJA_UNDEFINED) {
        jinja_append_repr(x, b, v);
    }
}

jinja_value jinja_to_string(jinja *x, jinja_value v) {
    if (v.kind == JINJA_STRING || x->st != OK) return v;
    jinja_buffer b = {0};
    jinja_append_value(x, &b, v);
    return jinja_buffer_value(x, &b);
}

static bool continues(char c) {
    return ((unsigned char)c & 0xC0) == 0x80;
}

size_t jinja_length(jinja *x, const jinja_str *s) {
    if (!jinja_touch(x, s->len)) return 0;
    size_t n = 0;
    for (size_t i = 0; i < s->len; i++) n += !continues(s->s[i]);
    return n;
}

size_t jinja_offset(jinja *x, const jinja_str *s, size_t i) {
    size_t at = 0;
    while (at < s->len && i > 0) {
        at++;
        while (at < s->len && continues(s->s[at])) at++;
        i--;
    }
    return jinja_touch(x, at) ? at : 0;
}

size_t jinja_find(jinja *x, const jinja_str *s, const char *needle, size_t len, size_t from) {
    if (len == 0) return from;
    size_t compared = 0;
    for (size_t i = from; i + len <= s->len;) {
        const char *p = memchr(s->s + i, needle[0], s->len - len + 1 - i);
        if (!p) break;
        const size_t at = (size_t)(p - s->s);
        size_t k = 1;
        while (k < len && p[k] == needle[k]) k++;
        compared += k;
        if (compared > 65536) {
            if (!jinja_touch(x, compared)) return SIZE_MAX;
            compared = 0;
        }
        if (k == len) {
            jinja_touch(x, compared + at - from);
            return at;
        }
        i = at + 1;
    }
    jinja_touch(x, compared + s->len - from);
    return SIZE_MAX;
}

bool jinja_is_space(uint32_t cp) {
    if (cp < 0x80) return cp == 0x20 || (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1F);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}
