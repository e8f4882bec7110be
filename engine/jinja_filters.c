/* Filters. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/jinja.h"
#include "engine/unicode.h"

static jinja_value fail_kind(jinja *x, const char *filter, jinja_value v) {
    if (v.kind == JINJA_UNDEFINED && v.u.what) return jinja_fail(x, E_INVAL, "%s", v.u.what);
    return jinja_fail(x, E_INVAL, "%s: '%s' is of no use here", filter, jinja_kind_name(v));
}

/* v.a.b.0, as attribute= and selectattr name it. What is missing on the way is `otherwise` if
 * given. */
static jinja_value get_path_or(jinja *x, jinja_value v, jinja_value path, jinja_value otherwise) {
    if (path.kind == JINJA_INT) return jinja_get_item(x, v, path);
    if (path.kind != JINJA_STRING) return fail_kind(x, "attribute", path);
    const jinja_str *s = path.u.s;
    for (size_t from = 0; from <= s->len && x->st == OK;) {
        size_t end = from, digits = 0;
        for (; end < s->len && s->s[end] != '.'; end++)
            digits += s->s[end] >= '0' && s->s[end] <= '9';
        if (digits > 0 && digits == end - from && digits < 10) {
            int64_t i = 0;
            for (size_t k = from; k < end; k++) i = i * 10 + (s->s[k] - '0');
            v = jinja_get_item(x, v, jinja_int(i));
        } else {
            v = jinja_get_item(x, v, jinja_substring(x, s, from, end));
        }
        if (v.kind == JINJA_UNDEFINED && jinja_given(otherwise)) v = otherwise;
        from = end + 1;
    }
    return v;
}

static jinja_value get_path(jinja *x, jinja_value v, jinja_value path) {
    return get_path_or(x, v, path, jinja_undefined(NULL));
}

static jinja_value f_abs(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    if (v.kind == JINJA_FLOAT) return jinja_float(fabs(v.u.f));
    if (v.kind == JINJA_BOOL) return jinja_int(v.u.b);
    if (v.kind != JINJA_INT || v.u.i == INT64_MIN) return fail_kind(x, "abs", v);
    return jinja_int(v.u.i < 0 ? -v.u.i : v.u.i);
}

static jinja_value f_attr(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_value name = jinja_arg(a, 0, "name");
    if (name.kind != JINJA_STRING) return fail_kind(x, "attr", name);
    return jinja_get_item(x, v, name);
}

static jinja_value change_case(jinja *x, jinja_value v, char how) {
    const jinja_value s = jinja_to_string(x, v);
    return x->st == OK ? jinja_change_case(x, s.u.s, how) : s;
}
static jinja_value f_capitalize(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    return change_case(x, v, 'c');
}
static jinja_value f_lower(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    return change_case(x, v, 'l');
}
static jinja_value f_title(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    return change_case(x, v, 'T');
}
static jinja_value f_upper(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    return change_case(x, v, 'u');
}

static jinja_value f_default(jinja *x, jinja_value v, const jinja_args *a) {
    const bool falsy = jinja_truthy(x, jinja_arg(a, 1, "boolean"));
    if (v.kind != JINJA_UNDEFINED && !(falsy && !jinja_truthy(x, v))) return v;
    const jinja_value otherwise = jinja_arg(a, 0, "default_value");
    return jinja_given(otherwise) ? otherwise : jinja_text(x, "");
}

/* Merge sort, stable: by compare of key(v). A failing comparison stops it. */
static void sort_values(jinja *x, jinja_value *v, const jinja_value *key, size_t *order,
                        size_t *spare, size_t n, bool reverse) {
    if (n < 2 || x->st != OK) return;
    const size_t half = n / 2;
    sort_values(x, v, key, order, spare, half, reverse);
    sort_values(x, v, key, order + half, spare, n - half, reverse);
    memcpy(spare, order, half * sizeof *order);
    size_t i = 0, k = half, out = 0;
    while (i < half && k < n && x->st == OK) {
        const jinja_value right = key[order[k]], left = key[spare[i]];
        const bool none = left.kind == JINJA_UNDEFINED && right.kind == JINJA_UNDEFINED;
        const int c = none ? 0 : jinja_compare(x, right, left); /* an attribute that neither has */
        order[out++] = (reverse ? c > 0 : c < 0) ? order[k++] : spare[i++];
    }
    while (i < half) order[out++] = spare[i++];
}

/* Sorts items by keys that correspond; a new list. */
static jinja_value sort_by(jinja *x, const jinja_list *items, const jinja_list *keys,
                           bool reverse) {
    const size_t n = items->n;
    size_t *order = jinja_alloc(x, 2 * n * sizeof *order);
    const jinja_value out = jinja_list_new(x, n);
    if (!order || x->st != OK) return jinja_undefined(NULL);
    for (size_t i = 0; i < n; i++) order[i] = i;
    sort_values(x, items->v, keys->v, order, order + n, n, reverse);
    for (size_t i = 0; i < n && x->st == OK; i++) {
        jinja_list_push(x, out.u.list, items->v[order[i]]);
    }
    return out;
}

/* The sort keys: attribute, and letter case set aside unless asked for. */
static jinja_value sort_keys(jinja *x, const jinja_list *l, jinja_value path, bool keep_case) {
    const jinja_value keys = jinja_list_new(x, l->n);
    for (size_t i = 0; i < l->n && x->st == OK; i++) {
        jinja_value k =
            jinja_given(path) && path.kind != JINJA_NONE ? get_path(x, l->v[i], path) : l->v[i];
        if (x->st == OK && k.kind == JINJA_STRING && !keep_case) {
            k = jinja_change_case(x, k.u.s, 'l');
        }
        jinja_list_push(x, keys.u.list, k);
    }
    return keys;
}

static jinja_value f_sort(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_list *l = jinja_items(x, v);
    if (!l) return jinja_undefined(NULL);
    const bool reverse = jinja_truthy(x, jinja_arg(a, 0, "reverse"));
    const bool keep_case = jinja_truthy(x, jinja_arg(a, 1, "case_sensitive"));
    const jinja_value keys = sort_keys(x, l, jinja_arg(a, 2, "attribute"), keep_case);
    return x->st == OK ? sort_by(x, l, keys.u.list, reverse) : keys;
}

static jinja_value f_items(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    if (v.kind == JINJA_UNDEFINED) return jinja_list_new(x, 0);
    if (v.kind != JINJA_DICT)
        return jinja_fail(x, E_INVAL, "Can only get item pairs from a mapping.");
    const jinja_method m = {v, "items"};
    return jinja_method_call(x, &m, &(jinja_args){0});
}

static jinja_value f_dictsort(jinja *x, jinja_value v, const jinja_args *a) {
    if (v.kind != JINJA_DICT) return fail_kind(x, "dictsort", v);
    const bool keep_case = jinja_truthy(x, jinja_arg(a, 0, "case_sensitive"));
    const jinja_value by = jinja_arg(a, 1, "by");
    const jinja_value word = jinja_text(x, "value");
    const bool by_value = jinja_given(by) && jinja_equal(x, by, word);
    const bool reverse = jinja_truthy(x, jinja_arg(a, 2, "reverse"));
    const jinja_value items = f_items(x, v, a);
    if (x->st != OK) return items;
    const jinja_value keys = sort_keys(x, items.u.list, jinja_int(by_value), keep_case);
    return x->st == OK ? sort_by(x, items.u.list, keys.u.list, reverse) : keys;
}

static jinja_value f_escape(jinja *x, jinja_value v, const jinja_args *a) {
    static const struct {
        char c;
        const char *text;
    } map[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'\'', "&#39;"}, {'"', "&#34;"}};
    (void)a;
    const jinja_value t = jinja_to_string(x, v);
    if (x->st != OK) return t;
    const jinja_str *s = t.u.s;
    jinja_buffer b = {0};
    size_t from = 0;
    for (size_t i = 0; i < s->len && x->st == OK; i++) {
        for (size_t k = 0; k < sizeof map / sizeof map[0]; k++) {
            if (s->s[i] != map[k].c) continue;
            jinja_append_sub(x, &b, s, from, i);
            jinja_append(x, &b, map[k].text, strlen(map[k].text),
                         s->origin == ORIGIN_MIXED ? s->mask[i] : s->origin);
            from = i + 1;
        }
    }
    jinja_append_sub(x, &b, s, from, s->len);
    return jinja_buffer_value(x, &b);
}

static jinja_value f_first(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    const jinja_list *l = jinja_items(x, v);
    return l && l->n > 0 ? l->v[0] : jinja_undefined("No first item, sequence was empty.");
}

static jinja_value f_last(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    const jinja_list *l = jinja_items(x, v);
    return l && l->n > 0 ? l->v[l->n - 1] : jinja_undefined("No last item, sequence was empty.");
}

static bool parse_number(const jinja_str *s, bool *is_float, double *f, int64_t *i) {
    char text[64];
    if (s->len == 0 || s->len >= sizeof text || memchr(s->s, 'x', s->len)) return false;
    memcpy(text, s->s, s->len);
    text[s->len] = '\0';
    char *end;
    *is_float = strpbrk(text, ".eEnN") != NULL;
    *f = strtod(text, &end);
    while (*end == ' ' || *end == '\n') end++;
    if (*end || end == text) return false;
    *i = *f > -9e18 && *f < 9e18 ? (*is_float ? (int64_t)*f : strtoll(text, NULL, 10)) : 0;
    return true;
}

/* The whole of s as an integer in a base of 2 to 36. */
static bool parse_base(const jinja_str *s, int64_t base, int64_t *out) {
    char text[64], *end;
    if (s->len == 0 || s->len >= sizeof text || base < 2 || base > 36) return false;
    memcpy(text, s->s, s->len);
    text[s->len] = '\0';
    *out = strtoll(text, &end, (int)base);
    return *end == '\0';
}

static jinja_value f_int(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_value base = jinja_arg(a, 1, "base");
    bool is_float;
    double f;
    int64_t i;
    if (v.kind == JINJA_UNDEFINED) return fail_kind(x, "int", v);
    if (v.kind == JINJA_STRING && base.kind == JINJA_INT && base.u.i != 10 &&
        parse_base(v.u.s, base.u.i, &i))
        return jinja_int(i);
    if (v.kind == JINJA_INT) return v;
    if (v.kind == JINJA_BOOL) return jinja_int(v.u.b);
    if (v.kind == JINJA_FLOAT && fabs(v.u.f) < 9e18) return jinja_int((int64_t)v.u.f);
    if (v.kind == JINJA_STRING && parse_number(v.u.s, &is_float, &f, &i)) return jinja_int(i);
    const jinja_value otherwise = jinja_arg(a, 0, "default");
    return jinja_given(otherwise) ? otherwise : jinja_int(0);
}

static jinja_value f_float(jinja *x, jinja_value v, const jinja_args *a) {
    bool is_float;
    double f;
    int64_t i;
    if (v.kind == JINJA_UNDEFINED) return fail_kind(x, "float", v);
    if (jinja_is_number(v)) return jinja_float(jinja_number(v));
    if (v.kind == JINJA_STRING && parse_number(v.u.s, &is_float, &f, &i)) return jinja_float(f);
    const jinja_value otherwise = jinja_arg(a, 0, "default");
    return jinja_given(otherwise) ? otherwise : jinja_float(0.0);
}

static jinja_value f_indent(jinja *x, jinja_value v, const jinja_args *a) {
    if (v.kind != JINJA_STRING) return fail_kind(x, "indent", v);
    const jinja_value t = jinja_to_string(x, v), width = jinja_arg(a, 0, "width");
    const bool first = jinja_truthy(x, jinja_arg(a, 1, "first"));
    const bool blank = jinja_truthy(x, jinja_arg(a, 2, "blank"));
    if (x->st != OK) return t;
    const jinja_str *s = t.u.s;
    jinja_buffer pad = {0}, b = {0};
    if (width.kind == JINJA_STRING) jinja_append_str(x, &pad, width.u.s);
    const int64_t n = width.kind == JINJA_INT ? width.u.i : 4;
    for (int64_t i = 0; width.kind != JINJA_STRING && i < n && x->st == OK; i++) {
        jinja_append(x, &pad, " ", 1, ORIGIN_MARKUP);
    }
    const jinja_value space = jinja_buffer_value(x, &pad);
    for (size_t i = 0; i <= s->len && x->st == OK;) {
        size_t end = i;
        while (end < s->len && s->s[end] != '\n' && s->s[end] != '\r') end++;
        if (i == 0 ? first : blank || end > i) jinja_append_str(x, &b, space.u.s);
        jinja_append_sub(x, &b, s, i, end);
        if (end == s->len) break;
        jinja_append(x, &b, "\n", 1, s->origin == ORIGIN_MIXED ? s->mask[end] : s->origin);
        i = end + (s->s[end] == '\r' && end + 1 < s->len && s->s[end + 1] == '\n' ? 2 : 1);
    }
    return jinja_buffer_value(x, &b);
}

static jinja_value f_join(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_list *l = jinja_items(x, v);
    const jinja_value sep = jinja_to_string(x, jinja_arg(a, 0, "d"));
    const jinja_value path = jinja_arg(a, 1, "attribute");
    jinja_buffer b = {0};
    for (size_t i = 0; l && i < l->n && x->st == OK; i++) {
        if (i > 0) jinja_append_str(x, &b, sep.u.s);
        const jinja_value item = jinja_given(path) ? get_path(x, l->v[i], path) : l->v[i];
        if (x->st == OK) jinja_append_value(x, &b, item);
    }
    return jinja_buffer_value(x, &b);
}

static jinja_value f_length(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    switch (v.kind) {
    case JINJA_STRING:
        return jinja_int((int64_t)jinja_length(x, v.u.s));
    case JINJA_LIST:
        return jinja_int((int64_t)v.u.list->n);
    case JINJA_DICT:
        return jinja_int((int64_t)v.u.dict->n);
    case JINJA_UNDEFINED:
        return jinja_int(0);
    default:
        return jinja_fail(x, E_INVAL, "object of type '%s' has no len()", jinja_kind_name(v));
    }
}

static jinja_value f_list(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    const jinja_list *l = jinja_items(x, v);
    if (!l) return jinja_undefined(NULL);
    const jinja_value out = jinja_list_new(x, l->n);
    for (size_t i = 0; i < l->n && x->st == OK; i++) jinja_list_push(x, out.u.list, l->v[i]);
    return out;
}

/* The arguments after the first n positional ones; keywords stay. */
static jinja_args rest_of(jinja *x, const jinja_args *a, int n) {
    jinja_args out = {0};
    jinja_value *v = jinja_alloc(x, (size_t)a->n * sizeof *v);
    const char **key = jinja_alloc(x, (size_t)a->n * sizeof *key);
    if (!v || !key) return out;
    for (int i = 0; i < a->n; i++) {
        const char *k = a->key ? a->key[i] : NULL;
        if (!k && n > 0) {
            n--;
            continue;
        }
        v[out.n] = a->v[i];
        key[out.n++] = k;
    }
    out.v = v;
    out.key = key;
    return out;
}

/* A filter or test called by its name in a string; -1 fails. */
static int find_named(jinja *x, jinja_value name, int (*find)(const char *), const char *what) {
    char text[32] = "";
    int found = -1;
    if (name.kind == JINJA_STRING && name.u.s->len < sizeof text) {
        memcpy(text, name.u.s->s, name.u.s->len);
        found = find(text);
    }
    if (found < 0) jinja_fail(x, E_INVAL, "no %s named '%s'", what, text);
    return found;
}

/* map, select and their kin take anything that counts as false for an empty list, as Jinja does. */
static const jinja_list *items_or_none(jinja *x, jinja_value v) {
    return jinja_items(x, jinja_truthy(x, v) ? v : jinja_undefined(NULL));
}

static jinja_value f_map(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_list *l = items_or_none(x, v);
    if (!l) return jinja_undefined(NULL);
    const jinja_value path = jinja_arg(a, -1, "attribute");
    const jinja_value otherwise = jinja_arg(a, -1, "default");
    const int filter =
        jinja_given(path) ? 0 : find_named(x, jinja_arg(a, 0, NULL), jinja_filter_find, "filter");
    const jinja_args rest = rest_of(x, a, 1);
    const jinja_value out = jinja_list_new(x, l->n);
    for (size_t i = 0; i < l->n && x->st == OK; i++) {
        const jinja_value item = jinja_given(path) ? get_path_or(x, l->v[i], path, otherwise)
                                                   : jinja_filter_apply(x, filter, l->v[i], &rest);
        if (x->st == OK) jinja_list_push(x, out.u.list, item);
    }
    return out;
}

/* select, reject and their attr forms. */
static jinja_value choose(jinja *x, jinja_value v, const jinja_args *a, bool attr, bool keep) {
    const jinja_list *l = items_or_none(x, v);
    if (!l) return jinja_undefined(NULL);
    const jinja_value path = attr ? jinja_arg(a, 0, NULL) : jinja_undefined(NULL);
    const jinja_value name = jinja_arg(a, attr ? 1 : 0, NULL);
    const int test = jinja_given(name) ? find_named(x, name, jinja_test_find, "test") : -1;
    const jinja_args rest = rest_of(x, a, attr ? 2 : 1);
    if (attr && !jinja_given(path)) return jinja_fail(x, E_INVAL, "an attribute name is missing");
    const jinja_value out = jinja_list_new(x, 0);
    for (size_t i = 0; i < l->n && x->st == OK; i++) {
        const jinja_value item = attr ? get_path(x, l->v[i], path) : l->v[i];
        const bool yes = test >= 0 ? jinja_test_apply(x, test, item, &rest) : jinja_truthy(x, item);
        if (x->st == OK && yes == keep) jinja_list_push(x, out.u.list, l->v[i]);
    }
    return out;
}
static jinja_value f_select(jinja *x, jinja_value v, const jinja_args *a) {
    return choose(x, v, a, false, true);
}
static jinja_value f_reject(jinja *x, jinja_value v, const jinja_args *a) {
    return choose(x, v, a, false, false);
}
static jinja_value f_selectattr(jinja *x, jinja_value v, const jinja_args *a) {
    return choose(x, v, a, true, true);
}
static jinja_value f_rejectattr(jinja *x, jinja_value v, const jinja_args *a) {
    return choose(x, v, a, true, false);
}

static jinja_value extreme(jinja *x, jinja_value v, const jinja_args *a, int sign) {
    const jinja_list *l = jinja_items(x, v);
    if (!l || l->n == 0) return jinja_undefined("No aggregated item, sequence was empty.");
    const bool keep_case = jinja_truthy(x, jinja_arg(a, 0, "case_sensitive"));
    const jinja_value keys = sort_keys(x, l, jinja_arg(a, 1, "attribute"), keep_case);
    size_t best = 0;
    for (size_t i = 1; i < l->n && x->st == OK; i++) {
        const int c = jinja_compare(x, keys.u.list->v[i], keys.u.list->v[best]);
        if (sign < 0 ? c < 0 : c > 0) best = i;
    }
    return l->v[best];
}
static jinja_value f_min(jinja *x, jinja_value v, const jinja_args *a) {
    return extreme(x, v, a, -1);
}
static jinja_value f_max(jinja *x, jinja_value v, const jinja_args *a) {
    return extreme(x, v, a, 1);
}

static jinja_value f_replace(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_value s = jinja_to_string(x, v);
    const jinja_value from = jinja_to_string(x, jinja_arg(a, 0, "old"));
    const jinja_value to = jinja_to_string(x, jinja_arg(a, 1, "new"));
    const jinja_value count = jinja_arg(a, 2, "count");
    if (x->st != OK) return s;
    return jinja_replace(x, s.u.s, from.u.s, to.u.s, count.kind == JINJA_INT ? count.u.i : -1);
}

static jinja_value f_reverse(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    const jinja_list *l = jinja_items(x, v);
    const bool text = v.kind == JINJA_STRING;
    const jinja_value out = jinja_list_new(x, 0);
    jinja_buffer b = {0};
    for (size_t i = l ? l->n : 0; i > 0 && x->st == OK; i--) {
        if (text) {
            jinja_append_str(x, &b, l->v[i - 1].u.s);
        } else {
            jinja_list_push(x, out.u.list, l->v[i - 1]);
        }
    }
    return text ? jinja_buffer_value(x, &b) : out;
}

static jinja_value f_round(jinja *x, jinja_value v, const jinja_args *a) {
    if (!jinja_is_number(v)) return fail_kind(x, "round", v);
    const jinja_value precision = jinja_arg(a, 0, "precision"), method = jinja_arg(a, 1, "method");
    const double scale = pow(10.0, precision.kind == JINJA_INT ? (double)precision.u.i : 0.0);
    const jinja_value up = jinja_text(x, "ceil"), down = jinja_text(x, "floor");
    const double f = jinja_number(v) * scale;
    if (jinja_equal(x, method, up)) return jinja_float(ceil(f) / scale);
    if (jinja_equal(x, method, down)) return jinja_float(floor(f) / scale);
    if (v.kind == JINJA_FLOAT) return jinja_float(nearbyint(f) / scale);
    const int64_t i = v.kind == JINJA_BOOL ? v.u.b : v.u.i; /* stays an integer, as Python's */
    if (scale >= 1) return jinja_int(i);
    return scale > 0 ? jinja_int_of(x, nearbyint(nearbyint(f) / scale)) : jinja_int(0);
}

static jinja_value f_safe(jinja *x, jinja_value v, const jinja_args *a) {
    (void)x;
    (void)a;
    return v;
}

static jinja_value f_string(jinja *x, jinja_value v, const jinja_args *a) {
    (void)a;
    return jinja_to_string(x, v);
}

static jinja_value f_sum(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_list *l = jinja_items(x, v);
    const jinja_value path = jinja_arg(a, 0, "attribute"), start = jinja_arg(a, 1, "start");
    jinja_value sum = jinja_given(start) ? start : jinja_int(0);
    for (size_t i = 0; l && i < l->n && x->st == OK; i++) {
        sum = jinja_add(x, sum, jinja_given(path) ? get_path(x, l->v[i], path) : l->v[i]);
    }
    return sum;
}

static jinja_value f_tojson(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_value indent = jinja_arg(a, 1, "indent"), sep = jinja_arg(a, 2, "separators");
    const jinja_str *item = NULL, *key = NULL;
    if (sep.kind == JINJA_LIST && sep.u.list->n == 2 && sep.u.list->v[0].kind == JINJA_STRING &&
        sep.u.list->v[1].kind == JINJA_STRING) {
        item = sep.u.list->v[0].u.s;
        key = sep.u.list->v[1].u.s;
    }
    if (indent.kind == JINJA_INT && (indent.u.i < 0 || indent.u.i > 32)) {
        return jinja_fail(x, E_INVAL, "tojson: an indent of %lld", (long long)indent.u.i);
    }
    return jinja_to_json(x, v, indent.kind == JINJA_INT ? (int)indent.u.i : -1,
                         jinja_truthy(x, jinja_arg(a, 0, "ensure_ascii")),
                         jinja_truthy(x, jinja_arg(a, 3, "sort_keys")), item, key);
}

static jinja_value f_trim(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_value s = jinja_to_string(x, v), chars = jinja_arg(a, 0, "chars");
    if (x->st != OK) return s;
    return jinja_strip(x, s.u.s, 3, chars.kind == JINJA_STRING ? chars.u.s : NULL);
}

static jinja_value f_unique(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_list *l = jinja_items(x, v);
    if (!l) return jinja_undefined(NULL);
    const bool keep_case = jinja_truthy(x, jinja_arg(a, 0, "case_sensitive"));
    const jinja_value keys = sort_keys(x, l, jinja_arg(a, 1, "attribute"), keep_case);
    const jinja_value out = jinja_list_new(x, 0);
    for (size_t i = 0; i < l->n && x->st == OK; i++) {
        bool seen = false;
        for (size_t k = 0; k < i && !seen && jinja_touch(x, 8); k++) {
            seen = jinja_equal(x, keys.u.list->v[k], keys.u.list->v[i]);
        }
        if (!seen) jinja_list_push(x, out.u.list, l->v[i]);
    }
    return out;
}

/* Runs of letters, digits and underscores. */
static jinja_value f_wordcount(jinja *x, jinja_value v, const jinja_args *a) {
    const jinja_value s = jinja_to_string(x, v);
    int64_t n = 0;
    bool inside = false;
    size_t width;
    (void)a;
    if (x->st != OK || !jinja_touch(x, s.u.s->len)) return s;
    for (size_t i = 0; i < s.u.s->len; i += width) {
        const unsigned classes = unicode_classes_at(s.u.s->s, s.u.s->len, i, &width);
        const bool word = classes & (UNI_LETTER | UNI_NUMBER) || s.u.s->s[i] == '_';
        n += word && !inside;
        inside = word;
    }
    return jinja_int(n);
}

static const struct {
    const char *name;
    jinja_value (*apply)(jinja *x, jinja_value v, const jinja_args *a);
} filters[] = {
    {"abs", f_abs},           {"attr", f_attr},       {"capitalize", f_capitalize},
    {"count", f_length},      {"d", f_default},       {"default", f_default},
    {"dictsort", f_dictsort}, {"e", f_escape},        {"escape", f_escape},
    {"first", f_first},       {"float", f_float},     {"indent", f_indent},
    {"int", f_int},           {"items", f_items},     {"join", f_join},
    {"last", f_last},         {"length", f_length},   {"list", f_list},
    {"lower", f_lower},       {"map", f_map},         {"max", f_max},
    {"min", f_min},           {"reject", f_reject},   {"rejectattr", f_rejectattr},
    {"replace", f_replace},   {"reverse", f_reverse}, {"round", f_round},
    {"safe", f_safe},         {"select", f_select},   {"selectattr", f_selectattr},
    {"sort", f_sort},         {"string", f_string},   {"sum", f_sum},
    {"title", f_title},       {"tojson", f_tojson},   {"trim", f_trim},
    {"unique", f_unique},     {"upper", f_upper},     {"wordcount", f_wordcount},
};

int jinja_filter_find(const char *name) {
    for (int i = 0; i < (int)(sizeof filters / sizeof filters[0]); i++) {
        if (strcmp(filters[i].name, name) == 0) return i;
    }
    return -1;
}

jinja_value jinja_filter_apply(jinja *x, int filter, jinja_value self, const jinja_args *a) {
    if (!jinja_touch(x, 0)) return jinja_undefined(NULL);
    x->fuel--;
    return filters[filter].apply(x, self, a);
}
