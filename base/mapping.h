/* A file mapped read-only that may shrink, be rewritten, or lose its disk while it is read. Reading
 * a page that the file no longer has raises SIGBUS, which would end the process; here a handler
 * puts zero pages in its place, the reader goes on with zeros, and mapping_check tells. So a reader
 * needs no care of its own as long as it survives any bytes, and asks at the end whether they were
 * true.
 *
 * Why a mapping and not read(): a model is copied once, into the layout of its device; reading it
 * into memory first would need that memory twice.
 *
 * Thread: open and close by one thread at a time; the bytes may be read by any. Process-wide: the
 * first open installs a handler for SIGBUS, which leaves every other bus error to the handler
 * before it. Source of the method: systemd's journal (sigbus.c). */
#ifndef INFERD_BASE_MAPPING_H
#define INFERD_BASE_MAPPING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mapping {
    const uint8_t *data; /* page-aligned; NULL: not open */
    size_t bytes;
    int fd;           /* owned: names the file that was opened, whatever its path means now */
    int slot;         /* private */
    int64_t mtime_ns; /* of the file when it was opened */
} mapping;

/* A regular file of at least one byte. E_NOTFOUND, E_IO, E_FORMAT (empty), E_FULL (LIMIT_MAPPINGS
 * are open). */
BASE_MUST_USE status mapping_open(const char *path, mapping *out, error *err);
/* E_IO when the file is not what it was at open: pages are lost, or its size or time of change
 * differ. Then whatever was read may be wrong. `path` is for the text. */
BASE_MUST_USE status mapping_check(const mapping *m, const char *path, error *err);
/* A closed or zeroed mapping is legal. */
void mapping_close(mapping *m);
#endif
