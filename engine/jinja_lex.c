#include "engine/jinja_lex.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { IN_TEXT, IN_BLOCK, IN_OUTPUT, AT_BLOCK, AT_OUTPUT };

static status lex_error(jinja_lexer *l, const char *what) {
    return l->st = error_set(l->err, E_FORMAT, "chat template, line %d: %s", l->line, what);
}

static status out_of_memory(jinja_lexer *l) {
    return l->st = error_set(l->err, jinja_memory_status(l->mem),
                             "chat template: no memory for the tree");
}

status jinja_lex_init(jinja_lexer *l, const char *source, size_t len, arena *mem, error *err) {
    *l = (jinja_lexer){.line = 1, .mem = mem, .err = err, .line_start = true};
    char *s = arena_alloc(mem, len + 1);
    if (!s) return out_of_memory(l);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (source[i] == '\r') {
            if (i + 1 < len && source[i + 1] == '\n') continue;
            s[n++] = '\n';
        } else {
            s[n++] = source[i];
        }
    }
    if (n > 0 && s[n - 1] == '\n') n--;
    s[n] = '\0';
    l->s = s;
    l->len = n;
    return OK;
}

static bool at(const jinja_lexer *l, size_t pos, const char *word) {
    const size_t n = strlen(word);
    return l->len - pos >= n && memcmp(l->s + pos, word, n) == 0;
}

static bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void advance(jinja_lexer *l, size_t to) {
    for (; l->pos < to; l->pos++) l->line += l->s[l->pos] == '\n';
}

/* Position of the next {{, {% or {# at or after pos; len if none. */
static size_t find_tag(const jinja_lexer *l, size_t pos) {
    while (pos + 1 < l->len) {
        const char *p = memchr(l->s + pos, '{', l->len - 1 - pos);
        if (!p) break;
        pos = (size_t)(p - l->s);
        if (p[1] == '{' || p[1] == '%' || p[1] == '#') return pos;
        pos++;
    }
    return l->len;
}

/* End of the text s[from..tag) once white space before the tag is dealt with. sign is the
 * character after the tag's opening. */
static size_t strip_text(const jinja_lexer *l, size_t from, size_t tag, char sign, bool output) {
    size_t end = tag;
    if (sign == '-') {
        while (end > from && is_blank(l->s[end - 1])) end--;
        return end;
    }
    if (sign == '+' || output) return end;
    size_t p = tag;
    while (p > from && l->s[p - 1] != '\n' && is_blank(l->s[p - 1])) p--;
    const bool starts_line = p > from ? l->s[p - 1] == '\n' : l->line_start;
    return starts_line ? p : end;
}

/* After the close of a block or comment: a newline goes, all white space after -. */
static void trim_after(jinja_lexer *l, bool minus, bool plus) {
    l->line_start = false;
    if (minus) {
        size_t p = l->pos;
        while (p < l->len && is_blank(l->s[p])) p++;
        l->line_start = p > l->pos && l->s[p - 1] == '\n';
        advance(l, p);
    } else if (!plus && l->pos < l->len && l->s[l->pos] == '\n') {
        advance(l, l->pos + 1);
        l->line_start = true;
    }
}

static status skip_comment(jinja_lexer *l) {
    size_t p = l->pos + 2;
    while (p + 1 < l->len && !(l->s[p] == '#' && l->s[p + 1] == '}')) p++;
    if (p + 1 >= l->len) return lex_error(l, "a comment without an end");
    const char sign = p > l->pos + 2 ? l->s[p - 1] : ' ';
    advance(l, p + 2);
    trim_after(l, sign == '-', sign == '+');
    return OK;
}

/* Length of "{% word %}" at pos with any white space marks, 0 if it is not there. */
static size_t plain_tag(const jinja_lexer *l, size_t pos, const char *word, char *open_sign,
                        char *close_sign) {
    if (!at(l, pos, "{%")) return 0;
    size_t p = pos + 2;
    *open_sign = p < l->len ? l->s[p] : ' ';
    if (*open_sign == '-' || *open_sign == '+') p++;
    while (p < l->len && is_blank(l->s[p])) p++;
    if (!at(l, p, word)) return 0;
    p += strlen(word);
    while (p < l->len && is_blank(l->s[p])) p++;
    *close_sign = p < l->len ? l->s[p] : ' ';
    if (*close_sign == '-' || *close_sign == '+') p++;
    return at(l, p, "%}") ? p + 2 - pos : 0;
}

/* The text between {% raw %} and {% endraw %}; pos is after the first. */
static status raw_text(jinja_lexer *l, jinja_token *out, char close_sign) {
    size_t from = l->pos;
    if (close_sign == '-') {
        while (from < l->len && is_blank(l->s[from])) from++;
    }
    char open = ' ', close = ' ';
    for (size_t p = from; p < l->len; p++) {
        const size_t n = plain_tag(l, p, "endraw", &open, &close);
        if (n == 0) continue;
        l->line_start = false;
        *out = (jinja_token){.kind = TOK_TEXT, .s = l->s + from, .line = l->line};
        out->len = strip_text(l, from, p, open, false) - from;
        advance(l, p + n);
        trim_after(l, close == '-', close == '+');
        return OK;
    }
    return lex_error(l, "raw without endraw");
}

static status lex_text(jinja_lexer *l, jinja_token *out) {
    for (;;) {
        const size_t from = l->pos, tag = find_tag(l, from);
        if (from == l->len) {
            *out = (jinja_token){.kind = TOK_END, .line = l->line};
            return OK;
        }
        *out = (jinja_token){.kind = TOK_TEXT, .s = l->s + from, .line = l->line};
        if (tag == l->len) {
            out->len = l->len - from;
            advance(l, l->len);
            return OK;
        }
        const char sign = tag + 2 < l->len ? l->s[tag + 2] : ' ';
        const bool output = l->s[tag + 1] == '{';
        out->len = strip_text(l, from, tag, sign, output) - from;
        advance(l, tag);
        if (l->s[tag + 1] == '#') {
            if (skip_comment(l) != OK) return l->st;
        } else {
            char open, close;
            const size_t raw = output ? 0 : plain_tag(l, tag, "raw", &open, &close);
            if (raw == 0) {
                l->state = output ? AT_OUTPUT : AT_BLOCK;
            } else if (out->len == 0) {
                advance(l, tag + raw);
                return raw_text(l, out, close);
            } else {
                l->line_start = false; /* the raw block is the next token */
                return OK;
            }
        }
        if (out->len > 0 || l->state != IN_TEXT) return OK;
    }
}

static bool is_name_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static int hex_value(char c) {
    if (is_digit(c)) return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xHH, \uHHHH, \UHHHHHHHH at s[i], i at the letter. Returns characters used, 0 if malformed. */
static size_t hex_escape(const char *s, size_t len, uint32_t *cp) {
    const size_t n = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : 8;
    if (len < n + 1) return 0;
    uint32_t v = 0;
    for (size_t i = 1; i <= n; i++) {
        const int h = hex_value(s[i]);
        if (h < 0) return 0;
        v = v << 4 | (uint32_t)h;
    }
    *cp = v;
    return v > 0x10FFFF || (v >= 0xD800 && v <= 0xDFFF) ? 0 : n + 1;
}

/* Decodes the escape whose backslash is at s[0]; returns the bytes used, 0 if malformed. */
static size_t unescape(const char *s, size_t len, char *out, size_t *n) {
    static const char from[] = "ntrabfv\\'\"", to[] = "\n\t\r\a\b\f\v\\'\"";
    *n = 0;
    if (len < 2) return 0;
    const char c = s[1];
    const char *known = memchr(from, c, sizeof from - 1);
    if (known) {
        out[(*n)++] = to[known - from];
        return 2;
    }
    if (c == '\n') return 2;
    if (c == 'x' || c == 'u' || c == 'U') {
        uint32_t cp;
        const size_t used = hex_escape(s + 1, len - 1, &cp);
        if (used) *n = utf8_put(cp, out);
        return used ? used + 1 : 0;
    }
    if (c >= '0' && c <= '7') {
        uint32_t cp = 0;
        size_t i = 1;
        for (; i < len && i < 4 && s[i] >= '0' && s[i] <= '7'; i++) {
            cp = cp * 8 + (uint32_t)(s[i] - '0');
        }
        *n = utf8_put(cp, out);
        return i;
    }
    out[(*n)++] = '\\'; /* an unknown escape stays as it is */
    return 1;
}

static status lex_string(jinja_lexer *l, jinja_token *out) {
    const char quote = l->s[l->pos];
    size_t end = l->pos + 1;
    while (end < l->len && l->s[end] != quote) end += l->s[end] == '\\' ? 2 : 1;
    if (end >= l->len) return lex_error(l, "a string without an end");
    char *s = arena_alloc(l->mem, end - l->pos + 4);
    if (!s) return out_of_memory(l);
    size_t n = 0;
    for (size_t i = l->pos + 1; i < end;) {
        if (l->s[i] != '\\') {
            s[n++] = l->s[i++];
            continue;
        }
        size_t made;
        const size_t used = unescape(l->s + i, end - i, s + n, &made);
        if (used == 0) return lex_error(l, "a malformed escape in a string");
        n += made;
        i += used;
    }
    *out = (jinja_token){.kind = TOK_STRING, .s = s, .len = n, .line = l->line};
    advance(l, end + 1);
    return OK;
}

static status lex_number(jinja_lexer *l, jinja_token *out) {
    char digits[64];
    size_t n = 0, p = l->pos;
    bool is_float = false;
    while (p < l->len && (is_digit(l->s[p]) || l->s[p] == '_' || l->s[p] == '.' || l->s[p] == 'e' ||
                          l->s[p] == 'E')) {
        const char c = l->s[p];
        const char next = p + 1 < l->len ? l->s[p + 1] : ' ';
        if (c == '.' && (is_float || !is_digit(next))) break;
        if (c == 'e' || c == 'E') {
            const bool sign = next == '-' || next == '+';
            if (!is_digit(sign && p + 2 < l->len ? l->s[p + 2] : next)) break;
            if (n + 2 < sizeof digits) digits[n++] = 'e';
            if (sign && n + 2 < sizeof digits) digits[n++] = next;
            p += sign ? 2 : 1;
            is_float = true;
            continue;
        }
        is_float = is_float || c == '.';
        if (n + 2 >= sizeof digits) return lex_error(l, "a number that is too long");
        if (c != '_') digits[n++] = c;
        p++;
    }
    digits[n] = '\0';
    *out = (jinja_token){.kind = is_float ? TOK_FLOAT : TOK_INT, .line = l->line};
    if (is_float) {
        out->f = strtod(digits, NULL);
    } else {
        if (n > 18) return lex_error(l, "an integer that is too large");
        out->i = strtoll(digits, NULL, 10);
    }
    advance(l, p);
    return OK;
}

/* The end of the tag at pos: %} }} with an optional mark. Returns its length or 0. */
static size_t tag_close(const jinja_lexer *l, char *sign) {
    const char *close = l->state == IN_BLOCK ? "%}" : "}}";
    *sign = ' ';
    if (at(l, l->pos, close)) return 2;
    const char c = l->s[l->pos];
    if ((c == '-' || (c == '+' && l->state == IN_BLOCK)) && at(l, l->pos + 1, close)) {
        *sign = c;
        return 3;
    }
    return 0;
}

static status lex_operator(jinja_lexer *l, jinja_token *out) {
    static const char *const two[] = {"**", "//", "==", "!=", "<=", ">="};
    *out = (jinja_token){.kind = TOK_OPERATOR, .s = l->s + l->pos, .len = 1, .line = l->line};
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++) {
        if (at(l, l->pos, two[i])) out->len = 2;
    }
    const char c = l->s[l->pos];
    if (out->len == 1 && !strchr("+-/*%~[]{}()<>=.:,|;", c)) {
        return lex_error(l, "an unexpected character");
    }
    if (c == '(' || c == '[' || c == '{') l->n_brackets++;
    if ((c == ')' || c == ']' || c == '}') && l->n_brackets > 0) l->n_brackets--;
    advance(l, l->pos + out->len);
    return OK;
}

static status lex_inside(jinja_lexer *l, jinja_token *out) {
    while (l->pos < l->len && is_blank(l->s[l->pos])) advance(l, l->pos + 1);
    if (l->pos >= l->len) return lex_error(l, "a tag without an end");
    char sign;
    const size_t close = l->n_brackets == 0 ? tag_close(l, &sign) : 0;
    if (close) {
        const bool block = l->state == IN_BLOCK;
        *out = (jinja_token){.kind = block ? TOK_BLOCK_CLOSE : TOK_OUTPUT_CLOSE, .line = l->line};
        advance(l, l->pos + close);
        trim_after(l, sign == '-', sign == '+' || !block);
        l->state = IN_TEXT;
        return OK;
    }
    const char c = l->s[l->pos];
    if (c == '\'' || c == '"') return lex_string(l, out);
    if (is_digit(c)) return lex_number(l, out);
    if (is_name_start(c)) {
        size_t p = l->pos;
        while (p < l->len && (is_name_start(l->s[p]) || is_digit(l->s[p]))) p++;
        *out =
            (jinja_token){.kind = TOK_NAME, .s = l->s + l->pos, .len = p - l->pos, .line = l->line};
        advance(l, p);
        return OK;
    }
    return lex_operator(l, out);
}

status jinja_lex_next(jinja_lexer *l, jinja_token *out) {
    if (l->st != OK) return l->st;
    if (l->state == IN_TEXT) return lex_text(l, out);
    if (l->state == AT_BLOCK || l->state == AT_OUTPUT) { /* pos is at the opening */
        const bool block = l->state == AT_BLOCK;
        size_t p = l->pos + 2;
        if (p < l->len && (l->s[p] == '-' || l->s[p] == '+')) p++;
        *out = (jinja_token){.kind = block ? TOK_BLOCK_OPEN : TOK_OUTPUT_OPEN, .line = l->line};
        advance(l, p);
        l->state = block ? IN_BLOCK : IN_OUTPUT;
        l->n_brackets = 0;
        return OK;
    }
    return lex_inside(l, out);
}
