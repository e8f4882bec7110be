#include "engine/text_map.h"

#include <assert.h>
#include <stdlib.h>

void text_map_free(text_map *m) {
    free(m->spans);
    *m = (text_map){0};
}

void text_map_reset(text_map *m) {
    m->n = 0;
}

status text_map_add(text_map *m, size_t out, size_t in, bool copied) {
    if (m->n > 0 && copied) {
        const text_span *last = &m->spans[m->n - 1];
        if (last->copied && out - last->out == in - last->in) return OK;
    }
    if (m->n == m->capacity) {
        const size_t capacity = m->capacity ? 2 * m->capacity : 16;
        text_span *spans = realloc(m->spans, capacity * sizeof *spans);
        if (!spans) return E_NOMEM;
        m->spans = spans;
        m->capacity = capacity;
    }
    m->spans[m->n++] = (text_span){(uint32_t)out, (uint32_t)in, copied};
    return OK;
}

void text_map_range(const text_map *m, size_t out_len, size_t in_len, uint32_t *start,
                    uint32_t *end, size_t *i_span) {
    assert(m->n > 0 && *end <= out_len);
    size_t i = *i_span;
    while (i + 1 < m->n && m->spans[i + 1].out <= *start) i++;
    *i_span = i;
    const text_span *a = &m->spans[i];
    const uint32_t first = a->copied ? a->in + (*start - a->out) : a->in;
    if (*end > *start) { /* the span that holds the last byte */
        while (i + 1 < m->n && m->spans[i + 1].out < *end) i++;
    }
    const text_span *b = &m->spans[i];
    const uint32_t next_in = i + 1 < m->n ? m->spans[i + 1].in : (uint32_t)in_len;
    *end = *end <= *start ? first : b->copied ? b->in + (*end - b->out) : next_in;
    *start = first;
}
