/* held + new text is scanned from left to right. A position either completes a stop string (the
 * match), or may be the head of one that the text's end cuts off (hold back from there), or is
 * free.
 *
 *      held     new text
 *     |....|..................|
 *                free      ^ first position from which a stop string runs over the end
 *
 * The tail held is shorter than the longest stop string, so a push costs O((held + len) * stops)
 * comparisons at worst, and one table look-up per byte as a rule. */
#include "server/stop_match.h"

#include <stdlib.h>
#include <string.h>

void stop_set_init(stop_set *set, const stop_string *stops, int n_stops) {
    *set = (stop_set){.stops = stops, .n_stops = n_stops};
    for (int i = 0; i < n_stops; i++) set->first_byte[(unsigned char)stops[i].s[0]] = true;
}

void stop_match_init(stop_match *m, const stop_set *set) {
    *m = (stop_match){.set = set};
}

typedef struct scan {
    int i_stop;          /* complete at `start`, or -1 */
    size_t start, free_; /* bytes before free_ can be in no stop string */
} scan;

/* Looks at text[0..len); a match counts only when it ends after `known` (earlier ones were seen,
 * and not wanted, before). */
static scan scan_text(const stop_set *set, const char *text, size_t len, size_t known) {
    scan r = {.i_stop = -1, .free_ = len};
    for (size_t at = 0; at < len; at++) {
        if (!set->first_byte[(unsigned char)text[at]]) continue;
        const size_t rest = len - at;
        for (int i = 0; i < set->n_stops; i++) {
            const stop_string *s = &set->stops[i];
            if (s->len <= rest) {
                if (at + s->len > known && memcmp(text + at, s->s, s->len) == 0) {
                    r.i_stop = i;
                    r.start = at;
                    return r;
                }
            } else if (at < r.free_ && memcmp(text + at, s->s, rest) == 0) {
                r.free_ = at;
            }
        }
    }
    return r;
}

static status append(text_buffer *out, const char *s, size_t len) {
    return len > 0 ? text_buffer_append(out, s, len) : OK;
}

status stop_match_push(stop_match *m, const char *text, size_t len, bool armed, bool include,
                       text_buffer *out, int *i_stop) {
    *i_stop = -1;
    if (m->set->n_stops == 0 || len == 0) return append(out, text, len);

    text_buffer all = {0};
    const char *s = text;
    size_t n = len;
    if (m->n_held > 0) {
        status e = append(&all, m->held, m->n_held);
        if (e == OK) e = append(&all, text, len);
        if (e != OK) {
            text_buffer_free(&all);
            return e;
        }
        s = all.s;
        n = all.len;
    }
    const scan r = scan_text(m->set, s, n, armed ? m->n_held : n);
    status e;
    if (r.i_stop >= 0) {
        e = append(out, s, r.start + (include ? m->set->stops[r.i_stop].len : 0));
        if (e == OK) {
            m->n_held = 0;
            *i_stop = r.i_stop;
        }
    } else {
        e = append(out, s, r.free_);
        if (e == OK) {
            m->n_held = n - r.free_;
            memcpy(m->held, s + r.free_, m->n_held);
        }
    }
    text_buffer_free(&all);
    return e;
}

status stop_match_finish(stop_match *m, text_buffer *out) {
    const status e = append(out, m->held, m->n_held);
    if (e == OK) m->n_held = 0;
    return e;
}
