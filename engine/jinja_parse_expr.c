/* Expressions, by recursive descent in Jinja's order of precedence:
 *   cond  x if y else z      or      and      not      compare (chains, in, not in)
 *   + -      ~      * / // %      **      unary - +      postfix . [] ()      | filter, is test */
#include <string.h>

#include "engine/jinja_parse.h"

static jinja_node *parse_or(jinja_parser *p);
static jinja_node *parse_unary(jinja_parser *p, bool with_filter);

static jinja_node *unary(jinja_parser *p, jinja_op op, jinja_node *a) {
    jinja_node *n = jinja_parse_node(p, NODE_UNARY);
    jinja_kids k = {0};
    jinja_parse_push(p, &k, a, NULL);
    if (n) n->op = (int)op;
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *binary(jinja_parser *p, jinja_op op, jinja_node *a, jinja_node *b) {
    jinja_node *n = jinja_parse_node(p, NODE_BINARY);
    jinja_kids k = {0};
    jinja_parse_push(p, &k, a, NULL);
    jinja_parse_push(p, &k, b, NULL);
    if (n) n->op = (int)op;
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *constant(jinja_parser *p, jinja_value v) {
    jinja_node *n = jinja_parse_node(p, NODE_CONST);
    if (n) n->value = v;
    return n;
}

/* Strings side by side are one. */
static jinja_node *parse_string(jinja_parser *p) {
    const char *s = p->tok.s;
    size_t len = p->tok.len;
    jinja_parse_next(p);
    while (p->st == OK && p->tok.kind == TOK_STRING) {
        char *joined = arena_alloc(p->mem, len + p->tok.len + 1);
        if (!joined)
            return jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
        memcpy(joined, s, len);
        memcpy(joined + len, p->tok.s, p->tok.len);
        s = joined;
        len += p->tok.len;
        jinja_parse_next(p);
    }
    jinja_str *v = arena_calloc(p->mem, 1, sizeof *v);
    if (!v) return jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
    *v = (jinja_str){.s = s, .len = len};
    return constant(p, (jinja_value){.kind = JINJA_STRING, .u.s = v});
}

static jinja_node *parse_name_or_word(jinja_parser *p) {
    static const char *const taken[] = {"and", "or", "not", "if", "else", "in", "is"};
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++) {
        if (jinja_parse_is_name(p, taken[i])) {
            return jinja_parse_fail(p, E_FORMAT, "unexpected '%s'", taken[i]);
        }
    }
    if (jinja_parse_take_name(p, "true") || jinja_parse_take_name(p, "True")) {
        return constant(p, jinja_bool(true));
    }
    if (jinja_parse_take_name(p, "false") || jinja_parse_take_name(p, "False")) {
        return constant(p, jinja_bool(false));
    }
    if (jinja_parse_take_name(p, "none") || jinja_parse_take_name(p, "None")) {
        return constant(p, jinja_none());
    }
    jinja_node *n = jinja_parse_node(p, NODE_NAME);
    const char *name = jinja_parse_name(p);
    if (n) n->name = name;
    return n;
}

static jinja_node *parse_list(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_LIST);
    jinja_kids k = {0};
    while (p->st == OK && !jinja_parse_is_op(p, "]")) {
        jinja_parse_push(p, &k, jinja_parse_expr(p), NULL);
        if (!jinja_parse_take_op(p, ",")) break;
    }
    jinja_parse_expect_op(p, "]");
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_dict(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_DICT);
    jinja_kids k = {0};
    while (p->st == OK && !jinja_parse_is_op(p, "}")) {
        jinja_parse_push(p, &k, jinja_parse_expr(p), NULL);
        jinja_parse_expect_op(p, ":");
        jinja_parse_push(p, &k, jinja_parse_expr(p), NULL);
        if (!jinja_parse_take_op(p, ",")) break;
    }
    jinja_parse_expect_op(p, "}");
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_parenthesis(jinja_parser *p) {
    if (jinja_parse_take_op(p, ")")) {
        jinja_node *n = jinja_parse_node(p, NODE_LIST);
        if (n) n->op = 1;
        return n;
    }
    jinja_node *n = jinja_parse_tuple(p, true);
    jinja_parse_expect_op(p, ")");
    return n;
}

static jinja_node *parse_primary(jinja_parser *p) {
    const jinja_token t = p->tok;
    if (p->st != OK || !jinja_parse_enter(p)) return NULL;
    jinja_node *n = NULL;
    if (t.kind == TOK_NAME) {
        n = parse_name_or_word(p);
    } else if (t.kind == TOK_STRING) {
        n = parse_string(p);
    } else if (t.kind == TOK_INT || t.kind == TOK_FLOAT) {
        n = constant(p, t.kind == TOK_INT ? jinja_int(t.i) : jinja_float(t.f));
        jinja_parse_next(p);
    } else if (jinja_parse_take_op(p, "(")) {
        n = parse_parenthesis(p);
    } else if (jinja_parse_take_op(p, "[")) {
        n = parse_list(p);
    } else if (jinja_parse_take_op(p, "{")) {
        n = parse_dict(p);
    } else {
        jinja_parse_fail(p, E_FORMAT, "an expression is missing");
    }
    jinja_parse_leave(p);
    return n;
}

/* Arguments up to the closing parenthesis; kid 0 of k is already there. */
static void parse_args(jinja_parser *p, jinja_kids *k) {
    bool keywords = false;
    while (p->st == OK && !jinja_parse_is_op(p, ")")) {
        if (jinja_parse_is_op(p, "*") || jinja_parse_is_op(p, "**")) {
            jinja_parse_fail(p, E_UNSUPPORTED, "unpacking of arguments");
            return;
        }
        jinja_node *v = jinja_parse_expr(p);
        const char *key = NULL;
        if (v && v->kind == NODE_NAME && jinja_parse_take_op(p, "=")) {
            key = v->name;
            v = jinja_parse_expr(p);
        }
        if (keywords && !key)
            jinja_parse_fail(p, E_FORMAT, "a positional argument after a named one");
        keywords = key != NULL;
        jinja_parse_push(p, k, v, key);
        if (!jinja_parse_take_op(p, ",")) break;
    }
    jinja_parse_expect_op(p, ")");
}

static jinja_node *parse_call(jinja_parser *p, jinja_node *callee) {
    jinja_node *n = jinja_parse_node(p, NODE_CALL);
    if (callee && callee->kind == NODE_ATTR && !jinja_method_known(callee->name)) {
        return jinja_parse_fail(p, E_UNSUPPORTED, "method '%.64s'", callee->name);
    }
    if (callee && callee->kind == NODE_NAME) {
        static const char *const unknown[] = {"cycler", "joiner", "lipsum",  "super",
                                              "debug",  "_",      "gettext", "ngettext"};
        for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
            if (strcmp(callee->name, unknown[i]) == 0) {
                return jinja_parse_fail(p, E_UNSUPPORTED, "function '%s'", unknown[i]);
            }
        }
    }
    jinja_kids k = {0};
    jinja_parse_push(p, &k, callee, NULL);
    parse_args(p, &k);
    return jinja_parse_finish(p, n, &k);
}

/* What stands in brackets: an index or a slice. */
static jinja_node *parse_subscript(jinja_parser *p, jinja_node *self) {
    jinja_node *n = jinja_parse_node(p, NODE_ITEM);
    jinja_node *part[3] = {0};
    int i = 0;
    bool slice = false;
    while (p->st == OK && !jinja_parse_is_op(p, "]")) {
        if (jinja_parse_take_op(p, ":")) {
            slice = true;
            if (++i > 2) return jinja_parse_fail(p, E_FORMAT, "a slice with too many parts");
        } else if (part[i]) {
            return jinja_parse_fail(p, E_FORMAT, "']' is missing");
        } else {
            part[i] = jinja_parse_expr(p);
        }
    }
    jinja_parse_expect_op(p, "]");
    if (!slice && !part[0]) return jinja_parse_fail(p, E_FORMAT, "an index is missing");
    jinja_kids k = {0};
    jinja_parse_push(p, &k, self, NULL);
    for (int s = 0; s < (slice ? 3 : 1); s++) jinja_parse_push(p, &k, part[s], NULL);
    if (n && slice) n->kind = NODE_SLICE;
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_attribute(jinja_parser *p, jinja_node *self) {
    jinja_kids k = {0};
    jinja_parse_push(p, &k, self, NULL);
    if (p->tok.kind == TOK_INT) { /* x.0 is x[0] */
        jinja_node *n = jinja_parse_node(p, NODE_ITEM);
        jinja_parse_push(p, &k, constant(p, jinja_int(p->tok.i)), NULL);
        jinja_parse_next(p);
        return jinja_parse_finish(p, n, &k);
    }
    jinja_node *n = jinja_parse_node(p, NODE_ATTR);
    const char *name = jinja_parse_name(p);
    if (n) n->name = name;
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_postfix(jinja_parser *p, jinja_node *n) {
    while (p->st == OK) {
        if (jinja_parse_take_op(p, ".")) {
            n = parse_attribute(p, n);
        } else if (jinja_parse_take_op(p, "[")) {
            n = parse_subscript(p, n);
        } else if (jinja_parse_take_op(p, "(")) {
            n = parse_call(p, n);
        } else {
            break;
        }
    }
    return p->st == OK ? n : NULL;
}

jinja_node *jinja_parse_filters(jinja_parser *p, jinja_node *self) {
    do {
        jinja_node *n = jinja_parse_node(p, NODE_FILTER);
        const char *name = jinja_parse_name(p);
        if (p->st != OK || !n) return NULL;
        n->name = name;
        n->op = jinja_filter_find(name);
        if (n->op < 0) return jinja_parse_fail(p, E_UNSUPPORTED, "filter '%.64s'", name);
        jinja_kids k = {0};
        jinja_parse_push(p, &k, self, NULL);
        if (jinja_parse_take_op(p, "(")) parse_args(p, &k);
        self = jinja_parse_finish(p, n, &k);
    } while (p->st == OK && jinja_parse_take_op(p, "|"));
    return p->st == OK ? self : NULL;
}

static bool starts_test_argument(const jinja_parser *p) {
    if (p->tok.kind == TOK_NAME) {
        static const char *const other[] = {"else", "or", "and", "if", "in", "not", "is"};
        for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
            if (jinja_parse_is_name(p, other[i])) return false;
        }
        return true;
    }
    return p->tok.kind == TOK_STRING || p->tok.kind == TOK_INT || p->tok.kind == TOK_FLOAT ||
           jinja_parse_is_op(p, "[") || jinja_parse_is_op(p, "{");
}

static jinja_node *parse_test(jinja_parser *p, jinja_node *self) {
    const bool negated = jinja_parse_take_name(p, "not");
    jinja_node *n = jinja_parse_node(p, NODE_TEST);
    const char *name = jinja_parse_name(p);
    if (p->st != OK || !n) return NULL;
    n->name = name;
    n->op = jinja_test_find(name);
    if (n->op < 0) return jinja_parse_fail(p, E_UNSUPPORTED, "test '%.64s'", name);
    jinja_kids k = {0};
    jinja_parse_push(p, &k, self, NULL);
    if (jinja_parse_take_op(p, "(")) {
        parse_args(p, &k);
    } else if (starts_test_argument(p)) {
        jinja_parse_push(p, &k, parse_postfix(p, parse_primary(p)), NULL);
    }
    n = jinja_parse_finish(p, n, &k);
    return negated ? unary(p, OP_NOT, n) : n;
}

static jinja_node *parse_unary(jinja_parser *p, bool with_filter) {
    if (p->st != OK || !jinja_parse_enter(p)) return NULL;
    jinja_node *n;
    if (jinja_parse_take_op(p, "-")) {
        n = unary(p, OP_NEG, parse_unary(p, false));
    } else if (jinja_parse_take_op(p, "+")) {
        n = unary(p, OP_POS, parse_unary(p, false));
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    while (with_filter && p->st == OK) {
        if (jinja_parse_take_op(p, "|")) {
            n = jinja_parse_filters(p, n);
        } else if (jinja_parse_take_name(p, "is")) {
            n = parse_test(p, n);
        } else if (jinja_parse_take_op(p, "(")) {
            n = parse_call(p, n);
        } else {
            break;
        }
    }
    jinja_parse_leave(p);
    return p->st == OK ? n : NULL;
}

static jinja_node *parse_power(jinja_parser *p) {
    jinja_node *n = parse_unary(p, true);
    while (p->st == OK && jinja_parse_take_op(p, "**")) {
        n = binary(p, OP_POW, n, parse_unary(p, true));
    }
    return n;
}

static jinja_node *parse_product(jinja_parser *p) {
    jinja_node *n = parse_power(p);
    while (p->st == OK) {
        jinja_op op;
        if (jinja_parse_take_op(p, "*")) {
            op = OP_MUL;
        } else if (jinja_parse_take_op(p, "/")) {
            op = OP_DIV;
        } else if (jinja_parse_take_op(p, "//")) {
            op = OP_FLOORDIV;
        } else if (jinja_parse_take_op(p, "%")) {
            op = OP_MOD;
        } else {
            break;
        }
        n = binary(p, op, n, parse_power(p));
    }
    return n;
}

/* a op a op a as one node of many children: long chains stay flat and strings are joined once. */
static jinja_node *parse_chain(jinja_parser *p, jinja_node *first, jinja_node_kind kind, int op,
                               const char *word, jinja_node *(*next)(jinja_parser *p)) {
    const bool is_op = kind == NODE_SUM;
    if (p->st != OK || !(is_op ? jinja_parse_is_op(p, word) : jinja_parse_is_name(p, word))) {
        return first;
    }
    jinja_node *n = jinja_parse_node(p, kind);
    if (n) n->op = op;
    jinja_kids k = {0};
    jinja_parse_push(p, &k, first, NULL);
    while (p->st == OK && (is_op ? jinja_parse_take_op(p, word) : jinja_parse_take_name(p, word))) {
        jinja_parse_push(p, &k, next(p), NULL);
    }
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_concat(jinja_parser *p) {
    return parse_chain(p, parse_product(p), NODE_SUM, OP_CONCAT, "~", parse_product);
}

static jinja_node *parse_sum(jinja_parser *p) {
    jinja_node *n = parse_concat(p);
    while (p->st == OK) {
        if (jinja_parse_is_op(p, "+")) {
            n = parse_chain(p, n, NODE_SUM, OP_ADD, "+", parse_concat);
        } else if (jinja_parse_take_op(p, "-")) {
            n = binary(p, OP_SUB, n, parse_concat(p));
        } else {
            break;
        }
    }
    return n;
}

static int take_comparison(jinja_parser *p) {
    static const struct {
        const char *word;
        jinja_op op;
    } all[] = {{"==", OP_EQ}, {"!=", OP_NE}, {"<=", OP_LE},
               {">=", OP_GE}, {"<", OP_LT},  {">", OP_GT}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (jinja_parse_take_op(p, all[i].word)) return (int)all[i].op;
    }
    if (jinja_parse_take_name(p, "in")) return OP_IN;
    if (!jinja_parse_is_name(p, "not")) return -1;
    jinja_parse_next(p);
    if (jinja_parse_take_name(p, "in")) return OP_NOT_IN;
    jinja_parse_fail(p, E_FORMAT, "'in' is missing after 'not'");
    return -1;
}

static jinja_node *parse_compare(jinja_parser *p) {
    jinja_node *first = parse_sum(p);
    enum { OPS_MAX = 16 };
    uint8_t ops[OPS_MAX];
    int n_ops = 0, op;
    jinja_kids k = {0};
    jinja_node *n = NULL;
    while (p->st == OK && (op = take_comparison(p)) >= 0) {
        if (n_ops == 0) {
            n = jinja_parse_node(p, NODE_COMPARE);
            jinja_parse_push(p, &k, first, NULL);
        }
        if (n_ops == OPS_MAX) return jinja_parse_fail(p, E_UNSUPPORTED, "so long a comparison");
        ops[n_ops++] = (uint8_t)op;
        jinja_parse_push(p, &k, parse_sum(p), NULL);
    }
    if (n_ops == 0 || p->st != OK) return first;
    n->ops = arena_alloc(p->mem, OPS_MAX);
    if (!n->ops) return jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
    memcpy(n->ops, ops, (size_t)n_ops);
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_not(jinja_parser *p) {
    int n_nots = 0;
    while (jinja_parse_take_name(p, "not")) n_nots++;
    jinja_node *n = parse_compare(p);
    for (int i = 0; i < (n_nots > 2 ? 2 - n_nots % 2 : n_nots); i++) n = unary(p, OP_NOT, n);
    return n;
}

static jinja_node *parse_and(jinja_parser *p) {
    return parse_chain(p, parse_not(p), NODE_AND, 0, "and", parse_not);
}

static jinja_node *parse_or(jinja_parser *p) {
    return parse_chain(p, parse_and(p), NODE_OR, 0, "or", parse_and);
}

jinja_node *jinja_parse_expr(jinja_parser *p) {
    if (p->st != OK || !jinja_parse_enter(p)) return NULL;
    jinja_node *n = parse_or(p);
    while (p->st == OK && jinja_parse_take_name(p, "if")) {
        jinja_node *cond = jinja_parse_node(p, NODE_COND);
        jinja_kids k = {0};
        jinja_parse_push(p, &k, n, NULL);
        jinja_parse_push(p, &k, parse_or(p), NULL);
        jinja_parse_push(p, &k, jinja_parse_take_name(p, "else") ? jinja_parse_expr(p) : NULL,
                         NULL);
        n = jinja_parse_finish(p, cond, &k);
    }
    jinja_parse_leave(p);
    return p->st == OK ? n : NULL;
}

static bool ends_tuple(const jinja_parser *p) {
    return p->tok.kind == TOK_BLOCK_CLOSE || p->tok.kind == TOK_OUTPUT_CLOSE ||
           jinja_parse_is_op(p, ")") || jinja_parse_is_name(p, "if") ||
           jinja_parse_is_name(p, "recursive");
}

jinja_node *jinja_parse_tuple(jinja_parser *p, bool with_cond) {
    jinja_node *first = with_cond ? jinja_parse_expr(p) : parse_or(p);
    if (p->st != OK || !jinja_parse_is_op(p, ",")) return first;
    jinja_node *n = jinja_parse_node(p, NODE_LIST);
    if (n) n->op = 1;
    jinja_kids k = {0};
    jinja_parse_push(p, &k, first, NULL);
    while (p->st == OK && jinja_parse_take_op(p, ",") && !ends_tuple(p)) {
        jinja_parse_push(p, &k, with_cond ? jinja_parse_expr(p) : parse_or(p), NULL);
    }
    return jinja_parse_finish(p, n, &k);
}
