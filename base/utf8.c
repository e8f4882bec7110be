#include "base/utf8.h"

#include <stdio.h>
#include <string.h>

/* Bounds of the second byte by lead byte (Unicode 15, table 3-7); every later byte is 80..BF. */
static int sequence_length(unsigned char lead, unsigned char *lo, unsigned char *hi) {
    *lo = 0x80;
    *hi = 0xBF;
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (lead == 0xE0) *lo = 0xA0;
        if (lead == 0xED) *hi = 0x9F;
        return 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (lead == 0xF0) *lo = 0x90;
        if (lead == 0xF4) *hi = 0x8F;
        return 4;
    }
    return 0;
}

/* Bytes of s that form a character or the start of one; *want is the length it would have, 0 for a
 * bad lead byte. */
static size_t match_prefix(const unsigned char *s, size_t len, size_t *want) {
    unsigned char lo, hi;
    const int n = sequence_length(s[0], &lo, &hi);
    *want = (size_t)n;
    if (n <= 1) return 1;
    size_t i = 1;
    while (i < (size_t)n && i < len) {
        if (s[i] < lo || s[i] > hi) break;
        lo = 0x80;
        hi = 0xBF;
        i++;
    }
    return i;
}

size_t utf8_decode(const char *s, size_t len, uint32_t *cp) {
    const unsigned char *u = (const unsigned char *)s;
    size_t want;
    const size_t have = match_prefix(u, len, &want);
    if (want == 0 || have < want) {
        *cp = UTF8_BAD;
        return have;
    }
    switch (want) {
    case 1:
        *cp = u[0];
        break;
    case 2:
        *cp = (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
        break;
    case 3:
        *cp = (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
        break;
    default:
        *cp = (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 |
              (uint32_t)(u[2] & 0x3F) << 6 | (u[3] & 0x3F);
    }
    return want;
}

bool utf8_valid(const char *s, size_t len) {
    size_t i = 0;
    while (i < len) {
        uint64_t word;
        while (len - i >= sizeof word) { /* eight ASCII bytes at a time */
            memcpy(&word, s + i, sizeof word);
            if ((word & UINT64_C(0x8080808080808080)) != 0) break;
            i += sizeof word;
        }
        if (i == len) break;
        uint32_t cp;
        i += utf8_decode(s + i, len - i, &cp);
        if (cp == UTF8_BAD) return false;
    }
    return true;
}

size_t utf8_put(uint32_t cp, char out[4]) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

size_t utf8_complete_prefix(const char *s, size_t len) {
    const unsigned char *u = (const unsigned char *)s;
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        const unsigned char b = u[len - back];
        if (b >= 0x80 && b <= 0xBF)
            continue; /* a continuation byte: look further back for its lead */
        size_t want;
        const size_t have = match_prefix(u + len - back, back, &want);
        return want > have && have == back ? len - back : len;
    }
    return len;
}

void utf8_copy(char *out, size_t bytes, const char *s, size_t len) {
    size_t n = 0;
    len = strnlen(s, len);
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        char character[4];
        i += utf8_decode(s + i, len - i, &cp);
        const size_t k = utf8_put(cp == UTF8_BAD ? 0xFFFD : cp, character);
        if (k > bytes - 1 - n) break;
        memcpy(out + n, character, k);
        n += k;
    }
    out[n] = '\0';
}

void utf8_vprint(char *out, size_t bytes, const char *fmt, va_list args) {
    const int wanted = vsnprintf(out, bytes, fmt, args);
    if (wanted >= 0 && (size_t)wanted >= bytes) out[utf8_complete_prefix(out, bytes - 1)] = '\0';
}

size_t utf8_sanitise(const char *s, size_t len, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        const size_t k = utf8_decode(s + i, len - i, &cp);
        if (cp == UTF8_BAD) {
            n += utf8_put(0xFFFD, out + n);
        } else {
            memcpy(out + n, s + i, k);
            n += k;
        }
        i += k;
    }
    return n;
}
