/* Values of keys: text in, text out, ranges. */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "config/table.h"

static status refuse(char reason[CONFIG_REASON_MAX], const char *text) {
    (void)snprintf(reason, CONFIG_REASON_MAX, "%s", text);
    return E_INVAL;
}

/* Decimal digits only: no sign, no space, no octal. */
static bool parse_digits(const char *text, size_t len, uint64_t *out) {
    uint64_t v = 0;
    if (len == 0) return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        if (!checked_mul_u64(v, 10, &v) || !checked_add_u64(v, (uint64_t)(text[i] - '0'), &v))
            return false;
    }
    *out = v;
    return true;
}

static bool parse_bytes(const char *text, uint64_t *out) {
    static const struct {
        const char *suffix;
        uint64_t unit;
    } units[] = {{"KiB", UINT64_C(1) << 10},
                 {"MiB", UINT64_C(1) << 20},
                 {"GiB", UINT64_C(1) << 30},
                 {"", 1}};
    const size_t digits = strspn(text, "0123456789");
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(text + digits, units[i].suffix) != 0) continue;
        uint64_t v;
        return parse_digits(text, digits, &v) && checked_mul_u64(v, units[i].unit, out);
    }
    return false;
}

/* Index of text among the words of "a|b|c", or -1. */
static int choice_index(const char *choices, const char *text) {
    const size_t len = strlen(text);
    int index = 0;
    for (const char *word = choices;; index++) {
        const char *end = strchr(word, '|');
        const size_t n = end ? (size_t)(end - word) : strlen(word);
        if (n == len && len > 0 && memcmp(word, text, len) == 0) return index;
        if (!end) return -1;
        word = end + 1;
    }
}

/* Text that every reader and printer can carry: UTF-8 without control characters and line breaks.
 */
static bool text_printable(const char *text) {
    const size_t len = strlen(text);
    if (!utf8_valid(text, len)) return false;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += utf8_decode(text + i, len - i, &cp);
        if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || cp == 0x2028 || cp == 0x2029) return false;
        if (cp == 0xfeff || (cp & 0xfffe) == 0xfffe) return false;
    }
    return true;
}

/* host:port, [v6]:port or unix:PATH. Names are resolved by whoever binds. */
static bool address_well_formed(const char *text) {
    if (strncmp(text, "unix:", 5) == 0) {
        const size_t len = strlen(text + 5);
        return len > 0 && len < 108; /* sockaddr_un.sun_path */
    }
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text) return false;
    uint64_t port;
    if (!parse_digits(colon + 1, strlen(colon + 1), &port) || port > 65535) return false;
    const size_t host = (size_t)(colon - text);
    if (text[0] == '[') return host > 2 && text[host - 1] == ']';
    return memchr(text, ':', host) == NULL && strcspn(text, "/ []") >= host;
}

static status set_string(const config_key *k, const char *text, config *c,
                         char reason[CONFIG_REASON_MAX]) {
    const size_t len = strlen(text);
    if (!text_printable(text)) return refuse(reason, "must be UTF-8 without control characters");
    if (len >= k->size) {
        (void)snprintf(reason, CONFIG_REASON_MAX, "is too long: at most %zu bytes", k->size - 1);
        return E_INVAL;
    }
    uint8_t digest[32];
    const bool off = k->kind == KEY_ADDR_OFF && strcmp(text, "off") == 0;
    if (k->kind == KEY_ADDR && !address_well_formed(text))
        return refuse(reason, "must be host:port, [v6]:port or unix:PATH");
    if (k->kind == KEY_ADDR_OFF && !off && !address_well_formed(text))
        return refuse(reason, "must be host:port, [v6]:port, unix:PATH or off");
    if (k->kind == KEY_SHA256 && len > 0 && !sha256_from_hex(text, digest))
        return refuse(reason, "must be 64 hex digits");
    memcpy((char *)c + k->offset, text, len + 1);
    return OK;
}

static status set_number(const config_key *k, const char *text, config *c,
                         char reason[CONFIG_REASON_MAX]) {
    uint64_t v;
    const bool good =
        k->kind == KEY_BYTES ? parse_bytes(text, &v) : parse_digits(text, strlen(text), &v);
    if (!good || v < k->min || v > k->max || (k->choices && choice_index(k->choices, text) < 0)) {
        char range[CONFIG_REASON_MAX];
        config_key_range(k, range);
        (void)snprintf(reason, CONFIG_REASON_MAX, "must be a whole number, %.100s", range);
        return E_INVAL;
    }
    void *member = (char *)c + k->offset;
    if (k->kind == KEY_INT) {
        const int n = (int)v; /* k->max <= INT_MAX, see tests/config */
        memcpy(member, &n, sizeof n);
    } else {
        memcpy(member, &v, sizeof v);
    }
    return OK;
}

status config_key_set(const config_key *k, const char *text, config *c,
                      char reason[CONFIG_REASON_MAX]) {
    void *member = (char *)c + k->offset;
    switch (k->kind) {
    case KEY_TEXT:
    case KEY_PATH:
    case KEY_ADDR:
    case KEY_ADDR_OFF:
    case KEY_SHA256:
        return set_string(k, text, c, reason);
    case KEY_INT:
    case KEY_COUNT:
    case KEY_BYTES:
        return set_number(k, text, c, reason);
    case KEY_BOOL: {
        const bool v = strcmp(text, "true") == 0;
        if (!v && strcmp(text, "false") != 0) return refuse(reason, "must be true or false");
        memcpy(member, &v, sizeof v);
        return OK;
    }
    case KEY_ENUM: {
        const int v = choice_index(k->choices, text);
        if (v < 0) {
            char range[CONFIG_REASON_MAX];
            config_key_range(k, range);
            (void)snprintf(reason, CONFIG_REASON_MAX, "must be one of %.100s", range);
            return E_INVAL;
        }
        memcpy(member, &v, sizeof v);
        return OK;
    }
    }
    assert(false); /* an unknown kind of key */
    return E_INTERNAL;
}

void config_key_text(const config_key *k, const config *c, char out[CONFIG_TEXT_MAX]) {
    const void *member = (const char *)c + k->offset;
    int n = 0;
    uint64_t v = 0;
    switch (k->kind) {
    case KEY_INT:
        memcpy(&n, member, sizeof n);
        (void)snprintf(out, CONFIG_TEXT_MAX, "%d", n);
        return;
    case KEY_COUNT:
    case KEY_BYTES:
        memcpy(&v, member, sizeof v);
        (void)snprintf(out, CONFIG_TEXT_MAX, "%" PRIu64, v);
        return;
    case KEY_BOOL:
        (void)snprintf(out, CONFIG_TEXT_MAX, "%s", *(const bool *)member ? "true" : "false");
        return;
    case KEY_ENUM: {
        memcpy(&n, member, sizeof n);
        const char *word = k->choices;
        while (n-- > 0) word = strchr(word, '|') + 1;
        (void)snprintf(out, CONFIG_TEXT_MAX, "%.*s", (int)strcspn(word, "|"), word);
        return;
    }
    default:
        (void)snprintf(out, CONFIG_TEXT_MAX, "%s", (const char *)member);
    }
}

void config_key_range(const config_key *k, char out[CONFIG_REASON_MAX]) {
    out[0] = '\0';
    if (k->kind == KEY_BOOL) {
        (void)snprintf(out, CONFIG_REASON_MAX, "true, false");
    } else if (k->choices) {
        size_t n = 0;
        for (const char *p = k->choices; *p && n + 3 < CONFIG_REASON_MAX; p++) {
            if (*p == '|')
                out[n++] = ',', out[n++] = ' ';
            else
                out[n++] = *p;
        }
        out[n] = '\0';
    } else if (k->kind == KEY_INT || k->kind == KEY_COUNT || k->kind == KEY_BYTES) {
        (void)snprintf(out, CONFIG_REASON_MAX, "%" PRIu64 "..%" PRIu64, k->min, k->max);
    }
}
