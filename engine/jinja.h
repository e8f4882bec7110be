/* A sandboxed interpreter of the Jinja that chat templates use. Internal to engine/chat*.c and
 * engine/jinja_*.c.
 *
 * A template is parsed once into a tree (jinja_lex.c, jinja_parse*.c) that does not change any
 * more. A rendering (struct jinja) walks the tree (jinja_exec.c: statements, jinja_eval.c:
 * expressions) and takes all memory from one arena with a budget. It has no access to files, clocks
 * (but strftime_now) or the process, and it ends: each node costs fuel, and so do the bytes that
 * strings operations touch.
 *
 * Origin: each byte of each string is markup (written by the template's author) or literal (came
 * with the request). Every operation on strings keeps that, so the output can be cut into parts.
 *
 * Errors are sticky: the first one sets jinja.st; afterwards every function returns at once with an
 * undefined value, and loops stop. */
#ifndef INFERD_ENGINE_JINJA_H
#define INFERD_ENGINE_JINJA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"

enum { ORIGIN_MARKUP = 0, ORIGIN_LITERAL = 1, ORIGIN_MIXED = 2 };

typedef struct jinja_str {
    const char *s; /* UTF-8, not NUL-terminated */
    size_t len;
    int origin;          /* ORIGIN_* */
    const uint8_t *mask; /* [len] ORIGIN_MARKUP or ORIGIN_LITERAL; only if mixed */
} jinja_str;

typedef enum jinja_kind {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_DICT,
    JINJA_NAMESPACE, /* a dict whose entries can be assigned */
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_FUNCTION, /* a global function */
    JINJA_METHOD    /* a method of a value, or of a loop */
} jinja_kind;

typedef struct jinja_value {
    jinja_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        const jinja_str *s;
        struct jinja_list *list;
        struct jinja_dict *dict;
        struct jinja_loop *loop;
        const struct jinja_macro *macro;
        const struct jinja_method *method;
        int function;     /* enum jinja_function */
        const char *what; /* undefined: how the message starts, e.g. "'x' is undefined"; or NULL */
    } u;
} jinja_value;

typedef struct jinja_list {
    jinja_value *v;
    size_t n, capacity;
    bool tuple; /* shows in its text only */
} jinja_list;

typedef struct jinja_entry {
    jinja_value key, value;
} jinja_entry;
typedef struct jinja_dict {
    jinja_entry *v; /* in order of insertion */
    size_t n, capacity;
} jinja_dict;

typedef struct jinja_method {
    jinja_value self;
    const char *name;
} jinja_method;

/* The names of a scope. Scopes nest: a loop's body, a macro's body. */
typedef struct jinja_scope {
    struct jinja_scope *parent;
    struct jinja_binding *first;
} jinja_scope;
typedef struct jinja_binding {
    struct jinja_binding *next;
    const char *name;
    jinja_value value;
} jinja_binding;

typedef struct jinja_macro {
    const struct jinja_node *node;
    jinja_scope *scope; /* where it was defined */
} jinja_macro;

typedef struct jinja_loop {
    const jinja_list *items;
    size_t index0;
    int depth;
    jinja_value changed; /* argument of the last loop.changed() */
} jinja_loop;

/* ---- the tree ---- */
typedef enum jinja_node_kind {
    /* expressions: kid[] as stated */
    NODE_CONST,   /* value */
    NODE_NAME,    /* name */
    NODE_LIST,    /* kid: items; op: 1 a tuple */
    NODE_DICT,    /* kid: key, value, key, value ... */
    NODE_ATTR,    /* kid[0].name */
    NODE_ITEM,    /* kid[0][kid[1]] */
    NODE_SLICE,   /* kid[0][kid[1]:kid[2]:kid[3]], each may be NULL */
    NODE_CALL,    /* kid[0](kid[1..]), key[i] names a keyword argument */
    NODE_FILTER,  /* kid[0] | name(kid[1..]); op: enum jinja_filter */
    NODE_TEST,    /* kid[0] is name(kid[1..]); op: enum jinja_test */
    NODE_UNARY,   /* op kid[0] */
    NODE_BINARY,  /* kid[0] op kid[1] */
    NODE_SUM,     /* kid[0] + kid[1] + ...; op: OP_ADD or OP_CONCAT */
    NODE_AND,     /* kid[0] and kid[1] and ... */
    NODE_OR,      /* kid[0] or kid[1] or ... */
    NODE_COMPARE, /* kid[0] ops[0] kid[1] ops[1] kid[2] ... */
    NODE_COND,    /* kid[0] if kid[1] else kid[2] (or NULL) */
    /* statements */
    NODE_BODY,        /* kid: statements */
    NODE_TEXT,        /* value */
    NODE_OUTPUT,      /* kid[0] */
    NODE_IF,          /* kid: condition, body, condition, body ..., [else body] */
    NODE_FOR,         /* kid: target, iterable, filter or NULL, body, else or NULL */
    NODE_SET,         /* kid: target, value */
    NODE_SETBLOCK,    /* kid: target, body, filter (over a NODE_NAME "") or NULL */
    NODE_MACRO,       /* name; kid[0] body, then defaults or NULL; key: parameter names */
    NODE_CALLBLOCK,   /* kid: call, macro */
    NODE_FILTERBLOCK, /* kid: body, filter */
    NODE_WITH,        /* kid: body, target, value, target, value ... */
    NODE_BREAK,
    NODE_CONTINUE
} jinja_node_kind;

typedef enum jinja_op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_CONCAT,
    OP_NEG,
    OP_POS,
    OP_NOT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_GT,
    OP_LE,
    OP_GE,
    OP_IN,
    OP_NOT_IN
} jinja_op;

typedef struct jinja_node {
    jinja_node_kind kind;
    int op;
    int line;
    int height; /* of the subtree */
    const char *name;
    jinja_value value;
    struct jinja_node **kid;
    int n_kids;
    const char **key; /* parallel to kid; NULL: positional */
    uint8_t *ops;     /* NODE_COMPARE */
} jinja_node;

/* Parses source into a tree that lives in mem. E_FORMAT, E_UNSUPPORTED (line and construct),
 * E_TOO_LARGE, E_NOMEM. */
BASE_MUST_USE status jinja_parse(const char *source, size_t len, arena *mem, jinja_node **out,
                                 error *err);
/* True if the tree reads the variable. */
bool jinja_mentions(const jinja_node *n, const char *name);

/* ---- a rendering ---- */
typedef struct jinja_buffer {
    char *s;
    uint8_t *mask; /* [len] ORIGIN_MARKUP or ORIGIN_LITERAL */
    size_t len, capacity;
} jinja_buffer;

typedef struct jinja {
    arena mem;
    jinja_scope globals;
    jinja_buffer *out; /* what {{ }} writes to */
    long fuel;
    size_t work; /* bytes touched, not yet paid with fuel */
    int depth;   /* of nested evaluation */
    int n_calls; /* nested macro calls */
    int line;    /* of the statement that runs */
    status st;
    error *err;
} jinja;

void jinja_init(jinja *x, size_t memory_bytes, error *err);
void jinja_deinit(jinja *x);
/* Runs the tree; the output goes to *out. */
status jinja_run(jinja *x, const jinja_node *tree, jinja_buffer *out);
void jinja_set_global(jinja *x, const char *name, jinja_value v);

/* ---- jinja_value.c ---- */
jinja_value jinja_fail(jinja *x, status st, const char *fmt, ...) BASE_PRINTF(3, 4);
void *jinja_alloc(jinja *x, size_t bytes); /* NULL: x has failed */
/* Pays for touching bytes; false: out of fuel. */
bool jinja_touch(jinja *x, size_t bytes);
static inline jinja_value jinja_undefined(const char *what) {
    return (jinja_value){.kind = JINJA_UNDEFINED, .u.what = what};
}
static inline jinja_value jinja_none(void) {
    return (jinja_value){.kind = JINJA_NONE};
}
static inline jinja_value jinja_bool(bool b) {
    return (jinja_value){.kind = JINJA_BOOL, .u.b = b};
}
static inline jinja_value jinja_int(int64_t i) {
    return (jinja_value){.kind = JINJA_INT, .u.i = i};
}
static inline jinja_value jinja_float(double f) {
    return (jinja_value){.kind = JINJA_FLOAT, .u.f = f};
}
/* Copies nothing: s must outlive the rendering. */
jinja_value jinja_string(jinja *x, const char *s, size_t len, int origin);
jinja_value jinja_text(jinja *x, const char *literal); /* NUL-terminated, markup */
jinja_value jinja_substring(jinja *x, const jinja_str *s, size_t from, size_t to);
jinja_value jinja_list_new(jinja *x, size_t capacity);
void jinja_list_push(jinja *x, jinja_list *l, jinja_value v);
jinja_value jinja_dict_new(jinja *x);
void jinja_dict_set(jinja *x, jinja_dict *d, jinja_value key, jinja_value v);
/* NULL: no such key. */
jinja_value *jinja_dict_find(jinja *x, const jinja_dict *d, jinja_value key);
jinja_value *jinja_dict_find_name(jinja *x, const jinja_dict *d, const char *name);

bool jinja_truthy(jinja *x, jinja_value v);
bool jinja_equal(jinja *x, jinja_value a, jinja_value b);
/* <0, 0, >0; fails if the two have no order. */
int jinja_compare(jinja *x, jinja_value a, jinja_value b);
bool jinja_contains(jinja *x, jinja_value container, jinja_value item);
/* Items of a list, keys of a dict, characters of a string; fails for what is not iterable. */
const jinja_list *jinja_items(jinja *x, jinja_value v);
const char *jinja_kind_name(jinja_value v); /* as Python's type names */
bool jinja_is_number(jinja_value v);
double jinja_number(jinja_value v);
/* f without its fraction; fails when that is no int64. jinja_eval.c */
jinja_value jinja_int_of(jinja *x, double f);

/* ---- jinja_text.c: buffers, text of values, characters ---- */
void jinja_append(jinja *x, jinja_buffer *b, const char *s, size_t len, int origin);
void jinja_append_str(jinja *x, jinja_buffer *b, const jinja_str *s);
void jinja_append_sub(jinja *x, jinja_buffer *b, const jinja_str *s, size_t from, size_t to);
void jinja_append_value(jinja *x, jinja_buffer *b, jinja_value v); /* str(v) */
void jinja_append_repr(jinja *x, jinja_buffer *b, jinja_value v);
jinja_value jinja_buffer_value(jinja *x, const jinja_buffer *b);
jinja_value jinja_to_string(jinja *x, jinja_value v);
size_t jinja_length(jinja *x, const jinja_str *s); /* characters */
/* Byte offset of character i (0..length). */
size_t jinja_offset(jinja *x, const jinja_str *s, size_t i);
/* First occurrence of needle at or after from; SIZE_MAX: none. */
size_t jinja_find(jinja *x, const jinja_str *s, const char *needle, size_t len, size_t from);
bool jinja_is_space(uint32_t cp); /* as str.isspace */
/* Python's repr of a float; out[32]. */
size_t jinja_format_float(double f, char out[32]);

/* ---- jinja_json.c ---- */
/* Text of v as json.dumps writes it; indent < 0: one line. */
jinja_value jinja_to_json(jinja *x, jinja_value v, int indent, bool ascii, bool sort_keys,
                          const jinja_str *item_sep, const jinja_str *key_sep);
/* Parses JSON text; its strings have origin literal. E_INVAL on bad JSON. */
jinja_value jinja_from_json(jinja *x, const char *text, size_t len, const char *what);

/* ---- arguments of a call ---- */
typedef struct jinja_args {
    const jinja_value *v;
    const char *const *key; /* NULL or names, parallel to v */
    int n;
} jinja_args;
/* The argument at position i (keywords do not count) or called name (may be NULL); undefined: not
 * given. */
jinja_value jinja_arg(const jinja_args *a, int i, const char *name);
static inline bool jinja_given(jinja_value v) {
    return v.kind != JINJA_UNDEFINED;
}

/* ---- names known at parse time; -1: unknown ---- */
int jinja_filter_find(const char *name);
int jinja_test_find(const char *name);
bool jinja_method_known(const char *name);
jinja_value jinja_filter_apply(jinja *x, int filter, jinja_value self, const jinja_args *a);
bool jinja_test_apply(jinja *x, int test, jinja_value self, const jinja_args *a);
jinja_value jinja_method_call(jinja *x, const jinja_method *m, const jinja_args *a);
/* A method of that name on a value of this kind. */
bool jinja_has_method(jinja_value v, const char *name);
jinja_value jinja_function_find(const char *name); /* undefined: no such global function */
jinja_value jinja_function_call(jinja *x, int function, const jinja_args *a);
/* strip, lstrip, rstrip: sides 1 left, 2 right, 3 both; chars NULL: white space */
jinja_value jinja_strip(jinja *x, const jinja_str *s, int sides, const jinja_str *chars);
jinja_value jinja_replace(jinja *x, const jinja_str *s, const jinja_str *from, const jinja_str *to,
                          int64_t count);
jinja_value jinja_change_case(jinja *x, const jinja_str *s, char how); /* u l c t T */

/* ---- jinja_eval.c, jinja_exec.c ---- */
jinja_value jinja_eval(jinja *x, jinja_scope *scope, const jinja_node *n);
jinja_value jinja_get_attr(jinja *x, jinja_value v, const char *name);
jinja_value jinja_get_item(jinja *x, jinja_value v, jinja_value key);
jinja_value jinja_add(jinja *x, jinja_value a, jinja_value b);
jinja_value jinja_call_macro(jinja *x, const jinja_macro *m, const jinja_args *a,
                             jinja_value caller);
void jinja_bind(jinja *x, jinja_scope *scope, const char *name, jinja_value v);
#endif
