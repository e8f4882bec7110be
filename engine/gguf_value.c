/* Typed reading of keys. A file that changes under the mapping can make a value wrong, never a read
 * out of bounds: lengths are held against the end of the value again. */
#include <stdlib.h>
#include <string.h>

#include "engine/gguf_priv.h"

const char *gguf_type_name(gguf_type t) {
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return (unsigned)t < sizeof names / sizeof names[0] ? names[t] : "?";
}

void gguf_meta_deinit(gguf_meta *m) {
    for (int i = 0; i < m->n_kv; i++) free(m->kv[i].index);
    free(m->kv);
    name_table_deinit(&m->names);
    *m = (gguf_meta){0};
}

const gguf_kv *gguf_meta_find(const gguf_meta *m, const char *key) {
    const int i = name_table_find(&m->names, (gguf_str){key, strlen(key)});
    return i < 0 ? NULL : &m->kv[i];
}

/* An integer of any width: negative numbers in *i, the others in *u. */
typedef struct integer {
    bool negative;
    int64_t i;
    uint64_t u;
} integer;

static bool read_integer(gguf_type type, const uint8_t *p, integer *out) {
    int64_t i = 0;
    switch (type) {
#define READ(tag, ctype)                                                                           \
    case tag: {                                                                                    \
        ctype v;                                                                                   \
        memcpy(&v, p, sizeof v);                                                                   \
        i = v;                                                                                     \
        break;                                                                                     \
    }
        READ(GGUF_U8, uint8_t)
        READ(GGUF_I8, int8_t)
        READ(GGUF_U16, uint16_t)
        READ(GGUF_I16, int16_t)
        READ(GGUF_U32, uint32_t)
        READ(GGUF_I32, int32_t)
        READ(GGUF_I64, int64_t)
#undef READ
    case GGUF_U64:
        out->negative = false;
        memcpy(&out->u, p, sizeof out->u);
        return true;
    default:
        return false;
    }
    *out = (integer){.negative = i < 0, .i = i, .u = i < 0 ? 0 : (uint64_t)i};
    return true;
}

static bool read_real(gguf_type type, const uint8_t *p, double *out) {
    if (type == GGUF_F64) {
        memcpy(out, p, sizeof *out);
        return true;
    }
    if (type != GGUF_F32) return false;
    float v;
    memcpy(&v, p, sizeof v);
    *out = (double)v;
    return true;
}

static status wrong_type(const gguf_kv *kv, const char *wanted, error *err) {
    return error_set(err, E_FORMAT, "key %.*s: %s where %s is expected", (int)kv->key.len,
                     kv->key.s, gguf_type_name(kv->type), wanted);
}

static status out_of_range(const gguf_kv *kv, error *err) {
    return error_set(err, E_FORMAT, "key %.*s: out of range", (int)kv->key.len, kv->key.s);
}

status gguf_meta_get_u64(const gguf_meta *m, const char *key, bool *found, uint64_t *out,
                         error *err) {
    const gguf_kv *kv = gguf_meta_find(m, key);
    integer v;
    if (kv != NULL) {
        if (!read_integer(kv->type, kv->value, &v)) return wrong_type(kv, "an integer", err);
        if (v.negative) return out_of_range(kv, err);
        *out = v.u;
    }
    *found = kv != NULL;
    return OK;
}

status gguf_get_u64(const gguf *g, const char *key, bool *found, uint64_t *out, error *err) {
    return gguf_meta_get_u64(&g->meta, key, found, out, err);
}

status gguf_get_i64(const gguf *g, const char *key, bool *found, int64_t *out, error *err) {
    const gguf_kv *kv = gguf_meta_find(&g->meta, key);
    integer v;
    if (kv != NULL) {
        if (!read_integer(kv->type, kv->value, &v)) return wrong_type(kv, "an integer", err);
        if (!v.negative && v.u > INT64_MAX) return out_of_range(kv, err);
        *out = v.negative ? v.i : (int64_t)v.u;
    }
    *found = kv != NULL;
    return OK;
}

status gguf_get_f64(const gguf *g, const char *key, bool *found, double *out, error *err) {
    const gguf_kv *kv = gguf_meta_find(&g->meta, key);
    double v;
    if (kv != NULL) {
        if (!read_real(kv->type, kv->value, &v)) return wrong_type(kv, "f32 or f64", err);
        *out = v;
    }
    *found = kv != NULL;
    return OK;
}

status gguf_get_bool(const gguf *g, const char *key, bool *found, bool *out, error *err) {
    const gguf_kv *kv = gguf_meta_find(&g->meta, key);
    if (kv != NULL) {
        if (kv->type != GGUF_BOOL) return wrong_type(kv, "bool", err);
        *out = *kv->value != 0;
    }
    *found = kv != NULL;
    return OK;
}

status gguf_get_str(const gguf *g, const char *key, bool *found, gguf_str *out, error *err) {
    const gguf_kv *kv = gguf_meta_find(&g->meta, key);
    if (kv != NULL) {
        if (kv->type != GGUF_STRING) return wrong_type(kv, "string", err);
        *out = (gguf_str){(const char *)kv->value, (size_t)kv->count};
    }
    *found = kv != NULL;
    return OK;
}

status gguf_get_array(const gguf *g, const char *key, bool *found, gguf_array *out, error *err) {
    const gguf_kv *kv = gguf_meta_find(&g->meta, key);
    if (kv != NULL) {
        if (kv->type != GGUF_ARRAY) return wrong_type(kv, "array", err);
        *out = (gguf_array){kv->elem, kv->count, kv};
    }
    *found = kv != NULL;
    return OK;
}

bool gguf_has(const gguf *g, const char *key) {
    return gguf_meta_find(&g->meta, key) != NULL;
}

bool gguf_array_str(const gguf_array *a, uint64_t i, gguf_str *out) {
    const gguf_kv *kv = a->impl;
    uint64_t len;
    if (a->type != GGUF_STRING || i >= a->count) return false;
    const uint8_t *p = kv->value + kv->index[i];
    memcpy(&len, p, sizeof len);
    p += sizeof len;
    if (len > (uint64_t)(kv->end - p)) return false;
    *out = (gguf_str){(const char *)p, (size_t)len};
    return true;
}

bool gguf_array_i64(const gguf_array *a, uint64_t i, int64_t *out) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 0, 0, 0, 0, 8, 8, 0};
    const gguf_kv *kv = a->impl;
    integer v;
    if (i >= a->count || !read_integer(a->type, kv->value + i * bytes[a->type], &v)) return false;
    if (!v.negative && v.u > INT64_MAX) return false;
    *out = v.negative ? v.i : (int64_t)v.u;
    return true;
}

bool gguf_array_f64(const gguf_array *a, uint64_t i, double *out) {
    const gguf_kv *kv = a->impl;
    const size_t bytes = a->type == GGUF_F64 ? 8 : 4;
    return i < a->count && read_real(a->type, kv->value + i * bytes, out);
}
