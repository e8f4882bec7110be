/* NFC works on segments. A segment starts at a character that can never combine with what is before
 * it, so segments are independent: most are one character and are copied. The others are
 * decomposed, put into canonical order (a stable sort by combining class; utf8proc's own is
 * quadratic on long runs of marks) and composed. */
#include "engine/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"

static bool is_space(uint32_t cp) {
    if (cp <= 0x20) return cp == 0x20 || (cp >= 0x09 && cp <= 0x0D);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

unsigned unicode_classes(uint32_t cp) {
    if (is_space(cp)) return UNI_SPACE | (cp == '\n' || cp == '\r' ? UNI_NEWLINE : 0u);
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
        return UNI_LETTER | UNI_UPPER;
    case UTF8PROC_CATEGORY_LL:
        return UNI_LETTER | UNI_LOWER;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return UNI_LETTER | UNI_UPPER | UNI_LOWER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return UNI_MARK | UNI_UPPER | UNI_LOWER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return UNI_NUMBER;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return UNI_PUNCT;
    default:
        return 0;
    }
}

unsigned unicode_classes_at(const char *s, size_t len, size_t pos, size_t *width) {
    const unsigned char c = (unsigned char)s[pos];
    if (c < 0x80) {
        *width = 1;
        if ((unsigned)(c | 0x20) - 'a' < 26u) {
            return UNI_LETTER | (c & 0x20 ? UNI_LOWER : UNI_UPPER);
        }
        if (c == ' ') return UNI_SPACE;
        return unicode_classes(c);
    }
    uint32_t cp;
    *width = utf8_decode(s + pos, len - pos, &cp);
    return cp == UTF8_BAD ? 0 : unicode_classes(cp);
}

bool unicode_may_need_nfc(const char *s, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)s[i] >= 0xCC) return true; /* the first lead byte of U+0300 and above */
    }
    return false;
}

/* True if cp has class 0 and composes with nothing before it. Every second half of a canonical
 * composition is a mark, or a Hangul vowel or final. */
static bool starts_segment(uint32_t cp) {
    if (cp < 0x300) return true;
    if (cp >= 0x1160 && cp <= 0x11FF) return false;
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)cp);
    return p->combining_class == 0 && p->category != UTF8PROC_CATEGORY_MN &&
           p->category != UTF8PROC_CATEGORY_MC && p->category != UTF8PROC_CATEGORY_ME;
}

typedef struct code_points {
    utf8proc_int32_t *cp; /* owned */
    size_t n, capacity;
} code_points;

enum { DECOMPOSED_MAX = 4 }; /* no canonical decomposition is longer (Unicode stability policy) */

static status decompose(code_points *v, uint32_t cp) {
    if (v->capacity - v->n < DECOMPOSED_MAX) {
        const size_t capacity = v->capacity ? 2 * v->capacity : 64;
        utf8proc_int32_t *p = realloc(v->cp, capacity * sizeof *p);
        if (!p) return E_NOMEM;
        v->cp = p;
        v->capacity = capacity;
    }
    int boundary = 0;
    const utf8proc_ssize_t n =
        utf8proc_decompose_char((utf8proc_int32_t)cp, v->cp + v->n, DECOMPOSED_MAX,
                                UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    if (n < 0 || n > DECOMPOSED_MAX) { /* unassigned: stands for itself */
        v->cp[v->n++] = (utf8proc_int32_t)cp;
    } else {
        v->n += (size_t)n;
    }
    return OK;
}

static unsigned combining_class(utf8proc_int32_t cp) {
    return (unsigned)utf8proc_get_property(cp)->combining_class;
}

/* Stable counting sort of marks[0..n) by combining class (1..255). */
static status sort_long_run(utf8proc_int32_t *marks, size_t n) {
    size_t start[257] = {0};
    utf8proc_int32_t *sorted = malloc(n * sizeof *sorted);
    if (!sorted) return E_NOMEM;
    for (size_t i = 0; i < n; i++) start[combining_class(marks[i]) + 1]++;
    for (int c = 0; c < 256; c++) start[c + 1] += start[c];
    for (size_t i = 0; i < n; i++) sorted[start[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, sorted, n * sizeof *marks);
    free(sorted);
    return OK;
}

static status order_canonically(code_points *v) {
    enum { SHORT_RUN = 16 };
    for (size_t i = 0; i < v->n;) {
        if (combining_class(v->cp[i]) == 0) {
            i++;
            continue;
        }
        size_t end = i + 1;
        while (end < v->n && combining_class(v->cp[end]) != 0) end++;
        if (end - i > SHORT_RUN) {
            const status s = sort_long_run(v->cp + i, end - i);
            if (s != OK) return s;
        } else { /* insertion sort */
            for (size_t k = i + 1; k < end; k++) {
                const utf8proc_int32_t cp = v->cp[k];
                size_t to = k;
                for (; to > i && combining_class(v->cp[to - 1]) > combining_class(cp); to--) {
                    v->cp[to] = v->cp[to - 1];
                }
                v->cp[to] = cp;
            }
        }
        i = end;
    }
    return OK;
}

/* Appends the NFC of one segment. */
static status append_segment(code_points *v, const char *s, size_t len, text_buffer *out) {
    v->n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += utf8_decode(s + i, len - i, &cp);
        const status st = decompose(v, cp);
        if (st != OK) return st;
    }
    status st = order_canonically(v);
    if (st != OK) return st;
    const utf8proc_ssize_t n =
        utf8proc_normalize_utf32(v->cp, (utf8proc_ssize_t)v->n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (n < 0) return E_NOMEM;
    for (utf8proc_ssize_t i = 0; i < n && st == OK; i++) {
        char utf8[4];
        const size_t width = utf8_put((uint32_t)v->cp[i], utf8);
        st = text_buffer_append(out, utf8, width);
    }
    return st;
}

status unicode_nfc(const char *s, size_t len, text_buffer *out, text_map *map) {
    code_points v = {0};
    const size_t base = out->len;
    status st = OK;
    for (size_t pos = 0; pos < len && st == OK;) {
        uint32_t cp;
        size_t end = pos + utf8_decode(s + pos, len - pos, &cp);
        while (end < len) {
            const size_t width = utf8_decode(s + end, len - end, &cp);
            if (starts_segment(cp)) break;
            end += width;
        }
        const size_t at = out->len;
        if ((unsigned char)s[pos] < 0xCC && end - pos <= 2) {
            st = text_buffer_append(out, s + pos, end - pos);
        } else {
            st = append_segment(&v, s + pos, end - pos, out);
        }
        if (st == OK && map) {
            const bool same =
                out->len - at == end - pos && memcmp(out->s + at, s + pos, end - pos) == 0;
            st = text_map_add(map, at - base, pos, same);
        }
        pos = end;
    }
    free(v.cp);
    return st;
}
