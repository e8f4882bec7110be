#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

status error_set(error *err, status code, const char *fmt, ...) {
    if (err == NULL) return code;
    err->code = code;
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    for (char *c = err->text; *c != '\0'; c++) /* one line, whatever a file's name holds */
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
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
