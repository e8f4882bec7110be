/* Expressions. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "engine/jinja.h"

enum { EVAL_DEPTH_MAX = 8 * LIMIT_TEMPLATE_DEPTH };

jinja_value jinja_arg(const jinja_args *a, int i, const char *name) {
    int position = 0;
    for (int k = 0; k < a->n; k++) {
        const char *key = a->key ? a->key[k] : NULL;
        if (key ? name && strcmp(key, name) == 0 : position++ == i) return a->v[k];
    }
    return jinja_undefined(NULL);
}

static jinja_value fail_undefined(jinja *x, jinja_value v) {
    return jinja_fail(x, E_INVAL, "%s", v.u.what ? v.u.what : "a value is undefined");
}

static const char *describe(jinja *x, const char *before, const char *name, const char *after) {
    const size_t a = strlen(before), b = strlen(name), c = strlen(after);
    char *s = jinja_alloc(x, a + b + c + 1);
    if (!s) return NULL;
    memcpy(s, before, a);
    memcpy(s + a, name, b);
    memcpy(s + a + b, after, c + 1);
    return s;
}

static jinja_value lookup(jinja *x, jinja_scope *scope, const char *name) {
    size_t steps = 0;
    for (const jinja_scope *s = scope; s; s = s->parent) {
        for (const jinja_binding *b = s->first; b; b = b->next) {
            steps++;
            if (strcmp(b->name, name) == 0) {
                jinja_touch(x, 8 * steps);
                return b->value;
            }
        }
    }
    jinja_touch(x, 8 * steps);
    const jinja_value f = jinja_function_find(name);
    if (f.kind != JINJA_UNDEFINED) return f;
    return jinja_undefined(describe(x, "'", name, "' is undefined"));
}

static jinja_value missing(jinja *x, jinja_value v, const char *name) {
    char text[160];
    snprintf(text, sizeof text, "'%s object' has no attribute '%.80s'", jinja_kind_name(v), name);
    return jinja_undefined(describe(x, text, "", ""));
}

static jinja_value loop_attribute(jinja *x, jinja_loop *l, const char *name) {
    const int64_t n = (int64_t)l->items->n, i = (int64_t)l->index0;
    if (strcmp(name, "index") == 0) return jinja_int(i + 1);
    if (strcmp(name, "index0") == 0) return jinja_int(i);
    if (strcmp(name, "revindex") == 0) return jinja_int(n - i);
    if (strcmp(name, "revindex0") == 0) return jinja_int(n - i - 1);
    if (strcmp(name, "first") == 0) return jinja_bool(i == 0);
    if (strcmp(name, "last") == 0) return jinja_bool(i == n - 1);
    if (strcmp(name, "length") == 0) return jinja_int(n);
    if (strcmp(name, "depth") == 0) return jinja_int(l->depth);
    if (strcmp(name, "depth0") == 0) return jinja_int(l->depth - 1);
    if (strcmp(name, "previtem") == 0) {
        return i > 0 ? l->items->v[i - 1] : jinja_undefined("there is no previous item");
    }
    if (strcmp(name, "nextitem") == 0) {
        return i + 1 < n ? l->items->v[i + 1] : jinja_undefined("there is no next item");
    }
    return missing(x, (jinja_value){.kind = JINJA_LOOP, .u.loop = l}, name);
}

static jinja_value bind_method(jinja *x, jinja_value self, const char *name) {
    jinja_method *m = jinja_alloc(x, sizeof *m);
    if (!m) return jinja_undefined(NULL);
    *m = (jinja_method){self, name};
    return (jinja_value){.kind = JINJA_METHOD, .u.method = m};
}

jinja_value jinja_get_attr(jinja *x, jinja_value v, const char *name) {
    if (v.kind == JINJA_UNDEFINED) return fail_undefined(x, v);
    if (jinja_has_method(v, name)) return bind_method(x, v, name);
    if (v.kind == JINJA_LOOP) return loop_attribute(x, v.u.loop, name);
    if (v.kind == JINJA_MACRO && strcmp(name, "name") == 0) {
        return jinja_text(x, v.u.macro->node->name);
    }
    if (v.kind == JINJA_DICT || v.kind == JINJA_NAMESPACE) {
        const jinja_value *found = jinja_dict_find_name(x, v.u.dict, name);
        if (found) return *found;
    }
    return missing(x, v, name);
}

/* A NUL-terminated copy of a string key that a message may quote; what is long is cut. */
static const char *key_name(jinja *x, const jinja_str *s) {
    char text[84];
    size_t n = s->len < 80 ? s->len : 80;
    memcpy(text, s->s, n);
    n = utf8_complete_prefix(text, n);
    text[n] = '\0';
    return describe(x, text, "", "");
}

static jinja_value no_element(jinja *x, jinja_value v, int64_t i) {
    char text[96];
    snprintf(text, sizeof text, "%s object has no element %lld", jinja_kind_name(v), (long long)i);
    return jinja_undefined(describe(x, text, "", ""));
}

static jinja_value string_index(jinja *x, jinja_value v, int64_t i) {
    const int64_t n = (int64_t)jinja_length(x, v.u.s);
    const int64_t at = i < 0 ? i + n : i;
    if (at < 0 || at >= n) return no_element(x, v, i);
    const size_t from = jinja_offset(x, v.u.s, (size_t)at);
    uint32_t cp;
    if (x->st != OK) return jinja_undefined(NULL);
    return jinja_substring(x, v.u.s, from,
                           from + utf8_decode(v.u.s->s + from, v.u.s->len - from, &cp));
}

jinja_value jinja_get_item(jinja *x, jinja_value v, jinja_value key) {
    if (x->st != OK) return jinja_undefined(NULL);
    if (v.kind == JINJA_UNDEFINED) return fail_undefined(x, v);
    if (key.kind == JINJA_UNDEFINED && v.kind != JINJA_DICT) return key;
    if (v.kind == JINJA_DICT) {
        const jinja_value *found = jinja_dict_find(x, v.u.dict, key);
        if (found) return *found;
    }
    const bool integer = key.kind == JINJA_INT || key.kind == JINJA_BOOL;
    const int64_t i = key.kind == JINJA_BOOL ? key.u.b : key.u.i;
    if (integer && v.kind == JINJA_LIST) {
        const int64_t n = (int64_t)v.u.list->n, at = i < 0 ? i + n : i;
        return at < 0 || at >= n ? no_element(x, v, i) : v.u.list->v[at];
    }
    if (integer && v.kind == JINJA_STRING) return string_index(x, v, i);
    if (key.kind == JINJA_STRING) {
        const char *name = key_name(x, key.u.s);
        return name ? jinja_get_attr(x, v, name) : jinja_undefined(NULL);
    }
    return no_element(x, v, integer ? i : 0);
}

/* Resolves a slice against length n as Python does: *from, then steps while not past *to. */
static bool slice_bounds(jinja *x, const jinja_value part[3], int64_t n, int64_t *from, int64_t *to,
                         int64_t *step) {
    for (int i = 0; i < 3; i++) {
        if (part[i].kind != JINJA_INT && part[i].kind != JINJA_NONE) {
            jinja_fail(x, E_INVAL, "slice indices must be integers or None");
            return false;
        }
    }
    *step = part[2].kind == JINJA_INT ? part[2].u.i : 1;
    if (*step == 0) {
        jinja_fail(x, E_INVAL, "slice step cannot be zero");
        return false;
    }
    const bool back = *step < 0;
    int64_t *const bound[2] = {from, to};
    for (int i = 0; i < 2; i++) {
        int64_t v = i == 0 ? (back ? n - 1 : 0) : (back ? -1 : n);
        if (part[i].kind == JINJA_INT) {
            v = part[i].u.i < 0 ? part[i].u.i + n : part[i].u.i;
            const int64_t lo = back ? -1 : 0, hi = back ? n - 1 : n;
            v = v < lo ? lo : v > hi ? hi : v;
        }
        *bound[i] = v;
    }
    if (*step > n + 1) *step = n + 1; /* the same items, and no overflow */
    if (*step < -n - 1) *step = -n - 1;
    return true;
}

static jinja_value slice_string(jinja *x, const jinja_str *s, const jinja_value part[3]) {
    int64_t from, to, step;
    if (!slice_bounds(x, part, (int64_t)jinja_length(x, s), &from, &to, &step)) {
        return jinja_undefined(NULL);
    }
    if (step == 1) {
        if (to < from) to = from;
        const size_t a = jinja_offset(x, s, (size_t)from), b = jinja_offset(x, s, (size_t)to);
        return x->st == OK ? jinja_substring(x, s, a, b) : jinja_undefined(NULL);
    }
    const jinja_list *all =
        jinja_items(x, (jinja_value){.kind = JINJA_STRING, .u.s = s}); /* characters */
    jinja_buffer b = {0};
    for (int64_t i = from; all && (step > 0 ? i < to : i > to) && x->st == OK; i += step) {
        jinja_append_str(x, &b, all->v[i].u.s);
    }
    return jinja_buffer_value(x, &b);
}

static jinja_value eval_slice(jinja *x, jinja_scope *scope, const jinja_node *n) {
    const jinja_value v = jinja_eval(x, scope, n->kid[0]);
    jinja_value part[3];
    for (int i = 0; i < 3; i++) {
        part[i] = n->kid[i + 1] ? jinja_eval(x, scope, n->kid[i + 1]) : jinja_none();
    }
    if (x->st != OK) return jinja_undefined(NULL);
    if (v.kind == JINJA_STRING) return slice_string(x, v.u.s, part);
    if (v.kind == JINJA_UNDEFINED) return fail_undefined(x, v);
    if (v.kind != JINJA_LIST) {
        return jinja_fail(x, E_INVAL, "'%s' object is not subscriptable", jinja_kind_name(v));
    }
    int64_t from, to, step;
    if (!slice_bounds(x, part, (int64_t)v.u.list->n, &from, &to, &step)) return jinja_none();
    const jinja_value out = jinja_list_new(x, 0);
    for (int64_t i = from; x->st == OK && (step > 0 ? i < to : i > to); i += step) {
        jinja_list_push(x, out.u.list, v.u.list->v[i]);
    }
    if (x->st == OK) out.u.list->tuple = v.u.list->tuple;
    return out;
}

static jinja_value bad_operands(jinja *x, const char *op, jinja_value a, jinja_value b) {
    if (a.kind == JINJA_UNDEFINED) return fail_undefined(x, a);
    if (b.kind == JINJA_UNDEFINED) return fail_undefined(x, b);
    if (op[0] == '+' && a.kind == JINJA_STRING) {
        return jinja_fail(x, E_INVAL, "can only concatenate str (not \"%s\") to str",
                          jinja_kind_name(b));
    }
    return jinja_fail(x, E_INVAL, "unsupported operand type(s) for %s: '%s' and '%s'", op,
                      jinja_kind_name(a), jinja_kind_name(b));
}

static int64_t integer(jinja_value v) {
    return v.kind == JINJA_BOOL ? v.u.b : v.u.i;
}

static jinja_value overflow(jinja *x) {
    return jinja_fail(x, E_TOO_LARGE, "chat template: an integer is too large");
}

static jinja_value add_lists(jinja *x, const jinja_list *a, const jinja_list *b) {
    const jinja_value out = jinja_list_new(x, a->n + b->n);
    for (size_t i = 0; i < a->n && x->st == OK; i++) jinja_list_push(x, out.u.list, a->v[i]);
    for (size_t i = 0; i < b->n && x->st == OK; i++) jinja_list_push(x, out.u.list, b->v[i]);
    if (x->st == OK) out.u.list->tuple = a->tuple;
    return out;
}

jinja_value jinja_add(jinja *x, jinja_value a, jinja_value b) {
    if (x->st != OK) return jinja_undefined(NULL);
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        jinja_buffer t = {0};
        jinja_append_str(x, &t, a.u.s);
        jinja_append_str(x, &t, b.u.s);
        return jinja_buffer_value(x, &t);
    }
    if (a.kind == JINJA_LIST && b.kind == JINJA_LIST && a.u.list->tuple == b.u.list->tuple) {
        return add_lists(x, a.u.list, b.u.list);
    }
    if (!jinja_is_number(a) || !jinja_is_number(b)) return bad_operands(x, "+", a, b);
    if (a.kind == JINJA_FLOAT || b.kind == JINJA_FLOAT) {
        return jinja_float(jinja_number(a) + jinja_number(b));
    }
    int64_t sum;
    return __builtin_add_overflow(integer(a), integer(b), &sum) ? overflow(x) : jinja_int(sum);
}

static jinja_value repeat(jinja *x, jinja_value v, int64_t times) {
    if (times < 0) times = 0;
    if (v.kind == JINJA_STRING) {
        jinja_buffer b = {0};
        for (int64_t i = 0; i < times && v.u.s->len > 0 && x->st == OK; i++) {
            jinja_append_str(x, &b, v.u.s);
        }
        return jinja_buffer_value(x, &b);
    }
    const jinja_value out = jinja_list_new(x, 0);
    for (int64_t i = 0; i < times && v.u.list->n > 0 && x->st == OK; i++) {
        for (size_t k = 0; k < v.u.list->n && x->st == OK; k++) {
            jinja_list_push(x, out.u.list, v.u.list->v[k]);
        }
    }
    if (x->st == OK) out.u.list->tuple = v.u.list->tuple;
    return out;
}

static jinja_value int_power(jinja *x, int64_t base, int64_t exponent) {
    if (exponent < 0) return jinja_float(pow((double)base, (double)exponent));
    int64_t r = 1;
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(r, base, &r)) return overflow(x);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return overflow(x);
    }
    return jinja_int(r);
}

static jinja_value int_binary(jinja *x, int op, int64_t a, int64_t b) {
    int64_t r = 0;
    switch (op) {
    case OP_SUB:
        return __builtin_sub_overflow(a, b, &r) ? overflow(x) : jinja_int(r);
    case OP_MUL:
        return __builtin_mul_overflow(a, b, &r) ? overflow(x) : jinja_int(r);
    case OP_POW:
        return int_power(x, a, b);
    default:
        break;
    }
    if (b == 0) return jinja_fail(x, E_INVAL, "division by zero");
    if (op == OP_DIV) return jinja_float((double)a / (double)b);
    if (b == -1) return op == OP_MOD ? jinja_int(0) : int_binary(x, OP_SUB, 0, a);
    const int64_t q = a / b, m = a % b;
    const bool down = m != 0 && (m < 0) != (b < 0); /* Python rounds towards minus infinity */
    return op == OP_MOD ? jinja_int(down ? m + b : m) : jinja_int(down ? q - 1 : q);
}

static jinja_value float_binary(jinja *x, int op, double a, double b) {
    switch (op) {
    case OP_SUB:
        return jinja_float(a - b);
    case OP_MUL:
        return jinja_float(a * b);
    case OP_POW:
        return jinja_float(pow(a, b));
    default:
        break;
    }
    if (!(b < 0.0) && !(b > 0.0)) return jinja_fail(x, E_INVAL, "division by zero");
    if (op == OP_DIV) return jinja_float(a / b);
    const double q = floor(a / b);
    return jinja_float(op == OP_MOD ? a - q * b : q);
}

jinja_value jinja_int_of(jinja *x, double f) {
    return f > -9.2e18 && f < 9.2e18 ? jinja_int((int64_t)f) : overflow(x); /* NaN, too */
}

/* "%s and %d" % values: %s %r %d %i %% only. */
static jinja_value format_percent(jinja *x, const jinja_str *s, jinja_value args) {
    const bool many = args.kind == JINJA_LIST && args.u.list->tuple;
    const size_t n = many ? args.u.list->n : 1;
    size_t used = 0;
    jinja_buffer b = {0};
    for (size_t i = 0; i < s->len && x->st == OK; i++) {
        size_t end = i;
        while (end < s->len && s->s[end] != '%') end++;
        jinja_append_sub(x, &b, s, i, end);
        i = end;
        if (i == s->len) break;
        const char c = ++i < s->len ? s->s[i] : '\0';
        if (c == '%') {
            jinja_append_sub(x, &b, s, i, i + 1);
        } else if (!c || !strchr("srdi", c)) {
            return jinja_fail(x, E_UNSUPPORTED, "a format other than %%s %%r %%d");
        } else if (used == n) {
            return jinja_fail(x, E_INVAL, "not enough arguments for format string");
        } else {
            const jinja_value v = many ? args.u.list->v[used] : args;
            used++;
            if (c == 'r') {
                jinja_append_repr(x, &b, v);
            } else if (c != 's' && !jinja_is_number(v)) {
                return jinja_fail(x, E_INVAL, "%%d format: a number is required");
            } else {
                jinja_append_value(
                    x, &b, c == 's' || v.kind == JINJA_INT ? v : jinja_int_of(x, jinja_number(v)));
            }
        }
    }
    return jinja_buffer_value(x, &b);
}

static jinja_value eval_binary(jinja *x, jinja_scope *scope, const jinja_node *n) {
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};
    const jinja_value a = jinja_eval(x, scope, n->kid[0]), b = jinja_eval(x, scope, n->kid[1]);
    if (x->st != OK) return jinja_undefined(NULL);
    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a.kind == JINJA_FLOAT || b.kind == JINJA_FLOAT) {
            return float_binary(x, n->op, jinja_number(a), jinja_number(b));
        }
        return int_binary(x, n->op, integer(a), integer(b));
    }
    if (n->op == OP_MUL) {
        const bool a_items = a.kind == JINJA_STRING || a.kind == JINJA_LIST;
        const bool b_items = b.kind == JINJA_STRING || b.kind == JINJA_LIST;
        if (a_items && b.kind == JINJA_INT) return repeat(x, a, b.u.i);
        if (b_items && a.kind == JINJA_INT) return repeat(x, b, a.u.i);
    }
    if (n->op == OP_MOD && a.kind == JINJA_STRING) return format_percent(x, a.u.s, b);
    return bad_operands(x, names[n->op], a, b);
}

/* a + b + c or a ~ b ~ c: a run of strings is joined once. */
static jinja_value eval_sum(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_value sum = jinja_eval(x, scope, n->kid[0]);
    jinja_buffer joined = {0};
    bool joining = false;
    for (int i = 1; i < n->n_kids && x->st == OK; i++) {
        jinja_value v = jinja_eval(x, scope, n->kid[i]);
        if (x->st != OK) break;
        if (n->op == OP_CONCAT) {
            if (!joining) sum = jinja_to_string(x, sum);
            v = jinja_to_string(x, v);
        }
        const bool strings = (joining || sum.kind == JINJA_STRING) && v.kind == JINJA_STRING;
        if (strings && x->st == OK) {
            if (!joining) jinja_append_str(x, &joined, sum.u.s);
            joining = true;
            jinja_append_str(x, &joined, v.u.s);
        } else {
            if (joining) sum = jinja_buffer_value(x, &joined);
            joining = false;
            sum = jinja_add(x, sum, v);
            joined = (jinja_buffer){0};
        }
    }
    if (x->st != OK) return jinja_undefined(NULL);
    return joining ? jinja_buffer_value(x, &joined) : sum;
}

static bool compare_once(jinja *x, int op, jinja_value a, jinja_value b) {
    switch (op) {
    case OP_EQ:
        return jinja_equal(x, a, b);
    case OP_NE:
        return !jinja_equal(x, a, b);
    case OP_IN:
        return jinja_contains(x, b, a);
    case OP_NOT_IN:
        return !jinja_contains(x, b, a);
    case OP_LT:
        return jinja_compare(x, a, b) < 0;
    case OP_GT:
        return jinja_compare(x, a, b) > 0;
    case OP_LE:
        return jinja_compare(x, a, b) <= 0;
    default:
        return jinja_compare(x, a, b) >= 0;
    }
}

static jinja_value eval_compare(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_value a = jinja_eval(x, scope, n->kid[0]);
    for (int i = 1; i < n->n_kids && x->st == OK; i++) {
        const jinja_value b = jinja_eval(x, scope, n->kid[i]);
        if (x->st != OK || !compare_once(x, n->ops[i - 1], a, b)) return jinja_bool(false);
        a = b;
    }
    return jinja_bool(x->st == OK);
}

static jinja_value eval_unary(jinja *x, jinja_scope *scope, const jinja_node *n) {
    const jinja_value v = jinja_eval(x, scope, n->kid[0]);
    if (n->op == OP_NOT) return jinja_bool(!jinja_truthy(x, v));
    if (x->st != OK) return v;
    if (v.kind == JINJA_UNDEFINED) return fail_undefined(x, v);
    if (!jinja_is_number(v)) {
        return jinja_fail(x, E_INVAL, "bad operand type for unary -: '%s'", jinja_kind_name(v));
    }
    if (v.kind == JINJA_FLOAT) return jinja_float(n->op == OP_NEG ? -v.u.f : v.u.f);
    if (n->op == OP_POS) return jinja_int(integer(v));
    return int_binary(x, OP_SUB, 0, integer(v));
}

/* Values of kid[1..]. */
static jinja_args eval_args(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_args a = {.n = n->n_kids - 1};
    if (a.n == 0) return a;
    jinja_value *v = jinja_alloc(x, (size_t)a.n * sizeof *v);
    if (!v) return (jinja_args){0};
    for (int i = 0; i < a.n; i++) v[i] = jinja_eval(x, scope, n->kid[i + 1]);
    a.v = v;
    a.key = n->key + 1;
    return a;
}

static jinja_value eval_call(jinja *x, jinja_scope *scope, const jinja_node *n) {
    const jinja_value f = jinja_eval(x, scope, n->kid[0]);
    if (x->st != OK) return f;
    const jinja_args a = eval_args(x, scope, n);
    if (x->st != OK) return jinja_undefined(NULL);
    switch (f.kind) {
    case JINJA_FUNCTION:
        return jinja_function_call(x, f.u.function, &a);
    case JINJA_METHOD:
        return jinja_method_call(x, f.u.method, &a);
    case JINJA_MACRO:
        return jinja_call_macro(x, f.u.macro, &a, jinja_undefined(NULL));
    case JINJA_UNDEFINED:
        return fail_undefined(x, f);
    default:
        return jinja_fail(x, E_INVAL, "'%s' object is not callable", jinja_kind_name(f));
    }
}

static jinja_value eval_items(jinja *x, jinja_scope *scope, const jinja_node *n) {
    if (n->kind == NODE_LIST) {
        const jinja_value l = jinja_list_new(x, (size_t)n->n_kids);
        for (int i = 0; i < n->n_kids && x->st == OK; i++) {
            jinja_list_push(x, l.u.list, jinja_eval(x, scope, n->kid[i]));
        }
        if (x->st == OK) l.u.list->tuple = n->op == 1;
        return l;
    }
    const jinja_value d = jinja_dict_new(x);
    for (int i = 0; i + 1 < n->n_kids && x->st == OK; i += 2) {
        const jinja_value key = jinja_eval(x, scope, n->kid[i]);
        jinja_dict_set(x, d.u.dict, key, jinja_eval(x, scope, n->kid[i + 1]));
    }
    return d;
}

static jinja_value eval_bool(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_value v = jinja_undefined(NULL);
    for (int i = 0; i < n->n_kids && x->st == OK; i++) {
        v = jinja_eval(x, scope, n->kid[i]);
        if (jinja_truthy(x, v) == (n->kind == NODE_OR)) break;
    }
    return v;
}

static jinja_value eval_node(jinja *x, jinja_scope *scope, const jinja_node *n) {
    switch (n->kind) {
    case NODE_CONST:
        return n->value;
    case NODE_NAME:
        return lookup(x, scope, n->name);
    case NODE_LIST:
    case NODE_DICT:
        return eval_items(x, scope, n);
    case NODE_ATTR: {
        const jinja_value v = jinja_eval(x, scope, n->kid[0]);
        return x->st == OK ? jinja_get_attr(x, v, n->name) : v;
    }
    case NODE_ITEM: {
        const jinja_value v = jinja_eval(x, scope, n->kid[0]);
        return jinja_get_item(x, v, jinja_eval(x, scope, n->kid[1]));
    }
    case NODE_SLICE:
        return eval_slice(x, scope, n);
    case NODE_CALL:
        return eval_call(x, scope, n);
    case NODE_FILTER:
    case NODE_TEST: {
        const jinja_value v = jinja_eval(x, scope, n->kid[0]);
        const jinja_args a = eval_args(x, scope, n);
        if (x->st != OK) return jinja_undefined(NULL);
        return n->kind == NODE_FILTER ? jinja_filter_apply(x, n->op, v, &a)
                                      : jinja_bool(jinja_test_apply(x, n->op, v, &a));
    }
    case NODE_UNARY:
        return eval_unary(x, scope, n);
    case NODE_BINARY:
        return eval_binary(x, scope, n);
    case NODE_SUM:
        return eval_sum(x, scope, n);
    case NODE_AND:
    case NODE_OR:
        return eval_bool(x, scope, n);
    case NODE_COMPARE:
        return eval_compare(x, scope, n);
    case NODE_COND:
        if (jinja_truthy(x, jinja_eval(x, scope, n->kid[1])))
            return jinja_eval(x, scope, n->kid[0]);
        return n->kid[2] ? jinja_eval(x, scope, n->kid[2]) : jinja_undefined(NULL);
    default:
        return jinja_fail(x, E_INTERNAL, "chat template: a statement in an expression");
    }
}

jinja_value jinja_eval(jinja *x, jinja_scope *scope, const jinja_node *n) {
    if (x->st != OK) return jinja_undefined(NULL);
    x->fuel--;
    if (x->fuel < 0 && !jinja_touch(x, 0)) return jinja_undefined(NULL);
    if (x->depth >= EVAL_DEPTH_MAX) {
        return jinja_fail(x, E_TOO_LARGE, "the chat template is nested too deep (line %d)",
                          n->line);
    }
    x->depth++;
    const jinja_value v = eval_node(x, scope, n);
    x->depth--;
    return v;
}
