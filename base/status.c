#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* One line of valid UTF-8, whatever a file or its name holds: it goes into logs and to clients. */
static void make_printable(char *s) {
    size_t n;
    for (size_t left = strlen(s); left > 0; left -= n, s += n) {
        uint32_t cp;
        n = utf8_decode(s, left, &cp);
        if (cp == UTF8_BAD || cp < 0x20 || cp == 0x7F) memset(s, '?', n);
    }
}

status error_set(error *err, status code, const char *fmt, ...) {
    if (err == NULL) return code;
    err->code = code;
    va_list args;
    va_start(args, fmt);
    utf8_vprint(err->text, sizeof err->text, fmt, args);
    va_end(args);
    make_printable(err->text);
    return code;
}

const char *status_name(status s) {
    switch (s) {
    case OK:
        return "OK";
    case E_INVAL:
        return "E_INVAL";
    case E_NOMEM:
        return "E_NOMEM";
    case E_FULL:
        return "E_FULL";
    case E_NOTFOUND:
        return "E_NOTFOUND";
    case E_EXISTS:
        return "E_EXISTS";
    case E_IO:
        return "E_IO";
    case E_FORMAT:
        return "E_FORMAT";
    case E_UNSUPPORTED:
        return "E_UNSUPPORTED";
    case E_TOO_LARGE:
        return "E_TOO_LARGE";
    case E_STATE:
        return "E_STATE";
    case E_DEVICE:
        return "E_DEVICE";
    case E_INTERNAL:
        return "E_INTERNAL";
    }
    return "E_?";
}
