/* Statements. */
#include "engine/jinja_parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/limits.h"

enum { HEIGHT_MAX = 4 * LIMIT_TEMPLATE_DEPTH };

void *jinja_parse_fail(jinja_parser *p, status st, const char *fmt, ...) {
    if (p->st == OK) {
        char text[256];
        va_list args;
        va_start(args, fmt);
        vsnprintf(text, sizeof text, fmt, args);
        va_end(args);
        p->st = error_set(p->err, st, "chat template, line %d: %s%s", p->tok.line, text,
                          st == E_UNSUPPORTED ? " is not supported" : "");
    }
    return NULL;
}

void jinja_parse_next(jinja_parser *p) {
    if (p->st != OK) return;
    p->st = jinja_lex_next(&p->lex, &p->tok);
}

static bool token_is(const jinja_parser *p, jinja_token_kind kind, const char *word) {
    return p->st == OK && p->tok.kind == kind && strlen(word) == p->tok.len &&
           memcmp(p->tok.s, word, p->tok.len) == 0;
}

bool jinja_parse_is_name(const jinja_parser *p, const char *name) {
    return token_is(p, TOK_NAME, name);
}

bool jinja_parse_is_op(const jinja_parser *p, const char *op) {
    return token_is(p, TOK_OPERATOR, op);
}

bool jinja_parse_take_name(jinja_parser *p, const char *name) {
    if (!jinja_parse_is_name(p, name)) return false;
    jinja_parse_next(p);
    return true;
}

bool jinja_parse_take_op(jinja_parser *p, const char *op) {
    if (!jinja_parse_is_op(p, op)) return false;
    jinja_parse_next(p);
    return true;
}

void jinja_parse_expect_op(jinja_parser *p, const char *op) {
    if (!jinja_parse_take_op(p, op)) jinja_parse_fail(p, E_FORMAT, "'%s' is missing", op);
}

const char *jinja_parse_name(jinja_parser *p) {
    if (p->st != OK) return NULL;
    if (p->tok.kind != TOK_NAME) return jinja_parse_fail(p, E_FORMAT, "a name is missing");
    char *name = arena_strndup(p->mem, p->tok.s, p->tok.len);
    if (!name) return jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
    jinja_parse_next(p);
    return name;
}

jinja_node *jinja_parse_node(jinja_parser *p, jinja_node_kind kind) {
    if (p->st != OK) return NULL;
    jinja_node *n = arena_calloc(p->mem, 1, sizeof *n);
    if (!n) return jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
    n->kind = kind;
    n->line = p->tok.line;
    return n;
}

void jinja_parse_push(jinja_parser *p, jinja_kids *k, jinja_node *n, const char *key) {
    if (p->st != OK) return;
    if (k->n == k->capacity) {
        const int capacity = k->capacity ? 2 * k->capacity : 4;
        jinja_node **v = arena_calloc(p->mem, (size_t)capacity, sizeof *v);
        const char **keys = arena_calloc(p->mem, (size_t)capacity, sizeof *keys);
        if (!v || !keys) {
            jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
            return;
        }
        if (k->n > 0) {
            memcpy(v, k->v, (size_t)k->n * sizeof(jinja_node *));
            memcpy(keys, k->key, (size_t)k->n * sizeof(char *));
        }
        k->v = v;
        k->key = keys;
        k->capacity = capacity;
    }
    k->v[k->n] = n;
    k->key[k->n++] = key;
}

jinja_node *jinja_parse_finish(jinja_parser *p, jinja_node *n, const jinja_kids *k) {
    if (p->st != OK || !n) return NULL;
    n->kid = k->v;
    n->key = k->key;
    n->n_kids = k->n;
    for (int i = 0; i < k->n; i++) {
        if (k->v[i] && k->v[i]->height >= n->height) n->height = k->v[i]->height + 1;
    }
    if (n->height > HEIGHT_MAX) return jinja_parse_fail(p, E_TOO_LARGE, "nested too deep");
    return n;
}

bool jinja_parse_enter(jinja_parser *p) {
    if (++p->depth <= 3 * LIMIT_TEMPLATE_DEPTH) return true; /* an operand takes three levels */
    jinja_parse_fail(p, E_TOO_LARGE, "nested too deep");
    return false;
}

void jinja_parse_leave(jinja_parser *p) {
    p->depth--;
}

static jinja_node *parse_statement(jinja_parser *p);

/* Statements up to a block tag whose name is in `ends` (NULL-terminated); its name is the current
 * token then. Without ends: up to the end of the template. */
static jinja_node *parse_body(jinja_parser *p, const char *const *ends) {
    jinja_node *body = jinja_parse_node(p, NODE_BODY);
    jinja_kids k = {0};
    if (!jinja_parse_enter(p)) return NULL;
    while (p->st == OK) {
        jinja_node *n = NULL;
        if (p->tok.kind == TOK_END) {
            if (ends) jinja_parse_fail(p, E_FORMAT, "'%s' is missing", ends[0]);
            break;
        }
        if (p->tok.kind == TOK_TEXT) {
            jinja_str *s = arena_calloc(p->mem, 1, sizeof *s);
            n = jinja_parse_node(p, NODE_TEXT);
            if (!s || !n)
                return jinja_parse_fail(p, jinja_memory_status(p->mem), "no memory for the tree");
            *s = (jinja_str){.s = p->tok.s, .len = p->tok.len};
            n->value = (jinja_value){.kind = JINJA_STRING, .u.s = s};
            jinja_parse_next(p);
            if (s->len == 0) continue;
        } else if (p->tok.kind == TOK_OUTPUT_OPEN) {
            jinja_parse_next(p);
            n = jinja_parse_node(p, NODE_OUTPUT);
            jinja_kids one = {0};
            jinja_parse_push(p, &one, jinja_parse_tuple(p, true), NULL);
            n = jinja_parse_finish(p, n, &one);
            if (p->st == OK && p->tok.kind != TOK_OUTPUT_CLOSE) {
                return jinja_parse_fail(p, E_FORMAT, "'}}' is missing");
            }
            jinja_parse_next(p);
        } else { /* TOK_BLOCK_OPEN: nothing else comes between tags */
            jinja_parse_next(p);
            bool end = false;
            for (int i = 0; ends && ends[i]; i++) end = end || jinja_parse_is_name(p, ends[i]);
            if (end) break;
            n = parse_statement(p);
        }
        jinja_parse_push(p, &k, n, NULL);
    }
    jinja_parse_leave(p);
    return jinja_parse_finish(p, body, &k);
}

static void expect_close(jinja_parser *p) {
    if (p->st == OK && p->tok.kind != TOK_BLOCK_CLOSE) {
        jinja_parse_fail(p, E_FORMAT, "'%%}' is missing");
    }
    jinja_parse_next(p);
}

/* A body and its end tag. */
static jinja_node *parse_block(jinja_parser *p, const char *end) {
    expect_close(p);
    const char *const ends[] = {end, NULL};
    jinja_node *body = parse_body(p, ends);
    jinja_parse_next(p);
    if (p->st == OK && p->tok.kind == TOK_NAME) jinja_parse_next(p); /* {% endmacro name %} */
    expect_close(p);
    return body;
}

static jinja_node *parse_if(jinja_parser *p) {
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    static const char *const last[] = {"endif", NULL};
    jinja_node *n = jinja_parse_node(p, NODE_IF);
    jinja_kids k = {0};
    do {
        jinja_parse_push(p, &k, jinja_parse_tuple(p, true), NULL);
        expect_close(p);
        jinja_parse_push(p, &k, parse_body(p, ends), NULL);
    } while (jinja_parse_take_name(p, "elif"));
    if (jinja_parse_take_name(p, "else")) {
        expect_close(p);
        jinja_parse_push(p, &k, parse_body(p, last), NULL);
    }
    jinja_parse_next(p);
    expect_close(p);
    return jinja_parse_finish(p, n, &k);
}

jinja_node *jinja_parse_target(jinja_parser *p, bool namespaces) {
    const bool parenthesis = jinja_parse_take_op(p, "(");
    jinja_node *tuple = jinja_parse_node(p, NODE_LIST);
    jinja_kids k = {0};
    bool comma = false;
    do {
        if (k.n > 0 && !(p->st == OK && p->tok.kind == TOK_NAME)) break; /* a trailing comma */
        jinja_node *n = jinja_parse_node(p, NODE_NAME);
        const char *name = jinja_parse_name(p);
        if (n) n->name = name;
        if (namespaces && jinja_parse_take_op(p, ".")) {
            jinja_node *attr = jinja_parse_node(p, NODE_ATTR);
            jinja_kids one = {0};
            jinja_parse_push(p, &one, n, NULL);
            const char *field = jinja_parse_name(p);
            if (attr) attr->name = field;
            n = jinja_parse_finish(p, attr, &one);
        }
        jinja_parse_push(p, &k, n, NULL);
        comma = jinja_parse_take_op(p, ",");
    } while (comma && p->st == OK);
    if (parenthesis) jinja_parse_expect_op(p, ")");
    if (p->st != OK) return NULL;
    if (k.n == 1 && !comma) return k.v[0];
    return jinja_parse_finish(p, tuple, &k);
}

static jinja_node *parse_for(jinja_parser *p) {
    static const char *const ends[] = {"endfor", "else", NULL};
    static const char *const last[] = {"endfor", NULL};
    jinja_node *n = jinja_parse_node(p, NODE_FOR);
    jinja_kids k = {0};
    jinja_parse_push(p, &k, jinja_parse_target(p, false), NULL);
    if (!jinja_parse_take_name(p, "in")) return jinja_parse_fail(p, E_FORMAT, "'in' is missing");
    jinja_parse_push(p, &k, jinja_parse_tuple(p, false), NULL);
    jinja_parse_push(p, &k, jinja_parse_take_name(p, "if") ? jinja_parse_expr(p) : NULL, NULL);
    if (jinja_parse_is_name(p, "recursive")) {
        return jinja_parse_fail(p, E_UNSUPPORTED, "a recursive loop");
    }
    expect_close(p);
    p->n_loops++;
    jinja_parse_push(p, &k, parse_body(p, ends), NULL);
    p->n_loops--;
    jinja_node *other = NULL;
    if (jinja_parse_take_name(p, "else")) {
        expect_close(p);
        other = parse_body(p, last);
    }
    jinja_parse_push(p, &k, other, NULL);
    jinja_parse_next(p);
    expect_close(p);
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_set(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_SET);
    jinja_kids k = {0};
    jinja_parse_push(p, &k, jinja_parse_target(p, true), NULL);
    if (jinja_parse_take_op(p, "=")) {
        jinja_parse_push(p, &k, jinja_parse_tuple(p, true), NULL);
        expect_close(p);
        return jinja_parse_finish(p, n, &k);
    }
    jinja_node *filter = NULL;
    if (jinja_parse_take_op(p, "|")) {
        jinja_node *hole = jinja_parse_node(p, NODE_NAME);
        if (hole) hole->name = "";
        filter = jinja_parse_filters(p, hole);
    }
    jinja_parse_push(p, &k, parse_block(p, "endset"), NULL);
    jinja_parse_push(p, &k, filter, NULL);
    if (n) n->kind = NODE_SETBLOCK;
    return jinja_parse_finish(p, n, &k);
}

/* Parameters in parentheses: names in key, defaults (or NULL) in kid. */
static void parse_parameters(jinja_parser *p, jinja_kids *k) {
    jinja_parse_expect_op(p, "(");
    while (p->st == OK && !jinja_parse_is_op(p, ")")) {
        const char *name = jinja_parse_name(p);
        jinja_parse_push(p, k, jinja_parse_take_op(p, "=") ? jinja_parse_expr(p) : NULL, name);
        if (!jinja_parse_take_op(p, ",")) break;
    }
    jinja_parse_expect_op(p, ")");
}

/* break and continue do not reach through a macro's body. */
static jinja_node *parse_macro_body(jinja_parser *p, const char *end) {
    const int n_loops = p->n_loops;
    p->n_loops = 0;
    jinja_node *body = parse_block(p, end);
    p->n_loops = n_loops;
    return body;
}

static jinja_node *parse_macro(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_MACRO);
    const char *name = jinja_parse_name(p);
    if (n) n->name = name;
    jinja_kids k = {0};
    jinja_parse_push(p, &k, NULL, NULL); /* the body's place */
    parse_parameters(p, &k);
    jinja_node *body = parse_macro_body(p, "endmacro");
    if (p->st == OK) k.v[0] = body;
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_callblock(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_CALLBLOCK), *macro = jinja_parse_node(p, NODE_MACRO);
    jinja_kids k = {0}, inner = {0};
    jinja_parse_push(p, &inner, NULL, NULL);
    if (jinja_parse_is_op(p, "(")) parse_parameters(p, &inner);
    jinja_node *call = jinja_parse_expr(p);
    if (p->st == OK && call->kind != NODE_CALL) {
        return jinja_parse_fail(p, E_FORMAT, "a call is missing");
    }
    jinja_node *body = parse_macro_body(p, "endcall");
    if (p->st != OK) return NULL;
    inner.v[0] = body;
    macro->name = "caller";
    jinja_parse_push(p, &k, call, NULL);
    jinja_parse_push(p, &k, jinja_parse_finish(p, macro, &inner), NULL);
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_filterblock(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_FILTERBLOCK), *hole = jinja_parse_node(p, NODE_NAME);
    if (hole) hole->name = "";
    jinja_kids k = {0};
    jinja_node *filter = jinja_parse_filters(p, hole);
    jinja_parse_push(p, &k, parse_block(p, "endfilter"), NULL);
    jinja_parse_push(p, &k, filter, NULL);
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_with(jinja_parser *p) {
    jinja_node *n = jinja_parse_node(p, NODE_WITH);
    jinja_kids k = {0};
    jinja_parse_push(p, &k, NULL, NULL);
    while (p->st == OK && p->tok.kind != TOK_BLOCK_CLOSE) {
        if (k.n > 1) jinja_parse_expect_op(p, ",");
        jinja_parse_push(p, &k, jinja_parse_target(p, false), NULL);
        jinja_parse_expect_op(p, "=");
        jinja_parse_push(p, &k, jinja_parse_expr(p), NULL);
    }
    jinja_node *body = parse_block(p, "endwith");
    if (p->st == OK) k.v[0] = body;
    return jinja_parse_finish(p, n, &k);
}

static jinja_node *parse_jump(jinja_parser *p, jinja_node_kind kind) {
    if (p->n_loops == 0) return jinja_parse_fail(p, E_FORMAT, "break or continue outside a loop");
    jinja_node *n = jinja_parse_node(p, kind);
    expect_close(p);
    return n;
}

/* The current token is the word after {%. */
static jinja_node *parse_statement(jinja_parser *p) {
    if (jinja_parse_take_name(p, "if")) return parse_if(p);
    if (jinja_parse_take_name(p, "for")) return parse_for(p);
    if (jinja_parse_take_name(p, "set")) return parse_set(p);
    if (jinja_parse_take_name(p, "macro")) return parse_macro(p);
    if (jinja_parse_take_name(p, "call")) return parse_callblock(p);
    if (jinja_parse_take_name(p, "filter")) return parse_filterblock(p);
    if (jinja_parse_take_name(p, "with")) return parse_with(p);
    if (jinja_parse_take_name(p, "generation")) return parse_block(p, "endgeneration");
    if (jinja_parse_take_name(p, "break")) return parse_jump(p, NODE_BREAK);
    if (jinja_parse_take_name(p, "continue")) return parse_jump(p, NODE_CONTINUE);
    if (p->st == OK && p->tok.kind != TOK_NAME) {
        return jinja_parse_fail(p, E_FORMAT, "a tag without a name");
    }
    const int len = p->tok.len < 64 ? (int)p->tok.len : 64;
    if (p->st == OK && (len > 3 && memcmp(p->tok.s, "end", 3) == 0)) {
        return jinja_parse_fail(p, E_FORMAT, "unexpected '%.*s'", len, p->tok.s);
    }
    if (jinja_parse_is_name(p, "else") || jinja_parse_is_name(p, "elif")) {
        return jinja_parse_fail(p, E_FORMAT, "unexpected '%.*s'", len, p->tok.s);
    }
    return jinja_parse_fail(p, E_UNSUPPORTED, "tag '%.*s'", len, p->tok.s);
}

status jinja_parse(const char *source, size_t len, arena *mem, jinja_node **out, error *err) {
    jinja_parser p = {.mem = mem, .err = err};
    p.tok.line = 1;
    p.st = jinja_lex_init(&p.lex, source, len, mem, err);
    jinja_parse_next(&p);
    jinja_node *tree = parse_body(&p, NULL);
    if (p.st == OK) *out = tree;
    return p.st;
}

bool jinja_mentions(const jinja_node *n, const char *name) {
    if (!n) return false;
    if (n->kind == NODE_NAME && strcmp(n->name, name) == 0) return true;
    for (int i = 0; i < n->n_kids; i++) {
        if (jinja_mentions(n->kid[i], name)) return true;
    }
    return false;
}
