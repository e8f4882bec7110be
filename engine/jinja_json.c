/* JSON in and out. Strings that come from a request have origin literal. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/utf8.h"
#include "engine/jinja.h"

static void put(jinja *x, jinja_buffer *b, const char *text) {
    jinja_append(x, b, text, strlen(text), ORIGIN_MARKUP);
}

/* The escape of cp in out[16], or false if it stands for itself. */
static bool escape(uint32_t cp, bool ascii, char out[16]) {
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    const char *known = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;
    if (known) {
        snprintf(out, 16, "\\%c", to[known - from]);
    } else if (cp < 0x20 || (ascii && cp >= 0x7F && cp < 0x10000)) {
        if (cp == 0x7F) return false;
        snprintf(out, 16, "\\u%04" PRIx32, cp);
    } else if (ascii && cp >= 0x10000) {
        const uint32_t v = cp - 0x10000;
        snprintf(out, 16, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xD800 + (v >> 10),
                 0xDC00 + (v & 0x3FF));
    } else {
        return false;
    }
    return true;
}

static void put_string(jinja *x, jinja_buffer *b, const jinja_str *s, bool ascii) {
    if (!jinja_touch(x, 4 * s->len)) return;
    put(x, b, "\"");
    size_t from = 0;
    for (size_t i = 0; i < s->len && x->st == OK;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
        char text[16];
        if (escape(cp, ascii, text)) {
            jinja_append_sub(x, b, s, from, i);
            jinja_append(x, b, text, strlen(text),
                         s->origin == ORIGIN_MIXED ? s->mask[i] : s->origin);
            from = i + n;
        }
        i += n;
    }
    jinja_append_sub(x, b, s, from, s->len);
    put(x, b, "\"");
}

typedef struct json_style {
    int indent;
    bool ascii, sort_keys;
    const jinja_str *item_sep, *key_sep;
} json_style;

static void put_newline(jinja *x, jinja_buffer *b, const json_style *o, int level) {
    if (o->indent < 0) return;
    put(x, b, "\n");
    for (int i = 0; i < level * o->indent && x->st == OK; i++) put(x, b, " ");
}

static void put_value(jinja *x, jinja_buffer *b, const json_style *o, jinja_value v, int level);

static int compare_keys(const void *a, const void *b) {
    const jinja_entry *const *p = a, *const *q = b;
    const jinja_value k = (*p)->key, l = (*q)->key;
    if (k.kind != JINJA_STRING || l.kind != JINJA_STRING) {
        if (k.kind == JINJA_INT && l.kind == JINJA_INT) return (k.u.i > l.u.i) - (k.u.i < l.u.i);
        return (k.kind > l.kind) - (k.kind < l.kind);
    }
    const size_t n = k.u.s->len < l.u.s->len ? k.u.s->len : l.u.s->len;
    const int c = n ? memcmp(k.u.s->s, l.u.s->s, n) : 0;
    return c ? c : (k.u.s->len > l.u.s->len) - (k.u.s->len < l.u.s->len);
}

static void put_key(jinja *x, jinja_buffer *b, const json_style *o, jinja_value key) {
    if (key.kind == JINJA_STRING) {
        put_string(x, b, key.u.s, o->ascii);
    } else if (key.kind == JINJA_BOOL || key.kind == JINJA_NONE || key.kind == JINJA_INT ||
               key.kind == JINJA_FLOAT) {
        put(x, b, "\"");
        put_value(x, b, o, key, 0);
        put(x, b, "\"");
    } else {
        jinja_fail(x, E_INVAL, "keys must be str, int, float, bool or None, not %s",
                   jinja_kind_name(key));
    }
}

static void put_dict(jinja *x, jinja_buffer *b, const json_style *o, const jinja_dict *d,
                     int level) {
    const jinja_entry **order = jinja_alloc(x, d->n * sizeof(jinja_entry *));
    if (!order) return;
    for (size_t i = 0; i < d->n; i++) order[i] = &d->v[i];
    if (o->sort_keys && jinja_touch(x, d->n * 64)) {
        qsort(order, d->n, sizeof(jinja_entry *), compare_keys);
    }
    put(x, b, "{");
    for (size_t i = 0; i < d->n && x->st == OK; i++) {
        if (i > 0) jinja_append_str(x, b, o->item_sep);
        put_newline(x, b, o, level + 1);
        put_key(x, b, o, order[i]->key);
        jinja_append_str(x, b, o->key_sep);
        put_value(x, b, o, order[i]->value, level + 1);
    }
    if (d->n > 0) put_newline(x, b, o, level);
    put(x, b, "}");
}

static void put_number(jinja *x, jinja_buffer *b, jinja_value v) {
    char text[32];
    if (v.kind == JINJA_INT) {
        snprintf(text, sizeof text, "%" PRId64, v.u.i);
    } else if (isnan(v.u.f)) {
        snprintf(text, sizeof text, "NaN");
    } else if (isinf(v.u.f)) {
        snprintf(text, sizeof text, v.u.f < 0 ? "-Infinity" : "Infinity");
    } else {
        text[jinja_format_float(v.u.f, text)] = '\0';
    }
    put(x, b, text);
}

static void put_value(jinja *x, jinja_buffer *b, const json_style *o, jinja_value v, int level) {
    if (!jinja_touch(x, 16)) return;
    if (level > LIMIT_TEMPLATE_DEPTH) {
        jinja_fail(x, E_TOO_LARGE, "chat template: values are nested too deep");
        return;
    }
    switch (v.kind) {
    case JINJA_NONE:
        put(x, b, "null");
        break;
    case JINJA_BOOL:
        put(x, b, v.u.b ? "true" : "false");
        break;
    case JINJA_INT:
    case JINJA_FLOAT:
        put_number(x, b, v);
        break;
    case JINJA_STRING:
        put_string(x, b, v.u.s, o->ascii);
        break;
    case JINJA_LIST:
        put(x, b, "[");
        for (size_t i = 0; i < v.u.list->n && x->st == OK; i++) {
            if (i > 0) jinja_append_str(x, b, o->item_sep);
            put_newline(x, b, o, level + 1);
            put_value(x, b, o, v.u.list->v[i], level + 1);
        }
        if (v.u.list->n > 0) put_newline(x, b, o, level);
        put(x, b, "]");
        break;
    case JINJA_DICT:
        put_dict(x, b, o, v.u.dict, level);
        break;
    default:
        jinja_fail(x, E_INVAL, "Object of type %s is not JSON serializable", jinja_kind_name(v));
    }
}

jinja_value jinja_to_json(jinja *x, jinja_value v, int indent, bool ascii, bool sort_keys,
                          const jinja_str *item_sep, const jinja_str *key_sep) {
    const jinja_str comma = {.s = ",", .len = 1}, comma_space = {.s = ", ", .len = 2},
                    colon = {.s = ": ", .len = 2};
    const json_style style = {.indent = indent,
                              .ascii = ascii,
                              .sort_keys = sort_keys,
                              .item_sep = item_sep     ? item_sep
                                          : indent < 0 ? &comma_space
                                                       : &comma,
                              .key_sep = key_sep ? key_sep : &colon};
    jinja_buffer b = {0};
    put_value(x, &b, &style, v, 0);
    return jinja_buffer_value(x, &b);
}

static jinja_value copy_string(jinja *x, const char *s, size_t len) {
    char *p = jinja_alloc(x, len);
    if (!p) return jinja_undefined(NULL);
    memcpy(p, s, len);
    return jinja_string(x, p, len, ORIGIN_LITERAL);
}

static jinja_value convert(jinja *x, const json_t *j, int level) {
    if (!jinja_touch(x, 16)) return jinja_undefined(NULL);
    if (level > LIMIT_TEMPLATE_DEPTH) return jinja_fail(x, E_INVAL, "JSON is nested too deep");
    switch (json_typeof(j)) {
    case JSON_NULL:
        return jinja_none();
    case JSON_TRUE:
    case JSON_FALSE:
        return jinja_bool(json_is_true(j));
    case JSON_INTEGER:
        return jinja_int(json_integer_value(j));
    case JSON_REAL:
        return jinja_float(json_real_value(j));
    case JSON_STRING:
        return copy_string(x, json_string_value(j), json_string_length(j));
    case JSON_ARRAY: {
        const jinja_value l = jinja_list_new(x, json_array_size(j));
        for (size_t i = 0; i < json_array_size(j) && x->st == OK; i++) {
            jinja_list_push(x, l.u.list, convert(x, json_array_get(j, i), level + 1));
        }
        return l;
    }
    case JSON_OBJECT:
        break;
    }
    const jinja_value d = jinja_dict_new(x);
    if (x->st != OK) return d;
    /* The keys differ (the parser saw to it), so there is no need to look each one up. */
    const size_t n = json_object_size(j);
    jinja_dict *dict = d.u.dict;
    dict->v = jinja_alloc(x, n * sizeof *dict->v);
    dict->capacity = n;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)j, key, value) {
        if (x->st != OK) break;
        const jinja_value k = copy_string(x, key, strlen(key));
        const jinja_value v = convert(x, value, level + 1);
        if (x->st == OK && dict->n < n) dict->v[dict->n++] = (jinja_entry){k, v};
    }
    return d;
}

/* jansson's own depth limit is 2048 levels of recursion; deep input is refused before it starts. */
static bool too_deep(const char *text, size_t len) {
    int depth = 0;
    bool string = false;
    for (size_t i = 0; i < len; i++) {
        const char c = text[i];
        if (string) {
            if (c == '\\') i++;
            if (c == '"') string = false;
        } else if (c == '"') {
            string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > LIMIT_TEMPLATE_DEPTH) return true;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return false;
}

jinja_value jinja_from_json(jinja *x, const char *text, size_t len, const char *what) {
    if (!jinja_touch(x, len)) return jinja_undefined(NULL);
    if (too_deep(text, len)) return jinja_fail(x, E_INVAL, "%s: nested too deep", what);
    json_error_t e;
    json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (!j && (e.text[0] == '\0' || json_error_code(&e) == json_error_out_of_memory)) {
        return jinja_fail(x, E_NOMEM, "%s: out of memory", what);
    }
    /* Jansson's own text quotes what it stumbled over; a place tells as much and quotes nothing. */
    if (!j)
        return jinja_fail(x, E_INVAL, "%s: not valid JSON (line %d, column %d)", what, e.line,
                          e.column);
    const jinja_value v = convert(x, j, 0);
    json_decref(j);
    return v;
}
