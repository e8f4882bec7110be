/* GenerateResponse, written by hand straight into the slice that gRPC sends. Thread: any. */
#ifndef INFERD_SERVER_CODEC_RESPONSE_H
#define INFERD_SERVER_CODEC_RESPONSE_H

#include <grpc/byte_buffer.h>
#include <grpc/slice.h>

#include "server/outbox.h"
#include "server/pb.h"

typedef struct response_prompt {
    const char *request_id;
    uint32_t tokens, cached_tokens;
    uint64_t seed;
    const int32_t *prompt;      /* [n_rows] ids, for the rows below */
    const out_prompt_row *rows; /* NULL: no prompt log-probabilities */
    const out_top *tops;        /* [n_rows * n_top] */
    size_t n_rows, n_top;
} response_prompt;

typedef struct response_usage {
    uint32_t prompt_tokens, cached_tokens, completion_tokens, preemptions;
    double queue_ms, prefill_ms, first_token_ms, total_ms;
} response_usage;

typedef struct response {
    const response_prompt *prompt; /* the call's first message, or NULL */
    uint32_t index;
    const char *text;
    size_t text_len;
    const int32_t *ids;
    size_t n_ids;
    const uint8_t *logprobs; /* ready-made by codec_put_logprob: one entry an id */
    size_t logprobs_len;
    finish_reason reason; /* FINISH_NONE: the choice goes on */
    const char *stop;
    size_t stop_len;
    uint32_t stop_token_id;
    const response_usage *usage; /* the call's last message, or NULL */
} response;

/* Appends one TokenLogprob as element of `logprobs` (field 6). */
void codec_put_logprob(pb_writer *w, const out_event *e);
/* A byte buffer that the caller destroys; NULL without memory. */
grpc_byte_buffer *codec_response(const response *r);
/* The bytes alone (tests). False without memory. */
bool codec_response_write(const response *r, pb_writer *w);
#endif
