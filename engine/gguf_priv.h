/* Inside of engine/gguf*.c: the index of a file. Nothing else may include it. */
#ifndef INFERD_ENGINE_GGUF_PRIV_H
#define INFERD_ENGINE_GGUF_PRIV_H

#include "base/mapping.h"
#include "engine/gguf.h"

/* Bounds of the container beyond what the file's size implies: they keep the cost of refusing a
 * file small (memory: about 40 MiB at the very most; time: one pass over the header). */
enum {
    GGUF_KEYS_MAX = 65536,
    GGUF_TENSORS_MAX = 65536, /* of all parts */
    GGUF_PARTS_MAX = 512,
    GGUF_KEY_BYTES_MAX = 65535,
    GGUF_NAME_BYTES_MAX = 63, /* ggml: a tensor name is shorter than 64 */
    GGUF_ALIGNMENT_DEFAULT = 32,
    GGUF_ALIGNMENT_MIN = 8, /* float32 tensors are read in place */
    GGUF_ALIGNMENT_MAX = 1 << 20,
    GGUF_STRING_BYTES_MAX = 1 << 30,
    GGUF_ARRAY_STRINGS_MAX = 1 << 21, /* of all arrays of a part: tokens and merges */
    GGUF_HEADER_BYTES_MAX = 1 << 27   /* keys and tensor infos of a part */
};

typedef struct gguf_kv {
    gguf_str key;
    gguf_type type, elem; /* elem: of an array */
    uint64_t count;       /* elements of an array; bytes of a string */
    const uint8_t *value; /* first byte of the scalar, string or array */
    const uint8_t *end;   /* one past the value */
    uint32_t *index; /* array of strings, owned: where element i's length field lies in value */
} gguf_kv;

/* Names to indexes: open addressing under a keyed hash, so that no file can make it slow. */
typedef struct name_slot {
    gguf_str name;
    int index; /* -1: empty */
} name_slot;

typedef struct name_table {
    name_slot *slots; /* owned; n_slots is a power of two, or 0 */
    size_t n_slots, n_used;
    uint64_t key[2];
} name_table;

void name_table_init(name_table *t);
void name_table_deinit(name_table *t);
/* E_EXISTS, E_NOMEM. */
status name_table_add(name_table *t, gguf_str name, int index);
int name_table_find(const name_table *t, gguf_str name); /* -1: absent */

/* The keys of one part. */
typedef struct gguf_meta {
    gguf_kv *kv; /* owned */
    int n_kv;
    name_table names;
} gguf_meta;
void gguf_meta_deinit(gguf_meta *m);
/* NULL: absent. */
const gguf_kv *gguf_meta_find(const gguf_meta *m, const char *key);

typedef struct gguf_part {
    const uint8_t *data; /* the file's, or borrowed */
    size_t bytes;
    mapping file; /* zero when borrowed */
    char *path;   /* owned; NULL when borrowed */
} gguf_part;

struct gguf {
    gguf_meta meta; /* of the first part */
    gguf_tensor *tensors;
    int n_tensors, tensors_capacity;
    name_table tensor_names;
    gguf_part *parts;
    int n_parts;
};

/* Parses one part: its keys into *meta (zeroed by the caller, freed by the caller also on failure),
 * its tensors appended to g. `name` is for messages. */
status gguf_parse_part(gguf *g, const gguf_part *part, const char *name, gguf_meta *meta,
                       error *err);

const char *gguf_type_name(gguf_type t);
status gguf_meta_get_u64(const gguf_meta *m, const char *key, bool *found, uint64_t *out,
                         error *err);
#endif
