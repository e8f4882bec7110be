/* Where the shared reference data lies: INFERD_GOLDENS, else beside the repository. */
#ifndef INFERD_TESTS_GOLDENS_H
#define INFERD_TESTS_GOLDENS_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/status.h"

enum { GOLDEN_PATH_BYTES = 1024 };

/* The path of a file of the goldens, e.g. ("models/%s.gguf", name). */
static inline void golden_path(char out[GOLDEN_PATH_BYTES], const char *format, ...)
    BASE_PRINTF(2, 3);

static inline void golden_path(char out[GOLDEN_PATH_BYTES], const char *format, ...) {
    const char *folder = getenv("INFERD_GOLDENS");
    if (folder == NULL) folder = TEST_ROOT "/../shared/goldens";
    const int n = snprintf(out, GOLDEN_PATH_BYTES, "%s/", folder);
    va_list args;
    va_start(args, format);
    if (n > 0 && n < GOLDEN_PATH_BYTES)
        (void)vsnprintf(out + n, GOLDEN_PATH_BYTES - (size_t)n, format, args);
    va_end(args);
}
#endif
