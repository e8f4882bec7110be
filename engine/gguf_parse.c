/* The container's parser: header, keys, tensor infos of one part, each checked against the bytes
 * that are there before it is used. Nothing recurses; nothing is allocated before the count that
 * sizes it has been held against the file.
 *
 *   "GGUF" | version u32 | n_tensors u64 | n_kv u64
 *   n_kv      x  key string | type u32 | value
 *   n_tensors x  name string | n_dims u32 | ne u64[n_dims] | type u32 | offset u64
 *   zeros up to a multiple of general.alignment | tensor data */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "engine/gguf_priv.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF data is used in place: a little-endian host is needed"
#endif

typedef struct cursor {
    const uint8_t *base, *p, *end; /* end: of the file, or of the largest header */
    uint64_t n_strings;            /* elements of all string arrays so far */
    const char *name;
    error *err;
} cursor;

static size_t remaining(const cursor *c) {
    return (size_t)(c->end - c->p);
}

static status bad(const cursor *c, const char *what) {
    return error_set(c->err, E_FORMAT, "%s: byte %zu: %s", c->name, (size_t)(c->p - c->base), what);
}

static bool take_u32(cursor *c, uint32_t *out) {
    if (remaining(c) < sizeof *out) return false;
    memcpy(out, c->p, sizeof *out);
    c->p += sizeof *out;
    return true;
}

static bool take_u64(cursor *c, uint64_t *out) {
    if (remaining(c) < sizeof *out) return false;
    memcpy(out, c->p, sizeof *out);
    c->p += sizeof *out;
    return true;
}

static bool take_str(cursor *c, uint64_t bytes_max, gguf_str *out) {
    uint64_t len;
    if (!take_u64(c, &len) || len > remaining(c) || len > bytes_max) return false;
    *out = (gguf_str){(const char *)c->p, (size_t)len};
    c->p += len;
    return true;
}

/* Names go into messages and are compared as text: no control bytes, no broken UTF-8. */
static bool is_name(gguf_str s) {
    if (s.len == 0 || !utf8_valid(s.s, s.len)) return false;
    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.s[i] < 0x20 || s.s[i] == 0x7F) return false;
    return true;
}

static size_t scalar_bytes(uint32_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

static status check_bools(cursor *c, const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i] > 1) return bad(c, "a bool that is neither 0 nor 1");
    return OK;
}

static status parse_string_array(cursor *c, gguf_kv *kv) {
    if (kv->count > remaining(c) / 8) return bad(c, "an array of more strings than the file holds");
    c->n_strings += kv->count;
    if (c->n_strings > GGUF_ARRAY_STRINGS_MAX) return bad(c, "more than 2097152 strings in arrays");
    if (kv->count == 0) return OK;
    kv->index = malloc((size_t)kv->count * sizeof *kv->index);
    if (kv->index == NULL) return error_set(c->err, E_NOMEM, "%s: index of strings", c->name);
    for (uint64_t i = 0; i < kv->count; i++) {
        gguf_str s;
        kv->index[i] = (uint32_t)(c->p - kv->value);
        if (!take_str(c, GGUF_STRING_BYTES_MAX, &s))
            return bad(c, "a string in an array is longer than the file");
    }
    return OK;
}

static status parse_array(cursor *c, gguf_kv *kv) {
    uint32_t elem;
    uint64_t bytes;
    if (!take_u32(c, &elem) || !take_u64(c, &kv->count)) return bad(c, "the file ends in an array");
    kv->value = c->p;
    if (elem == GGUF_ARRAY)
        return error_set(c->err, E_UNSUPPORTED, "%s: key %.*s: an array of arrays", c->name,
                         (int)kv->key.len, kv->key.s);
    if (elem == GGUF_STRING) {
        kv->elem = GGUF_STRING;
        return parse_string_array(c, kv);
    }
    if (scalar_bytes(elem) == 0) return bad(c, "unknown element type of an array");
    kv->elem = (gguf_type)elem;
    if (!checked_mul_u64(kv->count, scalar_bytes(elem), &bytes) || bytes > remaining(c))
        return bad(c, "an array is longer than the file");
    if (elem == GGUF_BOOL) {
        const status s = check_bools(c, c->p, kv->count);
        if (s != OK) return s;
    }
    c->p += bytes;
    return OK;
}

static status parse_value(cursor *c, gguf_kv *kv) {
    uint32_t type;
    status s = OK;
    if (!take_u32(c, &type)) return bad(c, "the file ends before a value's type");
    kv->type = (gguf_type)type;
    kv->value = c->p;
    if (type == GGUF_STRING) {
        gguf_str str;
        if (!take_str(c, GGUF_STRING_BYTES_MAX, &str)) return bad(c, "a string exceeds the file");
        kv->value = (const uint8_t *)str.s;
        kv->count = str.len;
    } else if (type == GGUF_ARRAY) {
        s = parse_array(c, kv);
    } else if (scalar_bytes(type) == 0) {
        return bad(c, "unknown value type");
    } else {
        if (remaining(c) < scalar_bytes(type)) return bad(c, "the file ends in a value");
        if (type == GGUF_BOOL) s = check_bools(c, c->p, 1);
        c->p += scalar_bytes(type);
    }
    kv->end = c->p;
    return s;
}

static status parse_keys(cursor *c, uint64_t n_kv, gguf_meta *m) {
    if (n_kv > remaining(c) / 14 || n_kv > GGUF_KEYS_MAX) /* a key takes 14 bytes at least */
        return bad(c, "more keys than the file holds, or than 65536");
    m->kv = calloc(n_kv == 0 ? 1 : (size_t)n_kv, sizeof *m->kv);
    if (m->kv == NULL) return error_set(c->err, E_NOMEM, "%s: keys", c->name);
    for (int i = 0; i < (int)n_kv; i++) {
        gguf_kv *kv = &m->kv[i];
        if (!take_str(c, GGUF_KEY_BYTES_MAX, &kv->key)) return bad(c, "a key exceeds the file");
        if (!is_name(kv->key)) return bad(c, "a key is empty or not printable text");
        m->n_kv = i + 1;
        status s = parse_value(c, kv);
        if (s != OK) return s;
        s = name_table_add(&m->names, kv->key, i);
        if (s == E_EXISTS)
            return error_set(c->err, E_FORMAT, "%s: key %.*s occurs twice", c->name,
                             (int)kv->key.len, kv->key.s);
        if (s != OK) return error_set(c->err, s, "%s: keys", c->name);
    }
    return OK;
}

static status parse_header(cursor *c, uint64_t *n_tensors, uint64_t *n_kv) {
    uint32_t version;
    if (remaining(c) < 24) return bad(c, "too short for a GGUF header");
    if (memcmp(c->p, "GGUF", 4) != 0) return bad(c, "no GGUF magic: not a GGUF file");
    c->p += 4;
    (void)take_u32(c, &version);
    if (version != 0 && (version & 0xFFFF) == 0)
        return error_set(c->err, E_UNSUPPORTED, "%s: a big-endian GGUF file", c->name);
    if (version == 1) return error_set(c->err, E_UNSUPPORTED, "%s: GGUF version 1", c->name);
    if (version != 2 && version != 3)
        return error_set(c->err, version > 3 ? E_UNSUPPORTED : E_FORMAT, "%s: GGUF version %u",
                         c->name, version);
    (void)take_u64(c, n_tensors);
    (void)take_u64(c, n_kv);
    return OK;
}

/* Type ids of GGUF that inferd does not compute with, for the refusal's text. */
static const char *foreign_type_name(uint32_t id) {
    static const char *const names[] = {
        [9] = "Q8_1",      [15] = "Q8_K",     [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS",
        [19] = "IQ1_S",    [21] = "IQ3_S",    [22] = "IQ2_S",   [25] = "I16",    [26] = "I32",
        [27] = "I64",      [28] = "F64",      [29] = "IQ1_M",   [34] = "TQ1_0",  [35] = "TQ2_0",
        [40] = "NVFP4",    [41] = "Q1_0",     [42] = "Q2_0",    [4] = "Q4_2",    [5] = "Q4_3",
        [31] = "Q4_0_4_4", [32] = "Q4_0_4_8", [33] = "Q4_0_8_8"};
    const char *name = id < sizeof names / sizeof names[0] ? names[id] : NULL;
    return name != NULL ? name : "unknown";
}

/* Sizes of one tensor: every product is checked. */
static status size_tensor(const cursor *c, gguf_tensor *t) {
    const dtype_info *info = dtype_get((int)t->type);
    uint64_t n = 1, rows = 1;
    for (int d = 0; d < t->n_dims; d++) {
        if (t->ne[d] < 1) return bad(c, "a tensor dimension is not positive");
        if (!checked_mul_u64(n, (uint64_t)t->ne[d], &n) || n > INT64_MAX)
            return bad(c, "a tensor has more than 2^63 elements");
        if (d > 0) rows *= (uint64_t)t->ne[d]; /* <= n */
    }
    if (t->ne[0] % info->block_elems != 0)
        return error_set(c->err, E_FORMAT, "%s: tensor %.*s: rows of %lld are not whole %s blocks",
                         c->name, (int)t->name.len, t->name.s, (long long)t->ne[0], info->name);
    const size_t row_bytes = dtype_row_bytes(t->type, t->ne[0]);
    if (row_bytes == 0 || !checked_mul_u64(row_bytes, rows, &t->bytes))
        return bad(c, "a tensor's size overflows");
    return OK;
}

static status parse_tensor(cursor *c, gguf_tensor *t, uint64_t *offset) {
    uint32_t n_dims, type;
    if (!take_str(c, GGUF_NAME_BYTES_MAX, &t->name))
        return bad(c, "a tensor name exceeds the file or 63 bytes");
    if (!is_name(t->name)) return bad(c, "a tensor name is empty or not printable text");
    if (!take_u32(c, &n_dims)) return bad(c, "the file ends in a tensor info");
    if (n_dims < 1 || n_dims > 4) return bad(c, "a tensor has not 1 to 4 dimensions");
    t->n_dims = (int)n_dims;
    for (int d = 0; d < 4; d++) {
        uint64_t ne = 1;
        if (d < t->n_dims && !take_u64(c, &ne)) return bad(c, "the file ends in a tensor info");
        if (ne > INT64_MAX) return bad(c, "a tensor dimension is negative");
        t->ne[d] = (int64_t)ne;
    }
    if (!take_u32(c, &type) || !take_u64(c, offset))
        return bad(c, "the file ends in a tensor info");
    if (type > INT32_MAX || dtype_get((int)type) == NULL)
        return error_set(c->err, E_UNSUPPORTED, "%s: tensor %.*s: type %u (%s) is not built",
                         c->name, (int)t->name.len, t->name.s, type, foreign_type_name(type));
    t->type = (dtype)type;
    return size_tensor(c, t);
}

static status read_alignment(const cursor *c, const gguf_meta *m, uint64_t *out) {
    const gguf_kv *kv = gguf_meta_find(m, "general.alignment");
    uint32_t v = GGUF_ALIGNMENT_DEFAULT;
    if (kv != NULL) {
        if (kv->type != GGUF_U32)
            return error_set(c->err, E_FORMAT, "%s: general.alignment is no u32", c->name);
        memcpy(&v, kv->value, sizeof v);
    }
    if (v < GGUF_ALIGNMENT_MIN || v > GGUF_ALIGNMENT_MAX || (v & (v - 1)) != 0)
        return error_set(c->err, E_FORMAT,
                         "%s: general.alignment %u is no power of two from 8 to 1048576", c->name,
                         v);
    *out = v;
    return OK;
}

static status reserve_tensors(gguf *g, const cursor *c, uint64_t n) {
    if (n > remaining(c) / 33 || n > (uint64_t)(GGUF_TENSORS_MAX - g->n_tensors))
        return bad(c, "more tensors than the file holds, or than 65536"); /* 33: smallest info */
    const size_t total = (size_t)g->n_tensors + (size_t)n;
    gguf_tensor *t = realloc(g->tensors, (total == 0 ? 1 : total) * sizeof *t);
    if (t == NULL) return error_set(c->err, E_NOMEM, "%s: tensors", c->name);
    g->tensors = t;
    g->tensors_capacity = (int)total;
    return OK;
}

/* Data lies back to back in the order of the infos, as ggml demands: an offset that says otherwise
 * is a damaged file, and nothing can overlap. */
static status place_tensors(const cursor *c, const gguf_part *part, gguf *g, int first,
                            const uint64_t *offset, uint64_t alignment) {
    uint64_t data_start, sum = 0, end;
    if (!checked_align_up_u64((uint64_t)(c->p - c->base), alignment, &data_start))
        return bad(c, "the header's size overflows");
    for (int i = first; i < g->n_tensors; i++) {
        gguf_tensor *t = &g->tensors[i];
        const int len = (int)t->name.len;
        if (offset[i - first] != sum)
            return error_set(c->err, E_FORMAT, "%s: tensor %.*s at offset %llu, expected %llu",
                             c->name, len, t->name.s, (unsigned long long)offset[i - first],
                             (unsigned long long)sum);
        if (!checked_add_u64(data_start, sum, &end) || !checked_add_u64(end, t->bytes, &end) ||
            end > part->bytes)
            return error_set(c->err, E_FORMAT, "%s: tensor %.*s lies beyond the file's end",
                             c->name, len, t->name.s);
        t->data = part->data + data_start + sum;
        if (!checked_add_u64(sum, t->bytes, &sum) || !checked_align_up_u64(sum, alignment, &sum))
            return bad(c, "the tensors' sizes overflow");
    }
    return OK;
}

static status parse_tensors(cursor *c, const gguf_part *part, uint64_t n, const gguf_meta *m,
                            gguf *g) {
    uint64_t alignment = 0;
    status s = read_alignment(c, m, &alignment);
    if (s != OK) return s;
    s = reserve_tensors(g, c, n);
    if (s != OK) return s;
    uint64_t *offset = calloc(n == 0 ? 1 : (size_t)n, sizeof *offset);
    if (offset == NULL) return error_set(c->err, E_NOMEM, "%s: tensors", c->name);
    const int first = g->n_tensors;
    for (uint64_t i = 0; i < n && s == OK; i++) {
        gguf_tensor *t = &g->tensors[g->n_tensors];
        *t = (gguf_tensor){0};
        s = parse_tensor(c, t, &offset[i]);
        if (s != OK) break;
        s = name_table_add(&g->tensor_names, t->name, g->n_tensors);
        if (s == E_EXISTS)
            (void)error_set(c->err, s = E_FORMAT, "%s: tensor %.*s occurs twice", c->name,
                            (int)t->name.len, t->name.s);
        else if (s != OK)
            (void)error_set(c->err, s, "%s: tensors", c->name);
        else
            g->n_tensors++;
    }
    if (s == OK) s = place_tensors(c, part, g, first, offset, alignment);
    free(offset);
    return s;
}

status gguf_parse_part(gguf *g, const gguf_part *part, const char *name, gguf_meta *meta,
                       error *err) {
    size_t header_bytes = part->bytes;
    if (header_bytes > GGUF_HEADER_BYTES_MAX) header_bytes = GGUF_HEADER_BYTES_MAX;
    cursor c = {.base = part->data,
                .p = part->data,
                .end = part->data + header_bytes,
                .name = name,
                .err = err};
    uint64_t n_tensors = 0, n_kv = 0;
    name_table_init(&meta->names);
    status s = parse_header(&c, &n_tensors, &n_kv);
    if (s != OK) return s;
    if (n_tensors > GGUF_TENSORS_MAX) return bad(&c, "more than 65536 tensors");
    s = parse_keys(&c, n_kv, meta);
    if (s != OK) return s;
    return parse_tensors(&c, part, n_tensors, meta, g);
}
