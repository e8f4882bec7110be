/* Methods of strings, mappings and loops, and the string work that filters share. */
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"
#include "engine/jinja.h"

static bool in_set(jinja *x, uint32_t cp, const char *s, size_t n, const jinja_str *chars) {
    if (!chars) return jinja_is_space(cp);
    return jinja_find(x, chars, s, n, 0) != SIZE_MAX;
}

/* Start of the character that ends at end > 0. */
static size_t char_before(const char *s, size_t end) {
    size_t i = end - 1;
    while (i > 0 && ((unsigned char)s[i] & 0xC0) == 0x80) i--;
    return i;
}

jinja_value jinja_strip(jinja *x, const jinja_str *s, int sides, const jinja_str *chars) {
    size_t from = 0, to = s->len;
    uint32_t cp;
    while (sides & 1 && from < to && x->st == OK) {
        const size_t n = utf8_decode(s->s + from, to - from, &cp);
        if (!in_set(x, cp, s->s + from, n, chars)) break;
        from += n;
    }
    while (sides & 2 && from < to && x->st == OK) {
        const size_t at = char_before(s->s, to);
        utf8_decode(s->s + at, to - at, &cp);
        if (!in_set(x, cp, s->s + at, to - at, chars)) break;
        to = at;
    }
    return jinja_touch(x, 16 * (from + s->len - to)) ? jinja_substring(x, s, from, to)
                                                     : jinja_undefined(NULL);
}

jinja_value jinja_replace(jinja *x, const jinja_str *s, const jinja_str *from, const jinja_str *to,
                          int64_t count) {
    jinja_buffer b = {0};
    size_t at = 0;
    if (from->len == 0) { /* between all characters, as str.replace */
        for (size_t i = 0; x->st == OK; count--) {
            if (count != 0) jinja_append_str(x, &b, to);
            if (i == s->len) break;
            uint32_t cp;
            const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
            jinja_append_sub(x, &b, s, i, i + n);
            i += n;
        }
        return jinja_buffer_value(x, &b);
    }
    for (; count != 0 && x->st == OK; count--) {
        const size_t hit = jinja_find(x, s, from->s, from->len, at);
        if (hit == SIZE_MAX) break;
        jinja_append_sub(x, &b, s, at, hit);
        jinja_append_str(x, &b, to);
        at = hit + from->len;
    }
    jinja_append_sub(x, &b, s, at, s->len);
    return jinja_buffer_value(x, &b);
}

static bool is_cased(uint32_t cp) {
    const utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

/* how: u upper, l lower, c capitalise, t as str.title (a letter after a letter is lower), T as the
 * filter `title` (words end at blanks, hyphens and opening brackets). */
jinja_value jinja_change_case(jinja *x, const jinja_str *s, char how) {
    jinja_buffer b = {0};
    bool after_letter = false, starts_word = true, first = true;
    for (size_t i = 0; i < s->len && x->st == OK;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
        const bool upper = how == 'u' || (how == 'c' && first) || (how == 't' && !after_letter) ||
                           (how == 'T' && starts_word);
        const int origin = s->origin == ORIGIN_MIXED ? s->mask[i] : s->origin;
        if (upper && cp == 0xDF) { /* sharp s: the one common letter that grows */
            jinja_append(x, &b, how == 'u' ? "SS" : "Ss", 2, origin);
        } else {
            char out[4];
            const utf8proc_int32_t c = (utf8proc_int32_t)cp;
            const utf8proc_int32_t d = upper ? utf8proc_toupper(c) : utf8proc_tolower(c);
            jinja_append(x, &b, out, utf8_put((uint32_t)d, out), origin);
        }
        after_letter = is_cased(cp);
        starts_word = jinja_is_space(cp) || (cp < 0x80 && cp && strchr("-({[<", (int)cp));
        first = false;
        i += n;
    }
    return jinja_buffer_value(x, &b);
}

static jinja_value split_blanks(jinja *x, const jinja_str *s, int64_t max) {
    const jinja_value out = jinja_list_new(x, 0);
    for (size_t i = 0; x->st == OK;) {
        uint32_t cp;
        while (i < s->len) {
            const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
            if (!jinja_is_space(cp)) break;
            i += n;
        }
        if (i == s->len) break;
        size_t end = i;
        if (max == 0) { /* the rest as it is */
            jinja_list_push(x, out.u.list, jinja_substring(x, s, i, s->len));
            break;
        }
        while (end < s->len) {
            const size_t n = utf8_decode(s->s + end, s->len - end, &cp);
            if (jinja_is_space(cp)) break;
            end += n;
        }
        jinja_list_push(x, out.u.list, jinja_substring(x, s, i, end));
        i = end;
        max--;
    }
    return jinja_touch(x, 8 * s->len) ? out : jinja_undefined(NULL);
}

static jinja_value split_at(jinja *x, const jinja_str *s, const jinja_str *sep, int64_t max) {
    if (sep->len == 0) return jinja_fail(x, E_INVAL, "empty separator");
    const jinja_value out = jinja_list_new(x, 0);
    size_t at = 0;
    for (; max != 0 && x->st == OK; max--) {
        const size_t hit = jinja_find(x, s, sep->s, sep->len, at);
        if (hit == SIZE_MAX) break;
        jinja_list_push(x, out.u.list, jinja_substring(x, s, at, hit));
        at = hit + sep->len;
    }
    if (x->st == OK) jinja_list_push(x, out.u.list, jinja_substring(x, s, at, s->len));
    return out;
}

/* Last occurrence of sep that ends at or before end. */
static size_t find_last(jinja *x, const jinja_str *s, const jinja_str *sep, size_t end) {
    for (size_t i = end; i >= sep->len && jinja_touch(x, 16); i--) {
        if (memcmp(s->s + i - sep->len, sep->s, sep->len) == 0) return i - sep->len;
        if (i == 0) break;
    }
    return SIZE_MAX;
}

static jinja_value rsplit_at(jinja *x, const jinja_str *s, const jinja_str *sep, int64_t max) {
    if (max < 0) return split_at(x, s, sep, max);
    if (sep->len == 0) return jinja_fail(x, E_INVAL, "empty separator");
    const jinja_value out = jinja_list_new(x, 0);
    size_t end = s->len;
    for (; max > 0 && x->st == OK; max--) {
        const size_t hit = find_last(x, s, sep, end);
        if (hit == SIZE_MAX) break;
        jinja_list_push(x, out.u.list, jinja_substring(x, s, hit + sep->len, end));
        end = hit;
    }
    if (x->st == OK) jinja_list_push(x, out.u.list, jinja_substring(x, s, 0, end));
    for (size_t i = 0; x->st == OK && i < out.u.list->n / 2; i++) { /* found from the right */
        jinja_value *a = &out.u.list->v[i], *b = &out.u.list->v[out.u.list->n - 1 - i];
        const jinja_value t = *a;
        *a = *b;
        *b = t;
    }
    return out;
}

static jinja_value split_lines(jinja *x, const jinja_str *s, bool keep) {
    const jinja_value out = jinja_list_new(x, 0);
    for (size_t i = 0; i < s->len && x->st == OK;) {
        size_t end = i;
        while (end < s->len && s->s[end] != '\n' && s->s[end] != '\r') end++;
        size_t next = end < s->len ? end + 1 : end;
        if (end + 1 < s->len && s->s[end] == '\r' && s->s[end + 1] == '\n') next++;
        jinja_list_push(x, out.u.list, jinja_substring(x, s, i, keep ? next : end));
        i = next;
    }
    return out;
}

static bool matches_end(jinja *x, const jinja_str *s, jinja_value part, bool start) {
    if (part.kind == JINJA_LIST && part.u.list->tuple) {
        for (size_t i = 0; i < part.u.list->n; i++) {
            const jinja_value v = part.u.list->v[i];
            if (v.kind == JINJA_STRING && matches_end(x, s, v, start)) return true;
        }
        return false;
    }
    if (part.kind != JINJA_STRING) {
        jinja_fail(x, E_INVAL, "%s first arg must be str or a tuple of str, not %s",
                   start ? "startswith" : "endswith", jinja_kind_name(part));
        return false;
    }
    const jinja_str *p = part.u.s;
    if (p->len > s->len || !jinja_touch(x, p->len)) return false;
    return p->len == 0 || memcmp(start ? s->s : s->s + s->len - p->len, p->s, p->len) == 0;
}

/* {} and {0} {name} of str.format, without format specifications. */
static jinja_value format_braces(jinja *x, const jinja_str *s, const jinja_args *a) {
    jinja_buffer b = {0};
    int next = 0;
    for (size_t i = 0; i < s->len && x->st == OK; i++) {
        const char c = s->s[i];
        if (c != '{' && c != '}') {
            jinja_append_sub(x, &b, s, i, i + 1);
        } else if (i + 1 < s->len && s->s[i + 1] == c) {
            jinja_append_sub(x, &b, s, i, i + 1);
            i++;
        } else {
            const char *close = c == '{' ? memchr(s->s + i, '}', s->len - i) : NULL;
            char name[32] = "";
            const size_t n = close ? (size_t)(close - s->s) - i - 1 : sizeof name;
            if (n >= sizeof name) return jinja_fail(x, E_INVAL, "malformed format string");
            memcpy(name, s->s + i + 1, n);
            if (strpbrk(name, ":!.["))
                return jinja_fail(x, E_UNSUPPORTED, "a format specification");
            int index = -1;
            if (n == 0) index = next++;
            if (n == 1 && name[0] >= '0' && name[0] <= '9') index = name[0] - '0';
            const jinja_value v = jinja_arg(a, index, name);
            if (!jinja_given(v)) return jinja_fail(x, E_INVAL, "format: an argument is missing");
            jinja_append_value(x, &b, v);
            i += n + 1;
        }
    }
    return jinja_buffer_value(x, &b);
}

static jinja_value join_list(jinja *x, const jinja_str *s, jinja_value v) {
    const jinja_list *l = jinja_items(x, v);
    jinja_buffer b = {0};
    for (size_t i = 0; l && i < l->n && x->st == OK; i++) {
        if (l->v[i].kind != JINJA_STRING) {
            return jinja_fail(x, E_INVAL, "sequence item %zu: expected str instance, %s found", i,
                              jinja_kind_name(l->v[i]));
        }
        if (i > 0) jinja_append_str(x, &b, s);
        jinja_append_str(x, &b, l->v[i].u.s);
    }
    return jinja_buffer_value(x, &b);
}

/* The character class that str.isdigit and its kin ask for, of every character. */
static bool all_chars(jinja *x, const jinja_str *s, const char *name) {
    if (!jinja_touch(x, 64 * s->len)) return false;
    for (size_t i = 0; i < s->len;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->s + i, s->len - i, &cp);
        const utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
        const bool letter = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
        const bool digit = c == UTF8PROC_CATEGORY_ND;
        const bool yes = strcmp(name, "isspace") == 0   ? jinja_is_space(cp)
                         : strcmp(name, "isalpha") == 0 ? letter
                         : strcmp(name, "isalnum") == 0 ? letter || digit
                                                        : digit;
        if (!yes) return false;
        i += n;
    }
    return s->len > 0;
}

static const jinja_str *string_arg(jinja *x, const jinja_args *a, int i, const char *name) {
    const jinja_value v = jinja_arg(a, i, name);
    if (v.kind == JINJA_STRING) return v.u.s;
    jinja_fail(x, E_INVAL, "a string is expected, not '%s'", jinja_kind_name(v));
    return NULL;
}

/* A string or nothing (undefined or none). */
static bool optional_string(jinja *x, const jinja_args *a, int i, const char *name,
                            const jinja_str **out) {
    const jinja_value v = jinja_arg(a, i, name);
    *out = NULL;
    if (v.kind == JINJA_UNDEFINED || v.kind == JINJA_NONE) return true;
    return (*out = string_arg(x, a, i, name)) != NULL;
}

static int64_t int_arg(const jinja_args *a, int i, const char *name, int64_t otherwise) {
    const jinja_value v = jinja_arg(a, i, name);
    return v.kind == JINJA_INT ? v.u.i : otherwise;
}

static jinja_value find_in(jinja *x, const jinja_str *s, const jinja_args *a, const char *name) {
    const jinja_str *part = string_arg(x, a, 0, NULL);
    if (!part) return jinja_undefined(NULL);
    const size_t at =
        name[0] == 'r' ? find_last(x, s, part, s->len) : jinja_find(x, s, part->s, part->len, 0);
    if (at != SIZE_MAX) {
        const jinja_str before = {.s = s->s, .len = at};
        return jinja_int((int64_t)jinja_length(x, &before));
    }
    if (strcmp(name, "index") == 0) return jinja_fail(x, E_INVAL, "substring not found");
    return jinja_int(-1);
}

static jinja_value count_in(jinja *x, const jinja_str *s, const jinja_args *a) {
    const jinja_str *part = string_arg(x, a, 0, NULL);
    int64_t n = 0;
    if (part && part->len == 0) return jinja_int((int64_t)jinja_length(x, s) + 1);
    for (size_t at = 0; part && (at = jinja_find(x, s, part->s, part->len, at)) != SIZE_MAX;) {
        n++;
        at += part->len;
    }
    return jinja_int(n);
}

enum {
    M_CAPITALIZE,
    M_COUNT,
    M_ENDSWITH,
    M_FIND,
    M_FORMAT,
    M_IS,
    M_JOIN,
    M_LOWER,
    M_LSTRIP,
    M_REMOVEPREFIX,
    M_REMOVESUFFIX,
    M_REPLACE,
    M_RSPLIT,
    M_RSTRIP,
    M_SPLIT,
    M_SPLITLINES,
    M_STARTSWITH,
    M_STRIP,
    M_TITLE,
    M_UPPER,
    M_GET,
    M_ITEMS,
    M_KEYS,
    M_VALUES,
    M_CYCLE,
    M_CHANGED
};
static const struct {
    const char *name;
    int method;
    jinja_kind kind;
} methods[] = {
    {"capitalize", M_CAPITALIZE, JINJA_STRING},
    {"count", M_COUNT, JINJA_STRING},
    {"endswith", M_ENDSWITH, JINJA_STRING},
    {"find", M_FIND, JINJA_STRING},
    {"rfind", M_FIND, JINJA_STRING},
    {"index", M_FIND, JINJA_STRING},
    {"format", M_FORMAT, JINJA_STRING},
    {"isalnum", M_IS, JINJA_STRING},
    {"isalpha", M_IS, JINJA_STRING},
    {"isdigit", M_IS, JINJA_STRING},
    {"isnumeric", M_IS, JINJA_STRING},
    {"isspace", M_IS, JINJA_STRING},
    {"join", M_JOIN, JINJA_STRING},
    {"lower", M_LOWER, JINJA_STRING},
    {"lstrip", M_LSTRIP, JINJA_STRING},
    {"removeprefix", M_REMOVEPREFIX, JINJA_STRING},
    {"removesuffix", M_REMOVESUFFIX, JINJA_STRING},
    {"replace", M_REPLACE, JINJA_STRING},
    {"rsplit", M_RSPLIT, JINJA_STRING},
    {"rstrip", M_RSTRIP, JINJA_STRING},
    {"split", M_SPLIT, JINJA_STRING},
    {"splitlines", M_SPLITLINES, JINJA_STRING},
    {"startswith", M_STARTSWITH, JINJA_STRING},
    {"strip", M_STRIP, JINJA_STRING},
    {"title", M_TITLE, JINJA_STRING},
    {"upper", M_UPPER, JINJA_STRING},
    {"get", M_GET, JINJA_DICT},
    {"items", M_ITEMS, JINJA_DICT},
    {"keys", M_KEYS, JINJA_DICT},
    {"values", M_VALUES, JINJA_DICT},
    {"cycle", M_CYCLE, JINJA_LOOP},
    {"changed", M_CHANGED, JINJA_LOOP},
};
enum { N_METHODS = sizeof methods / sizeof methods[0] };

/* What would change a value. Jinja's sandbox has no such methods either: a template that gets as
 * far as calling one fails, the others go on. */
static const char *const mutators[] = {"append", "clear",   "extend", "insert",     "pop",
                                       "remove", "reverse", "sort",   "setdefault", "update"};

bool jinja_method_known(const char *name) {
    for (size_t i = 0; i < sizeof mutators / sizeof mutators[0]; i++) {
        if (strcmp(mutators[i], name) == 0) return true;
    }
    for (int i = 0; i < N_METHODS; i++) {
        if (strcmp(methods[i].name, name) == 0) return true;
    }
    return false;
}

static int method_of(jinja_value v, const char *name) {
    for (int i = 0; i < N_METHODS; i++) {
        if (methods[i].kind == v.kind && strcmp(methods[i].name, name) == 0) {
            return methods[i].method;
        }
    }
    return -1;
}

bool jinja_has_method(jinja_value v, const char *name) {
    return method_of(v, name) >= 0;
}

static jinja_value dict_method(jinja *x, int method, const jinja_dict *d, const jinja_args *a) {
    if (method == M_GET) {
        const jinja_value *found = jinja_dict_find(x, d, jinja_arg(a, 0, "key"));
        if (found) return *found;
        const jinja_value otherwise = jinja_arg(a, 1, "default");
        return jinja_given(otherwise) ? otherwise : jinja_none();
    }
    const jinja_value out = jinja_list_new(x, d->n);
    for (size_t i = 0; i < d->n && x->st == OK; i++) {
        jinja_value v = method == M_KEYS ? d->v[i].key : d->v[i].value;
        if (method == M_ITEMS) {
            v = jinja_list_new(x, 2);
            if (x->st != OK) break;
            jinja_list_push(x, v.u.list, d->v[i].key);
            jinja_list_push(x, v.u.list, d->v[i].value);
            v.u.list->tuple = true;
        }
        jinja_list_push(x, out.u.list, v);
    }
    return out;
}

static jinja_value loop_method(jinja *x, int method, jinja_loop *l, const jinja_args *a) {
    if (a->n == 0) return jinja_fail(x, E_INVAL, "an argument is missing");
    if (method == M_CYCLE) return a->v[l->index0 % (size_t)a->n];
    const jinja_value v = a->v[0];
    const bool changed = !jinja_given(l->changed) || !jinja_equal(x, l->changed, v);
    l->changed = v;
    return jinja_bool(changed);
}

static jinja_value affix_method(jinja *x, int method, jinja_value self, const jinja_args *a) {
    const jinja_str *s = self.u.s, *part = string_arg(x, a, 0, NULL);
    if (!part) return jinja_undefined(NULL);
    const bool prefix = method == M_REMOVEPREFIX;
    if (!matches_end(x, s, jinja_arg(a, 0, NULL), prefix)) return self;
    return prefix ? jinja_substring(x, s, part->len, s->len)
                  : jinja_substring(x, s, 0, s->len - part->len);
}

static jinja_value split_method(jinja *x, int method, const jinja_str *s, const jinja_args *a) {
    const jinja_str *sep;
    if (!optional_string(x, a, 0, "sep", &sep)) return jinja_undefined(NULL);
    const int64_t max = int_arg(a, 1, "maxsplit", -1);
    if (sep) return method == M_SPLIT ? split_at(x, s, sep, max) : rsplit_at(x, s, sep, max);
    if (method == M_RSPLIT && max >= 0) {
        return jinja_fail(x, E_UNSUPPORTED, "rsplit at white space with a limit");
    }
    return split_blanks(x, s, max);
}

static jinja_value replace_method(jinja *x, const jinja_str *s, const jinja_args *a) {
    const jinja_str *from = string_arg(x, a, 0, "old"), *to = string_arg(x, a, 1, "new");
    if (!from || !to) return jinja_undefined(NULL);
    return jinja_replace(x, s, from, to, int_arg(a, 2, "count", -1));
}

static jinja_value strip_method(jinja *x, int sides, const jinja_str *s, const jinja_args *a) {
    const jinja_str *chars;
    if (!optional_string(x, a, 0, "chars", &chars)) return jinja_undefined(NULL);
    return jinja_strip(x, s, sides, chars);
}

static jinja_value string_method(jinja *x, int method, const jinja_method *m, const jinja_args *a) {
    const jinja_str *s = m->self.u.s;
    switch (method) {
    case M_CAPITALIZE:
        return jinja_change_case(x, s, 'c');
    case M_TITLE:
        return jinja_change_case(x, s, 't');
    case M_UPPER:
        return jinja_change_case(x, s, 'u');
    case M_LOWER:
        return jinja_change_case(x, s, 'l');
    case M_STRIP:
        return strip_method(x, 3, s, a);
    case M_LSTRIP:
        return strip_method(x, 1, s, a);
    case M_RSTRIP:
        return strip_method(x, 2, s, a);
    case M_STARTSWITH:
    case M_ENDSWITH:
        return jinja_bool(matches_end(x, s, jinja_arg(a, 0, NULL), method == M_STARTSWITH));
    case M_SPLIT:
    case M_RSPLIT:
        return split_method(x, method, s, a);
    case M_SPLITLINES:
        return split_lines(x, s, jinja_truthy(x, jinja_arg(a, 0, "keepends")));
    case M_REPLACE:
        return replace_method(x, s, a);
    case M_REMOVEPREFIX:
    case M_REMOVESUFFIX:
        return affix_method(x, method, m->self, a);
    case M_FIND:
        return find_in(x, s, a, m->name);
    case M_COUNT:
        return count_in(x, s, a);
    case M_JOIN:
        return join_list(x, s, jinja_arg(a, 0, NULL));
    case M_FORMAT:
        return format_braces(x, s, a);
    default:
        return jinja_bool(all_chars(x, s, m->name));
    }
}

jinja_value jinja_method_call(jinja *x, const jinja_method *m, const jinja_args *a) {
    const int method = method_of(m->self, m->name);
    if (m->self.kind == JINJA_DICT) return dict_method(x, method, m->self.u.dict, a);
    if (m->self.kind == JINJA_LOOP) return loop_method(x, method, m->self.u.loop, a);
    return string_method(x, method, m, a);
}
