/* Status codes: how every fallible function of inferd reports an expected event.
 * OK is 0. Bugs are asserted, never returned. Output parameters are written only on OK.
 * E_DEVICE is final: after it the backend accepts nothing more and the process must end.
 * This header is read by C and by nvcc. Thread: any. */
#ifndef INFERD_BASE_STATUS_H
#define INFERD_BASE_STATUS_H

#include <stddef.h>

#if defined(__GNUC__) && !defined(__CUDACC__)
#define BASE_MUST_USE          __attribute__((warn_unused_result))
#define BASE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define BASE_MUST_USE
#define BASE_PRINTF(fmt, args)
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum status {
    OK = 0,
    E_INVAL,       /* the caller's value is out of range: names it */
    E_NOMEM,       /* host memory, or device memory at start */
    E_FULL,        /* a bounded queue or table is full: try later */
    E_NOTFOUND,    /* no such file, id, key, tensor */
    E_EXISTS,      /* the name or id is taken */
    E_IO,          /* the system refused a read, write, bind */
    E_FORMAT,      /* bytes from outside break their format (model file, template, config) */
    E_UNSUPPORTED, /* well-formed, but not built here: refused by name */
    E_TOO_LARGE,   /* can never fit (context, pool, message limit) */
    E_STATE,       /* not now: loading, draining, stopped */
    E_DEVICE,      /* device fault: final */
    E_INTERNAL     /* a request met a broken invariant; the others go on */
} status;

enum { ERROR_TEXT_MAX = 512 };

/* Why a start-up function refused: one clear line that names the file, size, key or limit at fault.
 */
typedef struct error {
    status code;
    char text[ERROR_TEXT_MAX]; /* always NUL-terminated */
} error;

/* Fills *err (may be NULL) and returns code, so that a caller can `return error_set(...)`. */
status error_set(error *err, status code, const char *fmt, ...) BASE_PRINTF(3, 4);

/* Short constant name, e.g. "E_NOMEM". */
const char *status_name(status s);

#ifdef __cplusplus
}
#endif
#endif
