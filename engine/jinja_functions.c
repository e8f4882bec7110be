/* Global functions and tests. */
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "base/utf8.h"
#include "engine/jinja.h"

enum { F_RANGE, F_DICT, F_NAMESPACE, F_RAISE_EXCEPTION, F_STRFTIME_NOW };
static const char *const functions[] = {"range", "dict", "namespace", "raise_exception",
                                        "strftime_now"};
enum { RANGE_MAX = 100000 }; /* as Jinja's own sandbox */

jinja_value jinja_function_find(const char *name) {
    for (int i = 0; i < (int)(sizeof functions / sizeof functions[0]); i++) {
        if (strcmp(functions[i], name) == 0) {
            return (jinja_value){.kind = JINJA_FUNCTION, .u.function = i};
        }
    }
    return jinja_undefined(NULL);
}

static jinja_value call_range(jinja *x, const jinja_args *a) {
    int64_t v[3] = {0, 0, 1};
    if (a->n < 1 || a->n > 3) return jinja_fail(x, E_INVAL, "range expects 1 to 3 arguments");
    for (int i = 0; i < a->n; i++) {
        if (a->v[i].kind != JINJA_INT || (a->key && a->key[i])) {
            return jinja_fail(x, E_INVAL, "range expects integers");
        }
        v[a->n == 1 ? 1 : i] = a->v[i].u.i;
    }
    if (v[2] == 0) return jinja_fail(x, E_INVAL, "range() arg 3 must not be zero");
    const jinja_value out = jinja_list_new(x, 0);
    for (int64_t i = v[0]; x->st == OK && (v[2] > 0 ? i < v[1] : i > v[1]);) {
        if (out.u.list->n == RANGE_MAX) {
            return jinja_fail(x, E_TOO_LARGE, "range() of more than %d items", RANGE_MAX);
        }
        jinja_list_push(x, out.u.list, jinja_int(i));
        if (__builtin_add_overflow(i, v[2], &i)) break;
    }
    return out;
}

/* dict(a=1) and namespace(a=1); a mapping may come first. */
static jinja_value call_dict(jinja *x, const jinja_args *a) {
    const jinja_value d = jinja_dict_new(x);
    for (int i = 0; i < a->n && x->st == OK; i++) {
        const char *key = a->key ? a->key[i] : NULL;
        const jinja_value v = a->v[i];
        if (key) {
            jinja_dict_set(x, d.u.dict, jinja_text(x, key), v);
            continue;
        }
        if (i > 0 || (v.kind != JINJA_DICT && v.kind != JINJA_NAMESPACE)) {
            return jinja_fail(x, E_INVAL, "a mapping is expected, not '%s'", jinja_kind_name(v));
        }
        for (size_t k = 0; k < v.u.dict->n && x->st == OK; k++) {
            jinja_dict_set(x, d.u.dict, v.u.dict->v[k].key, v.u.dict->v[k].value);
        }
    }
    return d;
}

static jinja_value call_strftime(jinja *x, const jinja_args *a) {
    const jinja_value f = jinja_arg(a, 0, "format");
    char format[128], text[256];
    if (f.kind != JINJA_STRING || f.u.s->len >= sizeof format) {
        return jinja_fail(x, E_INVAL, "strftime_now expects a short format");
    }
    memcpy(format, f.u.s->s, f.u.s->len);
    format[f.u.s->len] = '\0';
    const time_t now = time(NULL);
    struct tm tm;
    if (!localtime_r(&now, &tm)) return jinja_fail(x, E_INTERNAL, "the time is not known");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    const size_t n = strftime(text, sizeof text, format, &tm); /* bounded: no way to overrun */
#pragma GCC diagnostic pop
    jinja_buffer b = {0};
    jinja_append(x, &b, text, n, f.u.s->origin == ORIGIN_MARKUP ? ORIGIN_MARKUP : ORIGIN_LITERAL);
    return jinja_buffer_value(x, &b);
}

jinja_value jinja_function_call(jinja *x, int function, const jinja_args *a) {
    switch (function) {
    case F_RANGE:
        return call_range(x, a);
    case F_DICT:
        return call_dict(x, a);
    case F_NAMESPACE: {
        jinja_value ns = call_dict(x, a);
        if (x->st == OK) ns.kind = JINJA_NAMESPACE;
        return ns;
    }
    case F_STRFTIME_NOW:
        return call_strftime(x, a);
    default: { /* raise_exception */
        const jinja_value text = jinja_to_string(x, jinja_arg(a, 0, "message"));
        if (x->st != OK) return text;
        size_t n = text.u.s->len;
        if (n >= ERROR_TEXT_MAX) n = utf8_complete_prefix(text.u.s->s, ERROR_TEXT_MAX - 1);
        return jinja_fail(x, E_INVAL, "%.*s", (int)n, text.u.s->s);
    }
    }
}

enum {
    T_BOOLEAN,
    T_CALLABLE,
    T_DEFINED,
    T_DIVISIBLEBY,
    T_EQ,
    T_EVEN,
    T_FALSE,
    T_FLOAT,
    T_GE,
    T_GT,
    T_IN,
    T_INTEGER,
    T_ITERABLE,
    T_LE,
    T_LOWER,
    T_LT,
    T_MAPPING,
    T_NE,
    T_NONE,
    T_NUMBER,
    T_ODD,
    T_SAMEAS,
    T_SEQUENCE,
    T_STRING,
    T_TRUE,
    T_UNDEFINED,
    T_UPPER
};
static const struct {
    const char *name;
    int test;
} tests[] = {
    {"boolean", T_BOOLEAN},
    {"callable", T_CALLABLE},
    {"defined", T_DEFINED},
    {"divisibleby", T_DIVISIBLEBY},
    {"eq", T_EQ},
    {"equalto", T_EQ},
    {"even", T_EVEN},
    {"false", T_FALSE},
    {"float", T_FLOAT},
    {"ge", T_GE},
    {"gt", T_GT},
    {"greaterthan", T_GT},
    {"in", T_IN},
    {"integer", T_INTEGER},
    {"iterable", T_ITERABLE},
    {"le", T_LE},
    {"lower", T_LOWER},
    {"lt", T_LT},
    {"lessthan", T_LT},
    {"mapping", T_MAPPING},
    {"ne", T_NE},
    {"none", T_NONE},
    {"number", T_NUMBER},
    {"odd", T_ODD},
    {"sameas", T_SAMEAS},
    {"sequence", T_SEQUENCE},
    {"string", T_STRING},
    {"true", T_TRUE},
    {"undefined", T_UNDEFINED},
    {"upper", T_UPPER},
};

int jinja_test_find(const char *name) {
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (strcmp(tests[i].name, name) == 0) return tests[i].test;
    }
    return -1;
}

/* str.isupper, str.islower: all cased letters are so, and there is one. */
static bool is_case(jinja *x, jinja_value v, bool upper) {
    const jinja_value s = jinja_to_string(x, v);
    if (x->st != OK) return false;
    const jinja_value same = jinja_change_case(x, s.u.s, upper ? 'u' : 'l');
    const jinja_value other = jinja_change_case(x, s.u.s, upper ? 'l' : 'u');
    return jinja_equal(x, s, same) && !jinja_equal(x, s, other);
}

static bool is_same(jinja *x, jinja_value a, jinja_value b) {
    if (a.kind != b.kind) return false;
    if (a.kind == JINJA_LIST || a.kind == JINJA_DICT) return a.u.list == b.u.list;
    return jinja_equal(x, a, b);
}

static bool has_remainder(jinja *x, jinja_value v, int64_t by, int64_t want) {
    if (v.kind != JINJA_INT && v.kind != JINJA_BOOL) {
        jinja_fail(x, E_INVAL, "an integer is expected, not '%s'", jinja_kind_name(v));
        return false;
    }
    if (by == 0) {
        jinja_fail(x, E_INVAL, "division by zero");
        return false;
    }
    const int64_t i = v.kind == JINJA_BOOL ? v.u.b : v.u.i;
    const int64_t r = by == -1 ? 0 : i % by;
    return (r < 0 ? -r : r) == want;
}

static bool compare_test(jinja *x, int test, jinja_value v, jinja_value other) {
    switch (test) {
    case T_EQ:
        return jinja_equal(x, v, other);
    case T_NE:
        return !jinja_equal(x, v, other);
    case T_GE:
        return jinja_compare(x, v, other) >= 0;
    case T_GT:
        return jinja_compare(x, v, other) > 0;
    case T_LE:
        return jinja_compare(x, v, other) <= 0;
    case T_LT:
        return jinja_compare(x, v, other) < 0;
    case T_IN:
        return jinja_contains(x, other, v);
    case T_SAMEAS:
        return is_same(x, v, other);
    default:
        if (other.kind != JINJA_INT) {
            jinja_fail(x, E_INVAL, "divisibleby expects an integer");
            return false;
        }
        return has_remainder(x, v, other.u.i, 0);
    }
}

bool jinja_test_apply(jinja *x, int test, jinja_value v, const jinja_args *a) {
    if (!jinja_touch(x, 0)) return false;
    const jinja_kind k = v.kind;
    switch (test) {
    case T_BOOLEAN:
        return k == JINJA_BOOL;
    case T_CALLABLE:
        return k == JINJA_FUNCTION || k == JINJA_METHOD || k == JINJA_MACRO;
    case T_DEFINED:
        return k != JINJA_UNDEFINED;
    case T_UNDEFINED:
        return k == JINJA_UNDEFINED;
    case T_EVEN:
        return has_remainder(x, v, 2, 0);
    case T_ODD:
        return has_remainder(x, v, 2, 1);
    case T_FALSE:
        return k == JINJA_BOOL && !v.u.b;
    case T_TRUE:
        return k == JINJA_BOOL && v.u.b;
    case T_FLOAT:
        return k == JINJA_FLOAT;
    case T_INTEGER:
        return k == JINJA_INT;
    case T_NUMBER:
        return jinja_is_number(v);
    case T_ITERABLE:
        return k == JINJA_LIST || k == JINJA_DICT || k == JINJA_STRING || k == JINJA_UNDEFINED;
    case T_SEQUENCE:
        return k == JINJA_LIST || k == JINJA_DICT || k == JINJA_STRING || k == JINJA_UNDEFINED;
    case T_MAPPING:
        return k == JINJA_DICT;
    case T_NONE:
        return k == JINJA_NONE;
    case T_STRING:
        return k == JINJA_STRING;
    case T_LOWER:
        return is_case(x, v, false);
    case T_UPPER:
        return is_case(x, v, true);
    default:
        return compare_test(x, test, v, jinja_arg(a, 0, "other"));
    }
}
