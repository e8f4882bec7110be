/* Template text to tokens, one at a time. Internal to jinja_*.c. White space control is done here:
 * `-` and `+` marks, trim_blocks (a newline after a block tag goes) and lstrip_blocks (blanks
 * before a block tag that starts its line go), both on as chat templates expect. */
#ifndef INFERD_ENGINE_JINJA_LEX_H
#define INFERD_ENGINE_JINJA_LEX_H

#include "engine/jinja.h"

typedef enum jinja_token_kind {
    TOK_END,
    TOK_TEXT,        /* between tags: s, len */
    TOK_BLOCK_OPEN,  /* {% */
    TOK_BLOCK_CLOSE, /* %} */
    TOK_OUTPUT_OPEN, /* {{ */
    TOK_OUTPUT_CLOSE,
    TOK_NAME,   /* s, len */
    TOK_STRING, /* s, len: the decoded value */
    TOK_INT,
    TOK_FLOAT,
    TOK_OPERATOR /* s, len: 1 or 2 characters */
} jinja_token_kind;

typedef struct jinja_token {
    jinja_token_kind kind;
    const char *s;
    size_t len;
    int64_t i;
    double f;
    int line;
} jinja_token;

typedef struct jinja_lexer {
    const char *s; /* newlines normalised to \n, one trailing newline removed */
    size_t len, pos;
    int line;
    int state;       /* what comes next: see jinja_lex.c */
    int n_brackets;  /* open ( [ { inside the tag */
    bool line_start; /* the last tag swallowed a newline, so text starts a line */
    bool strip_left; /* the last tag ended in -: white space after it goes */
    arena *mem;      /* decoded strings */
    error *err;
    status st;
} jinja_lexer;

/* Why an allocation from mem failed: its budget, or the machine's memory. */
static inline status jinja_memory_status(const arena *mem) {
    return mem->budget_bytes - mem->used_bytes < (1u << 20) ? E_TOO_LARGE : E_NOMEM;
}

/* source is copied into mem. */
BASE_MUST_USE status jinja_lex_init(jinja_lexer *l, const char *source, size_t len, arena *mem,
                                    error *err);
BASE_MUST_USE status jinja_lex_next(jinja_lexer *l, jinja_token *out);
#endif
