/* The expressions (alternatives are tried in order, not by length; quantifiers are greedy):
 *   gpt-2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   smollm   \p{N} alone, then gpt-2 on what lies between
 *   llama3   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
 *             ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   qwen2    llama3 with \p{N} for \p{N}{1,3}
 *   tekken   [^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*|\p{N}|
 *             ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *            with U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], W = [\p{Ll}\p{Lm}\p{Lo}\p{M}]
 *   gpt-4o   tekken; each word may end in (?i:'s|'t|'re|'ve|'m|'ll|'d); digits as llama3
 *   default  [\p{P}\$\+<=>\^~\|]+ ; gpt-2 ; \p{N}+ ; [0-9][0-9][0-9], one after the other
 * \s+(?!\S) is a run of white space without its last character if something follows the run. */
#include "engine/pretokenize.h"

#include <string.h>

#include "engine/unicode.h"

static const struct {
    const char *name;
    pretokenizer pre;
} names[] = {
    {"gpt-2", PRE_GPT2},       {"phi-2", PRE_GPT2},
    {"mpt", PRE_GPT2},         {"olmo", PRE_GPT2},
    {"jais", PRE_GPT2},        {"trillion", PRE_GPT2},
    {"exaone4", PRE_GPT2},     {"smollm", PRE_SMOLLM},
    {"starcoder", PRE_SMOLLM}, {"refact", PRE_SMOLLM},
    {"codeshell", PRE_SMOLLM}, {"command-r", PRE_SMOLLM},
    {"exaone", PRE_SMOLLM},    {"minerva-7b", PRE_SMOLLM},
    {"qwen2", PRE_QWEN2},      {"deepseek-r1-qwen", PRE_QWEN2},
    {"megrez", PRE_QWEN2},     {"stablelm2", PRE_QWEN2},
    {"llama-bpe", PRE_LLAMA3}, {"llama3", PRE_LLAMA3},
    {"llama-v3", PRE_LLAMA3},  {"falcon3", PRE_LLAMA3},
    {"pixtral", PRE_LLAMA3},   {"dbrx", PRE_DBRX}, /* Phi-4 */
    {"smaug-bpe", PRE_DBRX},   {"tekken", PRE_TEKKEN},
    {"gpt-4o", PRE_GPT4O},     {"llama4", PRE_GPT4O},
    {"default", PRE_DEFAULT},
};

bool pretokenizer_find(const char *name, size_t len, pretokenizer *out) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strlen(names[i].name) == len && memcmp(names[i].name, name, len) == 0) {
            *out = names[i].pre;
            return true;
        }
    }
    return false;
}

const char *pretokenizer_name(pretokenizer p) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].pre == p) return names[i].name; /* the first is the main name */
    }
    return "";
}

/* A stretch of text in which one expression runs; look-ahead stops at its end. */
typedef struct stretch {
    const char *s;
    size_t end;
} stretch;

static unsigned classes(const stretch *t, size_t pos, size_t *width) {
    return unicode_classes_at(t->s, t->end, pos, width);
}

/* End of the run of characters at pos that have one of the classes in `any`. */
static size_t run_of(const stretch *t, size_t pos, unsigned any) {
    size_t width;
    while (pos < t->end && classes(t, pos, &width) & any) pos += width;
    return pos;
}

/* End of the run of characters that have none of the classes in `none`. */
static size_t run_without(const stretch *t, size_t pos, unsigned none) {
    size_t width;
    while (pos < t->end && !(classes(t, pos, &width) & none)) pos += width;
    return pos;
}

/* Length of 's 't 're 've 'm 'll 'd at pos, or 0. any_case also folds U+017F to s, as Unicode does.
 */
static size_t contraction(const stretch *t, size_t pos, bool any_case) {
    const size_t n = t->end - pos;
    if (n < 2 || t->s[pos] != '\'') return 0;
    const unsigned char a = (unsigned char)t->s[pos + 1];
    if (any_case && a == 0xC5 && n >= 3 && (unsigned char)t->s[pos + 2] == 0xBF) return 3;
    const char x = (char)(any_case && a < 0x80 ? a | 0x20 : a);
    if (any_case && a < 'A') return 0;
    if (x == 's' || x == 't' || x == 'm' || x == 'd') return 2;
    if (n < 3) return 0;
    const unsigned char b = (unsigned char)t->s[pos + 2];
    const char y = (char)(any_case && b >= 'A' && b < 0x80 ? b | 0x20 : b);
    return (x == 'r' && y == 'e') || (x == 'v' && y == 'e') || (x == 'l' && y == 'l') ? 3 : 0;
}

/* The alternatives for white space, pos being at some: \s*[\r\n]+ if newlines, \s+(?!\S), \s+. */
static size_t split_space(const stretch *t, size_t pos, bool newlines) {
    size_t p = pos, last = pos, after_newline = 0, width;
    while (p < t->end) {
        const unsigned c = classes(t, p, &width);
        if (!(c & UNI_SPACE)) break;
        last = p;
        p += width;
        if (c & UNI_NEWLINE) after_newline = p;
    }
    if (newlines && after_newline) return after_newline;
    return p == t->end || last == pos ? p : last;
}

static size_t split_gpt2(const stretch *t, size_t pos) {
    const size_t n = contraction(t, pos, false);
    if (n) return pos + n;
    size_t width, p = pos;
    if (t->s[p] == ' ' && p + 1 < t->end) p++;
    const unsigned c = classes(t, p, &width);
    if (c & UNI_LETTER) return run_of(t, p, UNI_LETTER);
    if (c & UNI_NUMBER) return run_of(t, p, UNI_NUMBER);
    if (!(c & UNI_SPACE)) return run_without(t, p, UNI_SPACE | UNI_LETTER | UNI_NUMBER);
    return split_space(t, pos, false);
}

/* \p{N}{1,max}; pos is at a number. */
static size_t split_digits(const stretch *t, size_t pos, int max) {
    size_t width;
    for (int i = 0; i < max && pos < t->end && classes(t, pos, &width) & UNI_NUMBER; i++) {
        pos += width;
    }
    return pos;
}

/* ` ?[^\s\p{L}\p{N}]+` and trailing newlines (and slashes), or white space. */
static size_t split_rest(const stretch *t, size_t pos, bool slashes) {
    size_t p = pos, width;
    if (t->s[p] == ' ' && p + 1 < t->end) p++;
    if (classes(t, p, &width) & (UNI_SPACE | UNI_LETTER | UNI_NUMBER)) {
        return split_space(t, pos, true);
    }
    p = run_without(t, p, UNI_SPACE | UNI_LETTER | UNI_NUMBER);
    while (p < t->end && (t->s[p] == '\r' || t->s[p] == '\n' || (slashes && t->s[p] == '/'))) p++;
    return p;
}

static size_t split_llama3(const stretch *t, size_t pos, int digits_max) {
    const size_t n = contraction(t, pos, true);
    if (n) return pos + n;
    size_t width, next_width;
    const unsigned c = classes(t, pos, &width);
    if (c & UNI_LETTER) return run_of(t, pos, UNI_LETTER);
    if (c & UNI_NUMBER) return split_digits(t, pos, digits_max);
    const size_t next = pos + width;
    if (!(c & UNI_NEWLINE) && next < t->end && classes(t, next, &next_width) & UNI_LETTER) {
        return run_of(t, next, UNI_LETTER);
    }
    return split_rest(t, pos, false);
}

/* The two word alternatives of tekken at pos; pos itself if neither matches. U* gives back
 * characters until W+ can start: at the last one that is both U and W. */
static size_t split_cased_word(const stretch *t, size_t pos) {
    size_t width;
    const unsigned first = classes(t, pos, &width);
    const bool prefix = !(first & (UNI_LETTER | UNI_NUMBER | UNI_NEWLINE));
    const size_t start = prefix ? pos + width : pos;
    size_t p = start, after_both = 0, w;
    while (p < t->end) {
        const unsigned c = classes(t, p, &w);
        if (!(c & UNI_UPPER)) break;
        p += w;
        if (c & UNI_LOWER) after_both = p;
    }
    if (p < t->end && classes(t, p, &w) & UNI_LOWER) return run_of(t, p, UNI_LOWER);
    if (after_both) return after_both;
    if (prefix && first & UNI_MARK) return start; /* without the prefix: the mark is U and W */
    return p > start ? p : pos;                   /* U+ alone */
}

static size_t split_tekken(const stretch *t, size_t pos, bool gpt4o) {
    const size_t word = split_cased_word(t, pos);
    if (word > pos) return gpt4o ? word + contraction(t, word, true) : word;
    size_t width;
    if (classes(t, pos, &width) & UNI_NUMBER) return split_digits(t, pos, gpt4o ? 3 : 1);
    return split_rest(t, pos, true);
}

static bool is_default_punct(const stretch *t, size_t pos, size_t *width) {
    const unsigned c = classes(t, pos, width);
    return c & UNI_PUNCT || (*width == 1 && t->s[pos] && strchr("$+<=>^~|", t->s[pos]));
}

static bool three_digits(const char *s, size_t n) {
    return n >= 3 && s[0] >= '0' && s[0] <= '9' && s[1] >= '0' && s[1] <= '9' && s[2] >= '0' &&
           s[2] <= '9';
}

/* Each expression splits the pieces of the one before: outer, middle, inner are their ends. */
static size_t split_default(pretok_cursor *c) {
    size_t width;
    const stretch all = {c->s, c->len};
    if (c->pos == c->outer_end) {
        const bool punct = is_default_punct(&all, c->pos, &width);
        size_t p = c->pos + width;
        while (p < c->len && is_default_punct(&all, p, &width) == punct) p += width;
        c->outer_end = p;
    }
    if (c->pos == c->middle_end) c->middle_end = split_gpt2(&(stretch){c->s, c->outer_end}, c->pos);
    if (c->pos == c->inner_end) {
        const stretch word = {c->s, c->middle_end};
        c->inner_end = classes(&word, c->pos, &width) & UNI_NUMBER
                           ? run_of(&word, c->pos, UNI_NUMBER)
                           : run_without(&word, c->pos, UNI_NUMBER);
    }
    if (three_digits(c->s + c->pos, c->inner_end - c->pos)) return c->pos + 3;
    size_t p = c->pos + 1;
    while (p < c->inner_end && !three_digits(c->s + p, c->inner_end - p)) p++;
    return p;
}

static size_t split_smollm(pretok_cursor *c) {
    if (c->pos == c->outer_end) {
        const stretch all = {c->s, c->len};
        size_t width;
        if (classes(&all, c->pos, &width) & UNI_NUMBER) return c->outer_end = c->pos + width;
        c->outer_end = run_without(&all, c->pos, UNI_NUMBER);
    }
    return split_gpt2(&(stretch){c->s, c->outer_end}, c->pos);
}

void pretok_init(pretok_cursor *c, pretokenizer pre, const char *s, size_t len) {
    *c = (pretok_cursor){.pre = pre, .s = s, .len = len};
}

bool pretok_next(pretok_cursor *c, size_t *start, size_t *end) {
    if (c->pos >= c->len) return false;
    const stretch all = {c->s, c->len};
    *start = c->pos;
    switch (c->pre) {
    case PRE_GPT2:
        c->pos = split_gpt2(&all, c->pos);
        break;
    case PRE_SMOLLM:
        c->pos = split_smollm(c);
        break;
    case PRE_QWEN2:
        c->pos = split_llama3(&all, c->pos, 1);
        break;
    case PRE_LLAMA3:
    case PRE_DBRX:
        c->pos = split_llama3(&all, c->pos, 3);
        break;
    case PRE_TEKKEN:
        c->pos = split_tekken(&all, c->pos, false);
        break;
    case PRE_GPT4O:
        c->pos = split_tekken(&all, c->pos, true);
        break;
    case PRE_DEFAULT:
        c->pos = split_default(c);
        break;
    }
    *end = c->pos;
    return true;
}
