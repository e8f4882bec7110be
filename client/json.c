#include "client/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static json_t *base64(const uint8_t *data, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = malloc(n / 3 * 4 + 5);
    if (!out) abort();
    size_t len = 0;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)data[i] << 16;
        if (i + 1 < n) v |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < n) v |= data[i + 2];
        for (int k = 0; k < 4; k++)
            out[len++] = i + (size_t)k <= n ? digits[v >> (18 - 6 * k) & 63] : '=';
    }
    json_t *j = json_stringn(out, len);
    free(out);
    return j;
}

json_t *json_of_text(const void *data, size_t bytes) {
    if (bytes == 0) return json_string("");
    if (utf8_valid(data, bytes)) return json_stringn(data, bytes);
    return base64(data, bytes);
}

static json_t *json_of_u64(uint64_t v) {
    if (v <= UINT64_C(1) << 53) return json_integer((json_int_t)v);
    char text[32];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    return json_string(text);
}

/* JSON has no NaN and no infinity. */
static json_t *json_of_real(double v) {
    return isfinite(v) ? json_real(v) : json_null();
}

/* The shortest text that reads back as the same float, so that 0.7f prints as 0.7. */
static json_t *json_of_float(float v) {
    char text[40];
    for (int digits = 6; digits <= 9; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    return json_of_real(strtod(text, NULL));
}

static json_t *json_of_value(const ProtobufCFieldDescriptor *f, const void *at, bool all) {
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return json_integer(*(const int32_t *)at);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return json_integer(*(const uint32_t *)at);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return json_integer(*(const int64_t *)at);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return json_of_u64(*(const uint64_t *)at);
    case PROTOBUF_C_TYPE_FLOAT:
        return json_of_float(*(const float *)at);
    case PROTOBUF_C_TYPE_DOUBLE:
        return json_of_real(*(const double *)at);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)at);
    case PROTOBUF_C_TYPE_ENUM: {
        const int value = *(const int *)at;
        const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(f->descriptor, value);
        return v ? json_string(v->name) : json_integer(value);
    }
    case PROTOBUF_C_TYPE_STRING: {
        const char *s = *(char *const *)at;
        return json_of_text(s, s ? strlen(s) : 0);
    }
    case PROTOBUF_C_TYPE_BYTES: {
        const ProtobufCBinaryData *b = at;
        /* Generated with string_as_bytes, strings look like bytes. The API has one field of real
         * bytes, Piece.bytes, and JSON has base64 for it always. */
        if (strcmp(f->name, "bytes") == 0) return base64(b->data, b->len);
        return json_of_text(b->data, b->len);
    }
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *m = *(ProtobufCMessage *const *)at;
        return m ? json_of_message(m, all) : json_null();
    }
    }
    return json_null();
}

static size_t value_bytes(const ProtobufCFieldDescriptor *f) {
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default:
        return 4;
    }
}

static bool is_zero(const ProtobufCFieldDescriptor *f, const void *at) {
    static const uint8_t zeros[16];
    if (f->type == PROTOBUF_C_TYPE_BYTES) return ((const ProtobufCBinaryData *)at)->len == 0;
    if (f->type == PROTOBUF_C_TYPE_STRING) return !*(char *const *)at || !**(char *const *)at;
    return memcmp(at, zeros, value_bytes(f)) == 0;
}

json_t *json_of_message(const ProtobufCMessage *m, bool all) {
    json_t *out = json_object();
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        const char *at = (const char *)m + f->offset;
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            const size_t n = *(const size_t *)((const char *)m + f->quantifier_offset);
            if (n == 0 && !all) continue;
            json_t *list = json_array();
            const char *items = *(char *const *)at;
            for (size_t k = 0; k < n; k++)
                (void)json_array_append_new(list,
                                            json_of_value(f, items + k * value_bytes(f), all));
            (void)json_object_set_new(out, f->name, list);
            continue;
        }
        if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
            if (*(const uint32_t *)((const char *)m + f->quantifier_offset) != f->id) continue;
        } else if (!all && is_zero(f, at)) {
            continue;
        }
        (void)json_object_set_new(out, f->name, json_of_value(f, at, all));
    }
    return out;
}

void json_print_line(json_t *j) {
    (void)json_dumpf(j, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', stdout);
    (void)fflush(stdout);
    json_decref(j);
}
