#include "server/pb.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void pb_writer_init(pb_writer *w) {
    *w = (pb_writer){.grows = true};
}

void pb_writer_init_fixed(pb_writer *w, void *buffer, size_t capacity) {
    *w = (pb_writer){.data = buffer, .capacity = capacity};
}

void pb_writer_deinit(pb_writer *w) {
    if (w->grows) free(w->data);
    *w = (pb_writer){0};
}

/* Room for n more bytes, or NULL and failed. */
static uint8_t *room(pb_writer *w, size_t n) {
    if (w->failed) return NULL;
    if (n > w->capacity - w->len) {
        const size_t want = w->len + n;
        size_t capacity = w->capacity > 0 ? w->capacity : 256;
        while (w->grows && capacity < want && capacity <= SIZE_MAX / 2) capacity *= 2;
        uint8_t *data = w->grows && capacity >= want ? realloc(w->data, capacity) : NULL;
        if (!data) {
            w->failed = true;
            return NULL;
        }
        w->data = data;
        w->capacity = capacity;
    }
    return w->data + w->len;
}

static size_t varint_bytes(uint64_t v) {
    size_t n = 1;
    while (v >= 0x80) {
        v >>= 7;
        n++;
    }
    return n;
}

static void put_varint(pb_writer *w, uint64_t v) {
    const size_t n = varint_bytes(v);
    uint8_t *p = room(w, n);
    if (!p) return;
    for (; v >= 0x80; v >>= 7) *p++ = (uint8_t)(v | 0x80);
    *p = (uint8_t)v;
    w->len += n;
}

static void put_tag(pb_writer *w, int field, int wire) {
    put_varint(w, (uint64_t)field << 3 | (uint64_t)wire);
}

void pb_put_raw(pb_writer *w, const void *data, size_t len) {
    if (len == 0) return;
    uint8_t *p = room(w, len);
    if (!p) return;
    memcpy(p, data, len);
    w->len += len;
}

void pb_put_uint(pb_writer *w, int field, uint64_t v) {
    if (v == 0) return;
    put_tag(w, field, 0);
    put_varint(w, v);
}

void pb_put_float(pb_writer *w, int field, float v) {
    if (v == 0.0f) return;
    put_tag(w, field, 5);
    pb_put_raw(w, &v, sizeof v); /* wire order is little-endian, as are all targets of inferd */
}

void pb_put_double(pb_writer *w, int field, double v) {
    if (v == 0.0) return;
    put_tag(w, field, 1);
    pb_put_raw(w, &v, sizeof v);
}

void pb_put_bytes_always(pb_writer *w, int field, const void *data, size_t len) {
    put_tag(w, field, 2);
    put_varint(w, len);
    pb_put_raw(w, data, len);
}

void pb_put_bytes(pb_writer *w, int field, const void *data, size_t len) {
    if (len > 0) pb_put_bytes_always(w, field, data, len);
}

void pb_put_str(pb_writer *w, int field, const char *s) {
    pb_put_bytes(w, field, s, strlen(s));
}

void pb_put_packed(pb_writer *w, int field, const int32_t *v, size_t n) {
    if (n == 0) return;
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) bytes += varint_bytes((uint32_t)v[i]);
    put_tag(w, field, 2);
    put_varint(w, bytes);
    for (size_t i = 0; i < n; i++) put_varint(w, (uint32_t)v[i]);
}

size_t pb_begin(pb_writer *w, int field) {
    put_tag(w, field, 2);
    if (room(w, 1)) w->len++; /* one byte of length; pb_end makes more room when it needs it */
    return w->len;
}

void pb_end(pb_writer *w, size_t mark) {
    if (w->failed) return;
    assert(mark >= 1 && mark <= w->len);
    size_t len = w->len - mark;
    const size_t n = varint_bytes(len);
    if (n > 1) {
        if (!room(w, n - 1)) return;
        memmove(w->data + mark + n - 1, w->data + mark, len);
        w->len += n - 1;
    }
    uint8_t *p = w->data + mark - 1;
    for (; len >= 0x80; len >>= 7) *p++ = (uint8_t)(len | 0x80);
    *p = (uint8_t)len;
}

void pb_reader_init(pb_reader *r, const void *data, size_t len) {
    r->p = data;
    r->end = len > 0 ? r->p + len : r->p;
    r->bad = false;
}

static bool get_varint(pb_reader *r, uint64_t *out) {
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && r->p < r->end; shift += 7) {
        const uint8_t b = *r->p++;
        v |= (uint64_t)(b & 0x7F) << shift;
        if (b < 0x80) {
            *out = v;
            return true;
        }
    }
    r->bad = true;
    return false;
}

static bool get_fixed(pb_reader *r, size_t bytes, uint64_t *out) {
    if ((size_t)(r->end - r->p) < bytes) {
        r->bad = true;
        return false;
    }
    *out = 0;
    memcpy(out, r->p, bytes);
    r->p += bytes;
    return true;
}

bool pb_next(pb_reader *r, pb_field *out) {
    uint64_t tag;
    if (r->bad || r->p == r->end || !get_varint(r, &tag)) return false;
    *out = (pb_field){.number = (int)(tag >> 3 & 0x1FFFFFFF), .wire = (int)(tag & 7)};
    switch (out->wire) {
    case 0:
        return get_varint(r, &out->value);
    case 1:
        return get_fixed(r, 8, &out->value);
    case 5:
        return get_fixed(r, 4, &out->value);
    case 2:
        if (!get_varint(r, &out->value)) return false;
        if (out->value > (uint64_t)(r->end - r->p)) break;
        out->data = r->p;
        out->len = (size_t)out->value;
        r->p += out->len;
        return true;
    default: /* groups are not part of proto3 */
        break;
    }
    r->bad = true;
    return false;
}
