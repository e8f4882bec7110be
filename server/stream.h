/* One Generate call after admission: a state machine on its rpc thread.
 *
 *   generate.c: checked, tokenised, submitted
 *        |  news from the engine -> pending text and ids of each choice   (stream_text.c)
 *        v  pump: one write in flight; what comes meanwhile joins the next message
 *   ENDED -> last message + status in one batch -> released
 *
 * References: one a tag in flight (wrote, closed), one while the engine holds the request. The last
 * one to go releases everything; there is no other place that does.
 * The call ends in exactly one of three ways: status after ENDED; cut (slow reader, fatal) by
 * cancelling with a status; or the peer is gone. */
#ifndef INFERD_SERVER_STREAM_H
#define INFERD_SERVER_STREAM_H

#include "server/call.h"
#include "server/codec_request.h"
#include "server/codec_response.h"
#include "server/stop_match.h"

typedef struct stream_choice {
    detokenizer detok;
    stop_match match;
    text_buffer text; /* pending, as are ids and logprobs: not yet in a message */
    int32_t *ids;
    size_t n_ids, ids_capacity;
    pb_writer logprobs;
    int n_tokens; /* of this choice, sent or pending */
    int32_t last_token;
    bool done, finish_sent;
    finish_reason reason;
    int i_stop;
} stream_choice;

typedef struct stream {
    call *c;
    arena memory;    /* stop strings, stop ids, bias, choices, prompt rows */
    int32_t *prompt; /* owned */
    engine_request request;
    outbox box;
    ids_entry id;
    generate_options options;
    stop_set stops;
    stream_choice *choices; /* [request.n_choices] */
    text_buffer scratch;    /* text of one token, before stop strings */
    tenant_charge charge;
    rpc_item item;

    int refs;
    rpc_tag wrote, closed;
    grpc_byte_buffer *message; /* in flight */
    int64_t write_started_ns;
    int i_next; /* choice to look at first, for fairness */
    bool writing, headers_sent, has_output, status_sent;
    bool gone;                     /* the peer cancelled, or core enforced the deadline */
    bool ended;                    /* EVENT_ENDED was taken: the engine has let go */
    refuse_kind cut;               /* cancelled by us with this status; REFUSE_NONE */
    refusal end;                   /* valid with ended: how the call ends */
    bool out_of_memory, too_large; /* in this request: final_only gathers too much */
    response_usage usage;          /* valid with ended */
    int n_tokens;                  /* all choices */
} stream;

/* Takes everything over, with s->refs counting the engine's hold. */
void stream_start(stream *s);
/* The engine has put something into the outbox. */
void stream_on_news(stream *s);
/* Frees a stream that was never started (the call stays the caller's). */
void stream_free(stream *s);

/* stream_text.c: takes all events; false: out of memory in this request. */
bool stream_take_events(stream *s);
/* Bytes of output that no message has taken yet. */
size_t stream_pending_bytes(const stream *s);
bool stream_choice_pending(const stream_choice *c);
#endif
