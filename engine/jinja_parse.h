/* The parser's state, shared by jinja_parse.c (statements) and jinja_parse_expr.c. */
#ifndef INFERD_ENGINE_JINJA_PARSE_H
#define INFERD_ENGINE_JINJA_PARSE_H

#include "engine/jinja_lex.h"

typedef struct jinja_parser {
    jinja_lexer lex;
    jinja_token tok; /* the current one */
    arena *mem;
    error *err;
    status st; /* sticky: after the first error every function returns NULL */
    int depth;
    int n_loops; /* open loops around the current place, for break and continue */
} jinja_parser;

typedef struct jinja_kids { /* grows in the arena */
    jinja_node **v;
    const char **key;
    int n, capacity;
} jinja_kids;

/* Records the first error and returns NULL. */
void *jinja_parse_fail(jinja_parser *p, status st, const char *fmt, ...) BASE_PRINTF(3, 4);
void jinja_parse_next(jinja_parser *p);
bool jinja_parse_is_name(const jinja_parser *p, const char *name);
bool jinja_parse_is_op(const jinja_parser *p, const char *op);
/* Skips the token if it is there. */
bool jinja_parse_take_name(jinja_parser *p, const char *name);
bool jinja_parse_take_op(jinja_parser *p, const char *op);
void jinja_parse_expect_op(jinja_parser *p, const char *op);
/* NUL-terminated copy of the current name token, which is skipped; NULL if it is no name. */
const char *jinja_parse_name(jinja_parser *p);
jinja_node *jinja_parse_node(jinja_parser *p, jinja_node_kind kind);
void jinja_parse_push(jinja_parser *p, jinja_kids *k, jinja_node *n, const char *key);
/* Gives the node its children; fails when the tree gets too high. */
jinja_node *jinja_parse_finish(jinja_parser *p, jinja_node *n, const jinja_kids *k);
/* One more level of nesting in the source; false: too deep. */
bool jinja_parse_enter(jinja_parser *p);
void jinja_parse_leave(jinja_parser *p);

jinja_node *jinja_parse_expr(jinja_parser *p);                  /* one expression */
jinja_node *jinja_parse_tuple(jinja_parser *p, bool with_cond); /* or several with commas */
/* A filter and those piped after it, applied to `self`; the current token is the first name. */
jinja_node *jinja_parse_filters(jinja_parser *p, jinja_node *self);
/* A name, several names, or (namespaces) name.attribute. */
jinja_node *jinja_parse_target(jinja_parser *p, bool namespaces);
#endif
