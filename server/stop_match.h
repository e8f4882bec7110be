/* Stop strings in a stream of text: bytes go in, bytes that can no longer be part of a stop string
 * come out. Thread: one owner (the rpc thread of the call). */
#ifndef INFERD_SERVER_STOP_MATCH_H
#define INFERD_SERVER_STOP_MATCH_H

#include "base/limits.h"
#include "engine/tokenizer.h"

typedef struct stop_string {
    const char *s;
    size_t len; /* 1..LIMIT_STOP_STRING_BYTES */
} stop_string;

/* Shared by the choices of a request; borrowed by each stop_match. */
typedef struct stop_set {
    const stop_string *stops;
    int n_stops;
    bool first_byte[256]; /* some stop string starts with it */
} stop_set;
void stop_set_init(stop_set *set, const stop_string *stops, int n_stops);

typedef struct stop_match {
    const stop_set *set;
    char held[LIMIT_STOP_STRING_BYTES]; /* the longest tail that may be the head of a stop string */
    size_t n_held;
} stop_match;
void stop_match_init(stop_match *m, const stop_set *set);

/* Feeds text[0..len) and appends what is free to go to *out. Returns the index of the stop string
 * that is complete now (of several: the earliest start, then list order), or -1. Then *out has got
 * the text before the match, and with `include` the match itself; the rest of the text is dropped.
 * armed false (before min_tokens): a match that ends in this text does not count. E_NOMEM: *i_stop
 * is untouched. */
BASE_MUST_USE status stop_match_push(stop_match *m, const char *text, size_t len, bool armed,
                                     bool include, text_buffer *out, int *i_stop);
/* The text ends here: what is held goes out. */
BASE_MUST_USE status stop_match_finish(stop_match *m, text_buffer *out);
#endif
