/* Protobuf wire format, by hand: for messages written once a token (no allocation beyond the
 * buffer, no intermediate structs) and for the small fixed ones (status details, health,
 * reflection). Source: protobuf.dev/programming-guides/encoding. Thread: one owner at a time. */
#ifndef INFERD_SERVER_PB_H
#define INFERD_SERVER_PB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Writes into a buffer of its own that grows, or into the caller's fixed one. Once something did
 * not fit, `failed` stays set and later writes do nothing. */
typedef struct pb_writer {
    uint8_t *data;
    size_t len, capacity;
    bool grows, failed;
} pb_writer;

void pb_writer_init(pb_writer *w); /* grows; pb_writer_deinit frees */
void pb_writer_init_fixed(pb_writer *w, void *buffer, size_t capacity);
void pb_writer_deinit(pb_writer *w);

/* Scalars: proto3 leaves zero values out, and so do these. */
void pb_put_uint(pb_writer *w, int field, uint64_t v);
void pb_put_float(pb_writer *w, int field, float v);
void pb_put_double(pb_writer *w, int field, double v);
/* string or bytes; left out when empty */
void pb_put_bytes(pb_writer *w, int field, const void *data, size_t len);
void pb_put_str(pb_writer *w, int field, const char *s);
/* The same, but written even when empty (elements of repeated fields, oneofs, map entries). */
void pb_put_bytes_always(pb_writer *w, int field, const void *data, size_t len);
/* packed repeated uint32; left out when n is 0 */
void pb_put_packed(pb_writer *w, int field, const int32_t *v, size_t n);
/* Ready-made fields. */
void pb_put_raw(pb_writer *w, const void *data, size_t len);
/* A submessage: begin, its fields, end. Written even when empty. */
size_t pb_begin(pb_writer *w, int field);
void pb_end(pb_writer *w, size_t mark);

typedef struct pb_field {
    int number, wire; /* 0 varint, 1 64 bit, 2 length-delimited, 5 32 bit */
    uint64_t value;
    const uint8_t *data; /* wire 2: borrowed from the input */
    size_t len;
} pb_field;

typedef struct pb_reader {
    const uint8_t *p, *end;
    bool bad; /* malformed input was met */
} pb_reader;

void pb_reader_init(pb_reader *r, const void *data, size_t len);
/* False at the end or when the input is malformed (then bad is set). */
bool pb_next(pb_reader *r, pb_field *out);
#endif
