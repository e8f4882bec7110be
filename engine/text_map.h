/* Where the bytes of a rewritten text came from: spans that were copied as they are, and spans that
 * replace a stretch of the source. Thread: one owner. */
#ifndef INFERD_ENGINE_TEXT_MAP_H
#define INFERD_ENGINE_TEXT_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct text_span {
    uint32_t out, in; /* where the span starts in the rewritten text and in the source */
    bool copied;      /* byte for byte; else the whole span stands for the whole source stretch */
} text_span;

typedef struct text_map {
    text_span *spans; /* owned; ascending */
    size_t n, capacity;
} text_map;

void text_map_free(text_map *m);
void text_map_reset(text_map *m);
/* Opens a span at (out, in); the previous one ends there. Neighbours that continue a copy are
 * joined. E_NOMEM. */
BASE_MUST_USE status text_map_add(text_map *m, size_t out, size_t in, bool copied);

/* The source range of [start, end) of the rewritten text; out_len and in_len are the whole lengths.
 * *i_span is a cursor: 0 at first, for calls with ascending start. */
void text_map_range(const text_map *m, size_t out_len, size_t in_len, uint32_t *start,
                    uint32_t *end, size_t *i_span);
#endif
