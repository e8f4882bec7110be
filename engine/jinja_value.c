#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/limits.h"
#include "base/utf8.h"
#include "engine/jinja.h"

enum { BYTES_PER_FUEL = 256 };

jinja_value jinja_fail(jinja *x, status st, const char *fmt, ...) {
    if (x->st == OK) {
        char text[ERROR_TEXT_MAX];
        va_list args;
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        const size_t n = utf8_complete_prefix(text, strlen(text));
        x->st = error_set(x->err, st, "%.*s", (int)n, text);
    }
    return jinja_undefined(NULL);
}

void *jinja_alloc(jinja *x, size_t bytes) {
    if (x->st != OK) return NULL;
    void *p = arena_alloc(&x->mem, bytes ? bytes : 1);
    if (p) return p;
    if (bytes >= x->mem.budget_bytes || x->mem.used_bytes + bytes + 16 > x->mem.budget_bytes) {
        jinja_fail(x, E_TOO_LARGE, "the chat template needs more than %zu bytes of memory",
                   x->mem.budget_bytes);
    } else {
        jinja_fail(x, E_NOMEM, "chat template: out of memory");
    }
    return NULL;
}

bool jinja_touch(jinja *x, size_t bytes) {
    if (x->st != OK) return false;
    x->work += bytes;
    if (x->work >= BYTES_PER_FUEL) {
        const size_t cost = x->work / BYTES_PER_FUEL;
        x->work %= BYTES_PER_FUEL;
        x->fuel -= cost > LIMIT_TEMPLATE_FUEL ? LIMIT_TEMPLATE_FUEL : (long)cost;
    }
    if (x->fuel >= 0) return true;
    jinja_fail(x, E_TOO_LARGE, "the chat template runs too long (line %d)", x->line);
    return false;
}

jinja_value jinja_string(jinja *x, const char *s, size_t len, int origin) {
    jinja_str *v = jinja_alloc(x, sizeof *v);
    if (!v) return jinja_undefined(NULL);
    *v = (jinja_str){.s = s, .len = len, .origin = origin};
    return (jinja_value){.kind = JINJA_STRING, .u.s = v};
}

jinja_value jinja_text(jinja *x, const char *literal) {
    return jinja_string(x, literal, strlen(literal), ORIGIN_MARKUP);
}

jinja_value jinja_substring(jinja *x, const jinja_str *s, size_t from, size_t to) {
    const jinja_value v = jinja_string(x, s->s + from, to - from, s->origin);
    if (v.kind == JINJA_STRING && s->origin == ORIGIN_MIXED) {
        ((jinja_str *)v.u.s)->mask = s->mask + from; /* just made, not shared yet */
    }
    return v;
}

jinja_value jinja_list_new(jinja *x, size_t capacity) {
    jinja_list *l = jinja_alloc(x, sizeof *l);
    if (!l) return jinja_undefined(NULL);
    *l = (jinja_list){.capacity = capacity};
    if (capacity > 0) {
        if (capacity > SIZE_MAX / sizeof *l->v ||
            !(l->v = jinja_alloc(x, capacity * sizeof *l->v))) {
            return jinja_fail(x, E_TOO_LARGE, "chat template: a list of %zu items", capacity);
        }
    }
    return (jinja_value){.kind = JINJA_LIST, .u.list = l};
}

void jinja_list_push(jinja *x, jinja_list *l, jinja_value v) {
    if (!jinja_touch(x, sizeof v)) return;
    if (l->n == l->capacity) {
        const size_t capacity = l->capacity ? 2 * l->capacity : 8;
        jinja_value *p = jinja_alloc(x, capacity * sizeof *p);
        if (!p) return;
        if (l->n > 0) memcpy(p, l->v, l->n * sizeof *p);
        l->v = p;
        l->capacity = capacity;
    }
    l->v[l->n++] = v;
}

jinja_value jinja_dict_new(jinja *x) {
    jinja_dict *d = jinja_alloc(x, sizeof *d);
    if (!d) return jinja_undefined(NULL);
    *d = (jinja_dict){0};
    return (jinja_value){.kind = JINJA_DICT, .u.dict = d};
}

jinja_value *jinja_dict_find(jinja *x, const jinja_dict *d, jinja_value key) {
    if (!jinja_touch(x, d->n * 8)) return NULL;
    for (size_t i = 0; i < d->n; i++) {
        if (jinja_equal(x, d->v[i].key, key)) return &d->v[i].value;
    }
    return NULL;
}

jinja_value *jinja_dict_find_name(jinja *x, const jinja_dict *d, const char *name) {
    const jinja_str s = {.s = name, .len = strlen(name)};
    return jinja_dict_find(x, d, (jinja_value){.kind = JINJA_STRING, .u.s = &s});
}

void jinja_dict_set(jinja *x, jinja_dict *d, jinja_value key, jinja_value v) {
    if (x->st != OK) return;
    jinja_value *old = jinja_dict_find(x, d, key);
    if (old) {
        *old = v;
        return;
    }
    if (key.kind == JINJA_LIST || key.kind == JINJA_DICT) {
        jinja_fail(x, E_INVAL, "unhashable type: '%s'", jinja_kind_name(key));
        return;
    }
    if (d->n == d->capacity) {
        const size_t capacity = d->capacity ? 2 * d->capacity : 4;
        jinja_entry *p = jinja_alloc(x, capacity * sizeof *p);
        if (!p) return;
        if (d->n > 0) memcpy(p, d->v, d->n * sizeof *p);
        d->v = p;
        d->capacity = capacity;
    }
    d->v[d->n++] = (jinja_entry){key, v};
}

bool jinja_is_number(jinja_value v) {
    return v.kind == JINJA_INT || v.kind == JINJA_FLOAT || v.kind == JINJA_BOOL;
}

double jinja_number(jinja_value v) {
    if (v.kind == JINJA_FLOAT) return v.u.f;
    return v.kind == JINJA_BOOL ? (double)v.u.b : (double)v.u.i;
}

bool jinja_truthy(jinja *x, jinja_value v) {
    (void)x;
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v.u.b;
    case JINJA_INT:
        return v.u.i != 0;
    case JINJA_FLOAT:
        return v.u.f < 0.0 || v.u.f > 0.0 || isnan(v.u.f);
    case JINJA_STRING:
        return v.u.s->len > 0;
    case JINJA_LIST:
        return v.u.list->n > 0;
    case JINJA_DICT:
        return v.u.dict->n > 0;
    default:
        return true;
    }
}

static bool lists_equal(jinja *x, const jinja_list *a, const jinja_list *b) {
    if (a->n != b->n || a->tuple != b->tuple) return false;
    for (size_t i = 0; i < a->n; i++) {
        if (!jinja_equal(x, a->v[i], b->v[i])) return false;
    }
    return true;
}

static bool dicts_equal(jinja *x, const jinja_dict *a, const jinja_dict *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        const jinja_value *other = jinja_dict_find(x, b, a->v[i].key);
        if (!other || !jinja_equal(x, a->v[i].value, *other)) return false;
    }
    return true;
}

static bool nested_equal(jinja *x, jinja_value a, jinja_value b) {
    if (++x->depth > 8 * LIMIT_TEMPLATE_DEPTH) {
        jinja_fail(x, E_TOO_LARGE, "chat template: values are nested too deep");
        return false;
    }
    const bool equal = a.kind == JINJA_LIST ? lists_equal(x, a.u.list, b.u.list)
                                            : dicts_equal(x, a.u.dict, b.u.dict);
    x->depth--;
    return equal;
}

bool jinja_equal(jinja *x, jinja_value a, jinja_value b) {
    if (!jinja_touch(x, 32)) return false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT) {
            return (a.kind == JINJA_BOOL ? a.u.b : a.u.i) == (b.kind == JINJA_BOOL ? b.u.b : b.u.i);
        }
        const double p = jinja_number(a), q = jinja_number(b);
        return p <= q && p >= q;
    }
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return true;
    case JINJA_STRING:
        if (a.u.s->len != b.u.s->len || !jinja_touch(x, a.u.s->len)) return false;
        return a.u.s->len == 0 || memcmp(a.u.s->s, b.u.s->s, a.u.s->len) == 0;
    case JINJA_LIST:
        return a.u.list == b.u.list || nested_equal(x, a, b);
    case JINJA_DICT:
        return a.u.dict == b.u.dict || nested_equal(x, a, b);
    case JINJA_FUNCTION:
        return a.u.function == b.u.function;
    default:
        return a.u.dict == b.u.dict; /* the same object */
    }
}

static int compare_lists(jinja *x, const jinja_list *a, const jinja_list *b) {
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        if (!jinja_equal(x, a->v[i], b->v[i])) return jinja_compare(x, a->v[i], b->v[i]);
    }
    return (a->n > b->n) - (a->n < b->n);
}

int jinja_compare(jinja *x, jinja_value a, jinja_value b) {
    if (!jinja_touch(x, 16)) return 0;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a.kind == JINJA_INT && b.kind == JINJA_INT) return (a.u.i > b.u.i) - (a.u.i < b.u.i);
        const double p = jinja_number(a), q = jinja_number(b);
        return (p > q) - (p < q);
    }
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        const size_t n = a.u.s->len < b.u.s->len ? a.u.s->len : b.u.s->len;
        if (!jinja_touch(x, n)) return 0;
        const int c = n ? memcmp(a.u.s->s, b.u.s->s, n) : 0;
        return c ? c : (a.u.s->len > b.u.s->len) - (a.u.s->len < b.u.s->len);
    }
    if (a.kind == JINJA_LIST && b.kind == JINJA_LIST) {
        if (++x->depth > 8 * LIMIT_TEMPLATE_DEPTH) {
            jinja_fail(x, E_TOO_LARGE, "chat template: values are nested too deep");
            return 0;
        }
        const int c = compare_lists(x, a.u.list, b.u.list);
        x->depth--;
        return c;
    }
    if (a.kind == JINJA_UNDEFINED && a.u.what) {
        jinja_fail(x, E_INVAL, "%s", a.u.what);
    } else {
        jinja_fail(x, E_INVAL, "'<' not supported between instances of '%s' and '%s'",
                   jinja_kind_name(a), jinja_kind_name(b));
    }
    return 0;
}

bool jinja_contains(jinja *x, jinja_value container, jinja_value item) {
    if (x->st != OK) return false;
    switch (container.kind) {
    case JINJA_STRING:
        if (item.kind != JINJA_STRING) {
            jinja_fail(x, E_INVAL, "'in <string>' requires string as left operand, not %s",
                       jinja_kind_name(item));
            return false;
        }
        return jinja_find(x, container.u.s, item.u.s->s, item.u.s->len, 0) != SIZE_MAX;
    case JINJA_DICT:
        return jinja_dict_find(x, container.u.dict, item) != NULL;
    default: {
        const jinja_list *l = jinja_items(x, container);
        for (size_t i = 0; l && i < l->n && jinja_touch(x, 8); i++) {
            if (jinja_equal(x, l->v[i], item)) return true;
        }
        return false;
    }
    }
}

static const jinja_list *characters(jinja *x, const jinja_str *s) {
    const jinja_value v = jinja_list_new(x, 0);
    for (size_t i = 0; i < s->len && x->st == OK;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
        jinja_list_push(x, v.u.list, jinja_substring(x, s, i, i + n));
        i += n;
    }
    return x->st == OK ? v.u.list : NULL;
}

const jinja_list *jinja_items(jinja *x, jinja_value v) {
    if (x->st != OK) return NULL;
    switch (v.kind) {
    case JINJA_LIST:
        return v.u.list;
    case JINJA_STRING:
        return characters(x, v.u.s);
    case JINJA_DICT: {
        const jinja_value keys = jinja_list_new(x, v.u.dict->n);
        for (size_t i = 0; x->st == OK && i < v.u.dict->n; i++) {
            jinja_list_push(x, keys.u.list, v.u.dict->v[i].key);
        }
        return x->st == OK ? keys.u.list : NULL;
    }
    case JINJA_UNDEFINED: {
        const jinja_value none = jinja_list_new(x, 0);
        return x->st == OK ? none.u.list : NULL;
    }
    default:
        jinja_fail(x, E_INVAL, "'%s' object is not iterable", jinja_kind_name(v));
        return NULL;
    }
}

const char *jinja_kind_name(jinja_value v) {
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return "Undefined";
    case JINJA_NONE:
        return "NoneType";
    case JINJA_BOOL:
        return "bool";
    case JINJA_INT:
        return "int";
    case JINJA_FLOAT:
        return "float";
    case JINJA_STRING:
        return "str";
    case JINJA_LIST:
        return v.u.list->tuple ? "tuple" : "list";
    case JINJA_DICT:
        return "dict";
    case JINJA_NAMESPACE:
        return "Namespace";
    case JINJA_LOOP:
        return "LoopContext";
    case JINJA_MACRO:
        return "Macro";
    default:
        return "function";
    }
}
