/* Where the shared reference data lies: INFERD_GOLDENS, else beside the repository. */
#ifndef INFERD_TESTS_GOLDENS_H
#define INFERD_TESTS_GOLDENS_H

#include <stdio.h>
#include <stdlib.h>

enum { GOLDEN_PATH_BYTES = 1024 };

static inline void golden_path(char out[GOLDEN_PATH_BYTES], const char *file) {
    const char *folder = getenv("INFERD_GOLDENS");
    (void)snprintf(out, GOLDEN_PATH_BYTES, "%s/%s",
                   folder != NULL ? folder : TEST_ROOT "/../shared/goldens", file);
}
#endif
