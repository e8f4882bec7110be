/* GGUF v2 and v3, little-endian: a hostile-input parser that returns errors and never aborts.
 * Every count, length, product and offset is checked against the file's size before it is used.
 * Split files (PREFIX-00001-of-0000N.gguf) open as one model when the first part is named. Source:
 * ggml docs/gguf.md. Thread: one at a time; immutable after open. */
#ifndef INFERD_ENGINE_GGUF_H
#define INFERD_ENGINE_GGUF_H

#include "base/hash.h"
#include "base/status.h"
#include "kernels/dtype.h"

typedef struct gguf gguf; /* opaque: mapped read-only files plus a checked index */

typedef struct gguf_str {
    const char
        *s; /* not NUL-terminated, borrowed from the mapping; no NUL inside keys and tensor names */
    size_t len;
} gguf_str;

typedef enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
} gguf_type;

typedef struct gguf_tensor {
    gguf_str name;
    int n_dims;       /* 1..4 */
    int64_t ne[4];    /* each >= 1; ne[0] is contiguous */
    dtype type;       /* always one that dtype_get() knows */
    const void *data; /* in the mapping, bytes long */
    uint64_t bytes;
} gguf_tensor;

/* Array value; elements are read with gguf_array_*. */
typedef struct gguf_array {
    gguf_type type;
    uint64_t count;
    const void *impl; /* private */
} gguf_array;

/* Maps and indexes the file. E_NOTFOUND, E_IO, E_FORMAT (text names what is wrong and where),
 * E_UNSUPPORTED (v1, big-endian, removed or unknown tensor type, named). On failure nothing stays
 * mapped. */
BASE_MUST_USE status gguf_open(const char *path, gguf **out, error *err);
/* E_IO when a file of g is not what it was at open: truncated, rewritten, unreadable. Nobody
 * crashes on that (base/mapping.h), but what was read may be wrong: ask after the last read, before
 * use. */
BASE_MUST_USE status gguf_check_unchanged(const gguf *g, error *err);
/* Parses bytes in memory (tests, fuzzing); borrowed until close. */
BASE_MUST_USE status gguf_open_memory(const void *data, size_t bytes, gguf **out, error *err);
void gguf_close(gguf *g);

uint64_t gguf_file_bytes(const gguf *g); /* all parts */
/* SHA-256 of the first part's bytes (all parts in order when split). Reads the whole file. */
BASE_MUST_USE status gguf_sha256(const gguf *g, uint8_t out[32]);

/* Typed getters. false: the key is absent. A key of the wrong type is E_FORMAT at open of the user,
 * so these return a status where the difference matters: OK and *found. Integers accept any integer
 * type with a range check, floats f32 and f64. */
BASE_MUST_USE status gguf_get_u64(const gguf *g, const char *key, bool *found, uint64_t *out,
                                  error *err);
BASE_MUST_USE status gguf_get_i64(const gguf *g, const char *key, bool *found, int64_t *out,
                                  error *err);
BASE_MUST_USE status gguf_get_f64(const gguf *g, const char *key, bool *found, double *out,
                                  error *err);
BASE_MUST_USE status gguf_get_bool(const gguf *g, const char *key, bool *found, bool *out,
                                   error *err);
BASE_MUST_USE status gguf_get_str(const gguf *g, const char *key, bool *found, gguf_str *out,
                                  error *err);
BASE_MUST_USE status gguf_get_array(const gguf *g, const char *key, bool *found, gguf_array *out,
                                    error *err);
bool gguf_has(const gguf *g, const char *key);

/* i < count; the array's element type must fit (string; any integer; f32/f64), else false. O(1). */
bool gguf_array_str(const gguf_array *a, uint64_t i, gguf_str *out);
bool gguf_array_i64(const gguf_array *a, uint64_t i, int64_t *out);
bool gguf_array_f64(const gguf_array *a, uint64_t i, double *out);

int gguf_n_tensors(const gguf *g);
const gguf_tensor *gguf_tensor_at(const gguf *g, int i);
const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name); /* NULL: absent. O(1) */
#endif
