/* Character classes for the pre-tokenizers, and NFC. The data is libutf8proc's (Unicode 15).
 * Thread: any. */
#ifndef INFERD_ENGINE_UNICODE_H
#define INFERD_ENGINE_UNICODE_H

#include "base/status.h"
#include "engine/text_map.h"
#include "engine/tokenizer.h"

enum {
    UNI_LETTER = 1,  /* \p{L} */
    UNI_NUMBER = 2,  /* \p{N} */
    UNI_SPACE = 4,   /* \s: the 25 White_Space code points */
    UNI_NEWLINE = 8, /* CR, LF */
    UNI_UPPER = 16,  /* Lu Lt Lm Lo M */
    UNI_LOWER = 32,  /* Ll Lm Lo M */
    UNI_PUNCT = 64,  /* \p{P} */
    UNI_MARK = 128   /* \p{M} */
};
/* The classes of code point cp (<= 0x10FFFF), as a set of bits. */
unsigned unicode_classes(uint32_t cp);

/* The classes of the character at s[pos], pos < len; *width is its byte length. The text is valid
 * UTF-8. */
unsigned unicode_classes_at(const char *s, size_t len, size_t pos, size_t *width);

/* True if s may differ from its NFC: a cheap test that errs on this side. */
bool unicode_may_need_nfc(const char *s, size_t len);

/* Appends NFC(s) to *out; s is valid UTF-8. map (may be NULL) receives where each stretch came
 * from, offsets counted from out->len at entry and from s. Linear but for the sort of a run of
 * combining marks (n log n). E_NOMEM. */
BASE_MUST_USE status unicode_nfc(const char *s, size_t len, text_buffer *out, text_map *map);
#endif
