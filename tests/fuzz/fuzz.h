/* What the fuzz targets share: libFuzzer's entry, and texts cut out of the input. */
#ifndef INFERD_TESTS_FUZZ_FUZZ_H
#define INFERD_TESTS_FUZZ_FUZZ_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An exact, 16-byte aligned copy, so that the sanitizer sees every byte beyond; never NULL. */
static inline uint8_t *fuzz_copy(const uint8_t *data, size_t size) {
    uint8_t *p = malloc(size == 0 ? 1 : size);
    if (p == NULL) abort();
    if (size > 0) memcpy(p, data, size);
    return p;
}

/* Takes the bytes up to the next `mark` (or the end) off *data. */
static inline const char *fuzz_take(const uint8_t **data, size_t *size, uint8_t mark, size_t *len) {
    const char *s = (const char *)*data;
    const uint8_t *end = *size == 0 ? NULL : memchr(*data, mark, *size);
    *len = end == NULL ? *size : (size_t)(end - *data);
    const size_t used = *len + (end != NULL);
    *data += used;
    *size -= used;
    return s;
}
#endif
