/* UTF-8: validation, decoding, and the stream splitter that emits whole characters only.
 * Source: RFC 3629; replacement by "maximal subpart" as Unicode 15, chapter 3.9. Thread: any. */
#ifndef INFERD_BASE_UTF8_H
#define INFERD_BASE_UTF8_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* True if s[0..len) is well-formed UTF-8 (no surrogates, no overlong forms, <= U+10FFFF). NUL is
 * allowed. */
bool utf8_valid(const char *s, size_t len);

/* Decodes one code point at s (len > 0). Returns its byte length 1..4 and the code point; on
 * malformed input returns the length of the maximal invalid part (>= 1) and sets *cp to UTF8_BAD.
 */
#define UTF8_BAD UINT32_C(0xFFFFFFFF)
size_t utf8_decode(const char *s, size_t len, uint32_t *cp);

/* Encodes cp (<= 0x10FFFF) into out[4]; returns the byte length. */
size_t utf8_put(uint32_t cp, char out[4]);

/* Length of the prefix of s that can be emitted now: everything but an unfinished character at the
 * end (at most 3 bytes are held back). */
size_t utf8_complete_prefix(const char *s, size_t len);

/* Copies s[0..len), or less if a NUL comes before, to out: sanitised as below, cut before a
 * character that does not fit into bytes - 1. Always NUL-terminated. */
void utf8_copy(char *out, size_t bytes, const char *s, size_t len);

/* vsnprintf, cut before a character that does not fit. What the arguments hold is kept as it is. */
void utf8_vprint(char *out, size_t bytes, const char *fmt, va_list args) BASE_PRINTF(3, 0);

/* Copies s to out, each maximal invalid part becoming U+FFFD. out must hold 3 * len bytes. Returns
 * bytes written. */
size_t utf8_sanitise(const char *s, size_t len, char *out);
#endif
