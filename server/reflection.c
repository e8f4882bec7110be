/* The descriptor set is 10 KB and walked for every request: no index to build, keep or guard. */
#include "server/reflection.h"

#include <assert.h>
#include <grpc/byte_buffer_reader.h>
#include <stdlib.h>
#include <string.h>

extern const unsigned char proto_descriptors[]; /* cmake/protobuf.cmake */
extern const size_t proto_descriptors_bytes;

enum { /* fields of descriptor.proto */
       SET_FILE = 1,
       FILE_NAME = 1,
       FILE_PACKAGE = 2,
       FILE_DEPENDENCY = 3,
       FILE_MESSAGE = 4,
       FILE_ENUM = 5,
       FILE_SERVICE = 6,
       MESSAGE_FIELD = 2,
       MESSAGE_NESTED = 3,
       MESSAGE_ENUM = 4,
       ENUM_VALUE = 2,
       SERVICE_METHOD = 2,
       ANY_NAME = 1
};

typedef struct span {
    const uint8_t *s;
    size_t len;
} span;

static bool span_is(span a, span b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.s, b.s, a.len) == 0);
}

/* The next length-delimited field `number`; false at the end. */
static bool next_of(pb_reader *r, int number, span *out) {
    pb_field f;
    while (pb_next(r, &f))
        if (f.number == number && f.wire == 2) {
            *out = (span){f.data, f.len};
            return true;
        }
    return false;
}

static span first_of(span message, int number) {
    pb_reader r;
    span out = {NULL, 0};
    pb_reader_init(&r, message.s, message.len);
    next_of(&r, number, &out);
    return out;
}

/* Does an element of field `number`, or something in it, have the dotted path `symbol`? */
static bool has_symbol(span parent, int number, span symbol);

static bool inside(span element, int number, span rest) {
    switch (number) {
    case FILE_MESSAGE: /* a message; MESSAGE_NESTED is handled as one */
        return has_symbol(element, MESSAGE_FIELD, rest) ||
               has_symbol(element, MESSAGE_NESTED, rest) || has_symbol(element, MESSAGE_ENUM, rest);
    case FILE_ENUM:
        return has_symbol(element, ENUM_VALUE, rest);
    default:
        return has_symbol(element, SERVICE_METHOD, rest);
    }
}

static bool element_has(span element, int kind, span symbol) {
    const span name = first_of(element, ANY_NAME);
    if (span_is(name, symbol)) return true;
    if (symbol.len <= name.len || memcmp(symbol.s, name.s, name.len) != 0 ||
        symbol.s[name.len] != '.')
        return false;
    return inside(element, kind, (span){symbol.s + name.len + 1, symbol.len - name.len - 1});
}

static bool has_symbol(span parent, int number, span symbol) {
    pb_reader r;
    span element;
    pb_reader_init(&r, parent.s, parent.len);
    while (next_of(&r, number, &element)) {
        const bool found = number == MESSAGE_NESTED ? element_has(element, FILE_MESSAGE, symbol)
                           : number == MESSAGE_ENUM ? element_has(element, FILE_ENUM, symbol)
                                                    : span_is(first_of(element, ANY_NAME), symbol);
        if (found) return true;
    }
    return false;
}

static bool file_has(span file, span symbol) {
    const span package = first_of(file, FILE_PACKAGE);
    if (symbol.len <= package.len + 1 || memcmp(symbol.s, package.s, package.len) != 0 ||
        symbol.s[package.len] != '.')
        return false;
    const span rest = {symbol.s + package.len + 1, symbol.len - package.len - 1};
    for (int kind = FILE_MESSAGE; kind <= FILE_SERVICE; kind++) {
        pb_reader r;
        span element;
        pb_reader_init(&r, file.s, file.len);
        while (next_of(&r, kind, &element))
            if (element_has(element, kind, rest)) return true;
    }
    return false;
}

static bool find_file(span wanted, bool by_symbol, span *out) {
    pb_reader r;
    pb_reader_init(&r, proto_descriptors, proto_descriptors_bytes);
    while (next_of(&r, SET_FILE, out))
        if (by_symbol ? file_has(*out, wanted) : span_is(first_of(*out, FILE_NAME), wanted))
            return true;
    return false;
}

/* --- answers --- */

static void put_error(pb_writer *w, const char *message) {
    const size_t m = pb_begin(w, 7);
    pb_put_uint(w, 1, GRPC_STATUS_NOT_FOUND);
    pb_put_str(w, 2, message);
    pb_end(w, m);
}

enum { FILES_MAX = 32 };

/* The file and what it imports, each once. */
static void put_files(pb_writer *w, span file) {
    span todo[FILES_MAX] = {file};
    int n = 1;
    const size_t m = pb_begin(w, 4);
    for (int i = 0; i < n; i++) {
        pb_reader r;
        span name, dependency;
        pb_put_bytes_always(w, 1, todo[i].s, todo[i].len);
        pb_reader_init(&r, todo[i].s, todo[i].len);
        while (next_of(&r, FILE_DEPENDENCY, &name)) {
            if (n == FILES_MAX || !find_file(name, false, &dependency)) continue;
            bool seen = false;
            for (int k = 0; k < n; k++) seen = seen || todo[k].s == dependency.s;
            if (!seen) todo[n++] = dependency;
        }
    }
    pb_end(w, m);
}

static void put_services(pb_writer *w) {
    pb_reader files, services;
    span file, service;
    const size_t m = pb_begin(w, 6);
    pb_reader_init(&files, proto_descriptors, proto_descriptors_bytes);
    while (next_of(&files, SET_FILE, &file)) {
        const span package = first_of(file, FILE_PACKAGE);
        pb_reader_init(&services, file.s, file.len);
        while (next_of(&services, FILE_SERVICE, &service)) {
            const span name = first_of(service, ANY_NAME);
            char full[256];
            if (package.len + name.len + 1 > sizeof full) continue;
            memcpy(full, package.s, package.len);
            full[package.len] = '.';
            memcpy(full + package.len + 1, name.s, name.len);
            const size_t e = pb_begin(w, 1);
            pb_put_bytes(w, 1, full, package.len + 1 + name.len);
            pb_end(w, e);
        }
    }
    pb_end(w, m);
}

bool reflection_answer(const void *request, size_t len, pb_writer *w) {
    pb_reader r;
    pb_field f, ask = {0};
    span host = {NULL, 0}, file;
    pb_reader_init(&r, request, len);
    while (pb_next(&r, &f)) {
        if (f.wire != 2) continue;
        if (f.number == 1) host = (span){f.data, f.len};
        if (f.number >= 3 && f.number <= 7) ask = f;
    }
    if (r.bad) return false;
    pb_put_bytes(w, 1, host.s, host.len);
    pb_put_bytes_always(w, 2, request, len);
    const span wanted = {ask.data, ask.len};
    switch (ask.number) {
    case 3:
    case 4:
        if (find_file(wanted, ask.number == 4, &file))
            put_files(w, file);
        else
            put_error(w, "not found");
        break;
    case 6: /* no extensions here: an empty list for a type that is known */
        if (find_file(wanted, true, &file)) {
            const size_t m = pb_begin(w, 5);
            pb_put_bytes(w, 1, wanted.s, wanted.len);
            pb_end(w, m);
        } else {
            put_error(w, "not found");
        }
        break;
    case 7:
        put_services(w);
        break;
    default:
        put_error(w, "not found");
        break;
    }
    return !w->failed;
}

bool reflection_serves(grpc_slice method) {
    static const char *const PATHS[] = {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};
    return grpc_slice_str_cmp(method, PATHS[0]) == 0 || grpc_slice_str_cmp(method, PATHS[1]) == 0;
}

/* --- the stream: read, answer, read --- */

typedef struct conversation {
    call *c;
    rpc_tag did_read, wrote, closed;
    grpc_byte_buffer *received, *message;
    int refs; /* tags in flight */
    bool headers_sent;
} conversation;

static void conversation_unref(conversation *v) {
    if (--v->refs > 0) return;
    call *c = v->c;
    free(v);
    call_release(c);
}

static void start(conversation *v, grpc_op *ops, size_t n, rpc_tag *tag) {
    v->refs++;
    const grpc_call_error e = grpc_call_start_batch(v->c->rpc, ops, n, tag, NULL);
    assert(e == GRPC_CALL_OK);
    (void)e;
}

static void read_next(conversation *v) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &v->received};
    start(v, &op, 1, &v->did_read);
}

static void finish(conversation *v, const refusal *r) {
    grpc_op ops[2];
    size_t n = 0;
    if (!v->headers_sent) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    v->headers_sent = true;
    call_status_op(v->c, r, &ops[n++]);
    start(v, ops, n, &v->closed); /* on_done only gives the reference back */
}

static void on_done(void *owner, bool ok) {
    (void)ok;
    conversation_unref(owner);
}

static void on_read(void *owner, bool ok) {
    conversation *v = owner;
    if (!ok || !v->received) {
        if (ok) finish(v, NULL); /* half-closed: all is said */
        conversation_unref(v);
        return;
    }
    grpc_byte_buffer_reader reader;
    pb_writer w;
    pb_writer_init(&w);
    bool good = grpc_byte_buffer_reader_init(&reader, v->received) != 0;
    if (good) {
        grpc_slice s = grpc_byte_buffer_reader_readall(&reader);
        good = reflection_answer(GRPC_SLICE_START_PTR(s), GRPC_SLICE_LENGTH(s), &w);
        grpc_slice_unref(s);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(v->received);
    v->received = NULL;
    if (good) {
        grpc_op ops[2];
        size_t n = 0;
        if (!v->headers_sent) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
        v->headers_sent = true;
        v->message = call_bytes(w.data, w.len);
        ops[n++] =
            (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = v->message};
        start(v, ops, n, &v->wrote);
    } else {
        finish(v, &(refusal){.kind = REFUSE_INVALID});
    }
    pb_writer_deinit(&w);
    conversation_unref(v);
}

static void on_wrote(void *owner, bool ok) {
    conversation *v = owner;
    grpc_byte_buffer_destroy(v->message);
    v->message = NULL;
    if (ok) read_next(v);
    conversation_unref(v);
}

void reflection_handle(call *c) {
    conversation *v = calloc(1, sizeof *v);
    if (!v) {
        call_refuse_kind(c, REFUSE_INTERNAL);
        return;
    }
    v->c = c;
    v->did_read = (rpc_tag){on_read, v};
    v->wrote = (rpc_tag){on_wrote, v};
    v->closed = (rpc_tag){on_done, v};
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                  .data.recv_close_on_server.cancelled = &c->cancelled};
    start(v, &op, 1, &v->closed);
    read_next(v);
}
