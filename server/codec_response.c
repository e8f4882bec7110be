#include "server/codec_response.h"

#include <assert.h>
#include <string.h>

enum {
    FIELD_LOGPROBS = 6,
    VARINT_MAX = 10,
    TOKEN_BYTES = 18, /* index, and the heads of text and ids: a tag and a varint of 5 bytes each */
    FIXED_BYTES = 512,
    SMALL_BYTES = 256
};

static void put_top(pb_writer *w, int32_t token, float logprob) {
    const size_t m = pb_begin(w, 4);
    pb_put_uint(w, 1, (uint32_t)token);
    pb_put_float(w, 2, logprob);
    pb_end(w, m);
}

void codec_put_logprob(pb_writer *w, const out_event *e) {
    const size_t m = pb_begin(w, FIELD_LOGPROBS);
    pb_put_uint(w, 1, (uint32_t)e->token);
    pb_put_float(w, 2, e->logprob);
    pb_put_uint(w, 3, (uint32_t)e->rank);
    for (int i = 0; i < e->n_top; i++) put_top(w, e->top[i].token, e->top[i].logprob);
    pb_end(w, m);
}

static void put_prompt(pb_writer *w, const response_prompt *p) {
    pb_put_str(w, 1, p->request_id);
    const size_t m = pb_begin(w, 2);
    pb_put_uint(w, 1, p->tokens);
    pb_put_uint(w, 2, p->cached_tokens);
    pb_put_uint(w, 3, p->seed);
    for (size_t i = 0; p->rows && i < p->n_rows; i++) {
        const size_t row = pb_begin(w, 4);
        pb_put_uint(w, 1, (uint32_t)p->prompt[i]);
        pb_put_float(w, 2, p->rows[i].logprob);
        pb_put_uint(w, 3, (uint32_t)p->rows[i].rank);
        for (size_t t = 0; t < (size_t)p->rows[i].n_top && t < p->n_top; t++) {
            const out_top *top = &p->tops[i * p->n_top + t];
            put_top(w, top->token, top->logprob);
        }
        pb_end(w, row);
    }
    pb_end(w, m);
}

static void put_usage(pb_writer *w, const response_usage *u) {
    const size_t m = pb_begin(w, 8);
    pb_put_uint(w, 1, u->prompt_tokens);
    pb_put_uint(w, 2, u->cached_tokens);
    pb_put_uint(w, 3, u->completion_tokens);
    pb_put_double(w, 4, u->queue_ms);
    pb_put_double(w, 5, u->prefill_ms);
    pb_put_double(w, 6, u->first_token_ms);
    pb_put_double(w, 7, u->total_ms);
    pb_put_uint(w, 8, u->preemptions);
    pb_end(w, m);
}

static void write_response(pb_writer *w, const response *r) {
    if (r->prompt) put_prompt(w, r->prompt);
    pb_put_uint(w, 3, r->index);
    pb_put_bytes(w, 4, r->text, r->text_len);
    pb_put_packed(w, 5, r->ids, r->n_ids);
    if (r->logprobs_len > 0) pb_put_raw(w, r->logprobs, r->logprobs_len);
    if (r->reason != FINISH_NONE) {
        const size_t m = pb_begin(w, 7);
        pb_put_uint(w, 1, (uint64_t)r->reason);
        pb_put_bytes(w, 2, r->stop, r->stop_len);
        pb_put_uint(w, 3, r->stop_token_id);
        pb_end(w, m);
    }
    if (r->usage) put_usage(w, r->usage);
}

bool codec_response_write(const response *r, pb_writer *w) {
    write_response(w, r);
    return !w->failed;
}

/* Upper bound of what write_response writes: fixed parts (ids of 128 bytes, usage, finish) where
 * there are any, and the growing ones. A prompt row: 2 + 6 + 5 + 6, each top 2 + 6 + 5, and a
 * longer length. */
static size_t bytes_max(const response *r) {
    const bool plain = !r->prompt && !r->usage && r->reason == FINISH_NONE;
    size_t n = plain ? TOKEN_BYTES : FIXED_BYTES;
    n += r->text_len + r->stop_len + 5 * r->n_ids + r->logprobs_len;
    if (r->prompt && r->prompt->rows)
        n += r->prompt->n_rows * (24 + r->prompt->n_top * 14) + VARINT_MAX;
    return n;
}

/* A token's message is about a dozen bytes: copied, it lies inside the slice and goes out in one
 * piece with its frame's head, with no allocation to give back from whichever thread it ends on. */
static grpc_slice encode_small(const response *r) {
    uint8_t bytes[SMALL_BYTES];
    pb_writer w;
    pb_writer_init_fixed(&w, bytes, sizeof bytes);
    write_response(&w, r);
    assert(!w.failed);
    return grpc_slice_from_copied_buffer((const char *)bytes, w.len);
}

grpc_byte_buffer *codec_response(const response *r) {
    const size_t max = bytes_max(r);
    grpc_slice slice;
    if (max <= SMALL_BYTES) {
        slice = encode_small(r);
    } else {
        pb_writer w;
        slice = grpc_slice_malloc(max);
        pb_writer_init_fixed(&w, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice));
        write_response(&w, r);
        assert(!w.failed); /* bytes_max is a bound */
        GRPC_SLICE_SET_LENGTH(slice, w.len);
    }
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return b;
}
