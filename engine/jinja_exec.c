/* Statements, scopes and macros. */
#include <string.h>

#include "base/limits.h"
#include "engine/jinja.h"

typedef enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } flow;

static flow exec(jinja *x, jinja_scope *scope, const jinja_node *n);

void jinja_bind(jinja *x, jinja_scope *scope, const char *name, jinja_value v) {
    size_t steps = 0;
    for (jinja_binding *b = scope->first; b; b = b->next) {
        steps++;
        if (strcmp(b->name, name) == 0) {
            b->value = v;
            jinja_touch(x, 8 * steps);
            return;
        }
    }
    if (!jinja_touch(x, 8 * steps)) return;
    jinja_binding *b = jinja_alloc(x, sizeof *b);
    if (!b) return;
    *b = (jinja_binding){scope->first, name, v};
    scope->first = b;
}

void jinja_set_global(jinja *x, const char *name, jinja_value v) {
    jinja_bind(x, &x->globals, name, v);
}

/* Looks a namespace up and sets its attribute. */
static void assign_attribute(jinja *x, jinja_scope *scope, const jinja_node *target,
                             jinja_value v) {
    const jinja_value ns = jinja_eval(x, scope, target->kid[0]);
    if (x->st != OK) return;
    if (ns.kind != JINJA_NAMESPACE) {
        jinja_fail(x, E_INVAL, "cannot assign attribute on non-namespace object");
        return;
    }
    jinja_dict_set(x, ns.u.dict, jinja_text(x, target->name), v);
}

static void assign(jinja *x, jinja_scope *scope, const jinja_node *target, jinja_value v) {
    if (x->st != OK) return;
    if (target->kind == NODE_NAME) {
        jinja_bind(x, scope, target->name, v);
        return;
    }
    if (target->kind == NODE_ATTR) {
        assign_attribute(x, scope, target, v);
        return;
    }
    const jinja_list *items = jinja_items(x, v);
    if (!items) return;
    if (items->n != (size_t)target->n_kids) {
        jinja_fail(x, E_INVAL, "%zu values to unpack, %d expected", items->n, target->n_kids);
        return;
    }
    for (size_t i = 0; i < items->n; i++) assign(x, scope, target->kid[i], items->v[i]);
}

static flow exec_body(jinja *x, jinja_scope *scope, const jinja_node *n) {
    for (int i = 0; i < n->n_kids && x->st == OK; i++) {
        const flow f = exec(x, scope, n->kid[i]);
        if (f != FLOW_ON) return f;
    }
    return FLOW_ON;
}

static flow exec_if(jinja *x, jinja_scope *scope, const jinja_node *n) {
    int i = 0;
    for (; i + 1 < n->n_kids; i += 2) {
        const bool yes = jinja_truthy(x, jinja_eval(x, scope, n->kid[i]));
        if (x->st != OK) return FLOW_ON;
        if (yes) return exec(x, scope, n->kid[i + 1]);
    }
    return i < n->n_kids ? exec(x, scope, n->kid[i]) : FLOW_ON;
}

/* The items that pass the loop's own `if`. */
static const jinja_list *filter_items(jinja *x, jinja_scope *scope, const jinja_node *n,
                                      const jinja_list *all) {
    if (!n->kid[2]) return all;
    const jinja_value kept = jinja_list_new(x, 0);
    for (size_t i = 0; i < all->n && x->st == OK; i++) {
        jinja_scope inner = {.parent = scope};
        assign(x, &inner, n->kid[0], all->v[i]);
        if (jinja_truthy(x, jinja_eval(x, &inner, n->kid[2]))) {
            jinja_list_push(x, kept.u.list, all->v[i]);
        }
    }
    return x->st == OK ? kept.u.list : NULL;
}

static flow exec_for(jinja *x, jinja_scope *scope, const jinja_node *n) {
    const jinja_value iterable = jinja_eval(x, scope, n->kid[1]);
    const jinja_list *items = jinja_items(x, iterable);
    if (items) items = filter_items(x, scope, n, items);
    if (!items) return FLOW_ON;
    if (items->n == 0) return n->kid[4] ? exec(x, scope, n->kid[4]) : FLOW_ON;
    jinja_loop *loop = jinja_alloc(x, sizeof *loop);
    if (!loop) return FLOW_ON;
    *loop = (jinja_loop){.items = items, .depth = 1}; /* deeper only in recursive loops */
    for (size_t i = 0; i < items->n && x->st == OK; i++) {
        /* On the heap of the rendering: a macro defined in the body keeps its scope. */
        jinja_scope *inner = jinja_alloc(x, sizeof *inner);
        if (!inner) break;
        *inner = (jinja_scope){.parent = scope};
        loop->index0 = i;
        jinja_bind(x, inner, "loop", (jinja_value){.kind = JINJA_LOOP, .u.loop = loop});
        assign(x, inner, n->kid[0], items->v[i]);
        if (exec(x, inner, n->kid[3]) == FLOW_BREAK) break;
    }
    return FLOW_ON;
}

/* Runs a body and returns what it wrote. */
static jinja_value capture(jinja *x, jinja_scope *scope, const jinja_node *body) {
    jinja_buffer b = {0}, *out = x->out;
    x->out = &b;
    exec(x, scope, body);
    x->out = out;
    return jinja_buffer_value(x, &b);
}

/* Applies a chain of filters whose innermost operand is the name "". */
static jinja_value filter_text(jinja *x, jinja_scope *scope, const jinja_node *filter,
                               jinja_value text) {
    jinja_scope inner = {.parent = scope};
    jinja_bind(x, &inner, "", text);
    return jinja_eval(x, &inner, filter);
}

static void exec_setblock(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_scope *inner = jinja_alloc(x, sizeof *inner);
    if (!inner) return;
    *inner = (jinja_scope){.parent = scope};
    jinja_value v = capture(x, inner, n->kid[1]);
    if (n->kid[2]) v = filter_text(x, scope, n->kid[2], v);
    assign(x, scope, n->kid[0], v);
}

static void exec_macro(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_macro *m = jinja_alloc(x, sizeof *m);
    if (!m) return;
    *m = (jinja_macro){.node = n, .scope = scope};
    jinja_bind(x, scope, n->name, (jinja_value){.kind = JINJA_MACRO, .u.macro = m});
}

static bool parameter_exists(const jinja_node *n, const char *name) {
    for (int i = 1; i < n->n_kids; i++) {
        if (strcmp(n->key[i], name) == 0) return true;
    }
    return strcmp(name, "caller") == 0;
}

jinja_value jinja_call_macro(jinja *x, const jinja_macro *m, const jinja_args *a,
                             jinja_value caller) {
    const jinja_node *n = m->node;
    if (x->n_calls >= LIMIT_TEMPLATE_DEPTH) {
        return jinja_fail(x, E_TOO_LARGE, "macro '%.64s' is called in itself too often", n->name);
    }
    jinja_scope *inner = jinja_alloc(x, sizeof *inner);
    if (!inner) return jinja_undefined(NULL);
    *inner = (jinja_scope){.parent = m->scope};
    int positional = 0;
    for (int i = 0; i < a->n; i++) {
        const char *key = a->key ? a->key[i] : NULL;
        positional += !key;
        if (key && !parameter_exists(n, key)) {
            return jinja_fail(x, E_INVAL, "macro '%.64s' takes no keyword argument '%.64s'",
                              n->name, key);
        }
    }
    if (positional > n->n_kids - 1) {
        return jinja_fail(x, E_INVAL, "macro '%.64s' takes not more than %d argument(s)", n->name,
                          n->n_kids - 1);
    }
    for (int i = 1; i < n->n_kids && x->st == OK; i++) {
        jinja_value v = jinja_arg(a, i - 1, n->key[i]);
        if (!jinja_given(v) && n->kid[i]) v = jinja_eval(x, inner, n->kid[i]);
        jinja_bind(x, inner, n->key[i], v);
    }
    if (jinja_given(caller)) jinja_bind(x, inner, "caller", caller);
    x->n_calls++;
    const jinja_value v = capture(x, inner, n->kid[0]);
    x->n_calls--;
    return v;
}

/* {% call m(args) %}body{% endcall %}: m runs with `caller` bound to the body. */
static void exec_callblock(jinja *x, jinja_scope *scope, const jinja_node *n) {
    const jinja_node *call = n->kid[0];
    const jinja_value f = jinja_eval(x, scope, call->kid[0]);
    if (x->st != OK) return;
    if (f.kind != JINJA_MACRO) {
        jinja_fail(x, E_INVAL, "a call block needs a macro");
        return;
    }
    jinja_macro *caller = jinja_alloc(x, sizeof *caller);
    const size_t n_args = (size_t)call->n_kids - 1;
    jinja_value *v = jinja_alloc(x, n_args * sizeof *v);
    if (!caller || !v) return;
    *caller = (jinja_macro){.node = n->kid[1], .scope = scope};
    for (size_t i = 0; i < n_args; i++) v[i] = jinja_eval(x, scope, call->kid[i + 1]);
    if (x->st != OK) return;
    const jinja_args a = {.v = v, .key = n_args ? call->key + 1 : NULL, .n = (int)n_args};
    const jinja_value text =
        jinja_call_macro(x, f.u.macro, &a, (jinja_value){.kind = JINJA_MACRO, .u.macro = caller});
    if (x->st == OK) jinja_append_value(x, x->out, text);
}

static flow exec_with(jinja *x, jinja_scope *scope, const jinja_node *n) {
    jinja_scope *inner = jinja_alloc(x, sizeof *inner);
    if (!inner) return FLOW_ON;
    *inner = (jinja_scope){.parent = scope};
    for (int i = 1; i + 1 < n->n_kids && x->st == OK; i += 2) {
        assign(x, inner, n->kid[i], jinja_eval(x, scope, n->kid[i + 1]));
    }
    return exec(x, inner, n->kid[0]);
}

static flow exec_node(jinja *x, jinja_scope *scope, const jinja_node *n) {
    switch (n->kind) {
    case NODE_BODY:
        return exec_body(x, scope, n);
    case NODE_TEXT:
        jinja_append_str(x, x->out, n->value.u.s);
        return FLOW_ON;
    case NODE_OUTPUT: {
        const jinja_value v = jinja_eval(x, scope, n->kid[0]);
        if (x->st == OK) jinja_append_value(x, x->out, v);
        return FLOW_ON;
    }
    case NODE_IF:
        return exec_if(x, scope, n);
    case NODE_FOR:
        return exec_for(x, scope, n);
    case NODE_SET:
        assign(x, scope, n->kid[0], jinja_eval(x, scope, n->kid[1]));
        return FLOW_ON;
    case NODE_SETBLOCK:
        exec_setblock(x, scope, n);
        return FLOW_ON;
    case NODE_MACRO:
        exec_macro(x, scope, n);
        return FLOW_ON;
    case NODE_CALLBLOCK:
        exec_callblock(x, scope, n);
        return FLOW_ON;
    case NODE_FILTERBLOCK: {
        const jinja_value text = filter_text(x, scope, n->kid[1], capture(x, scope, n->kid[0]));
        if (x->st == OK) jinja_append_value(x, x->out, text);
        return FLOW_ON;
    }
    case NODE_WITH:
        return exec_with(x, scope, n);
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    default:
        jinja_fail(x, E_INTERNAL, "chat template: an expression in place of a statement");
        return FLOW_ON;
    }
}

static flow exec(jinja *x, jinja_scope *scope, const jinja_node *n) {
    if (!n || !jinja_touch(x, 0)) return FLOW_ON;
    x->fuel--;
    x->line = n->line;
    if (x->depth >= 8 * LIMIT_TEMPLATE_DEPTH) {
        jinja_fail(x, E_TOO_LARGE, "the chat template is nested too deep (line %d)", n->line);
        return FLOW_ON;
    }
    x->depth++;
    const flow f = exec_node(x, scope, n);
    x->depth--;
    return f;
}

void jinja_init(jinja *x, size_t memory_bytes, error *err) {
    *x = (jinja){.fuel = LIMIT_TEMPLATE_FUEL, .err = err};
    arena_init(&x->mem, memory_bytes);
}

void jinja_deinit(jinja *x) {
    arena_reset(&x->mem);
}

status jinja_run(jinja *x, const jinja_node *tree, jinja_buffer *out) {
    x->out = out;
    exec(x, &x->globals, tree);
    return x->st;
}
