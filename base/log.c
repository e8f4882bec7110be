/* One write(2) a line, so that lines of several threads never mix. A full pipe drops the line: the
 * caller is never made to wait for whoever reads the log. */
#include "base/log.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/utf8.h"

static struct {
    log_level min_level; /* constant after log_init */
    bool json;
    _Atomic uint64_t dropped;
} logger = {.min_level = LOG_INFO};

typedef struct line {
    char s[LOG_LINE_MAX];
    size_t n;
    bool full; /* something did not fit */
} line;

static const char *const level_names[] = {"debug", "info", "warn", "error", "info"};

void log_init(log_level min_level, bool json) {
    logger.min_level = min_level;
    logger.json = json;
}

uint64_t log_dropped(void) {
    return atomic_load_explicit(&logger.dropped, memory_order_relaxed);
}

/* For what all fields share: the newline and a closing brace come after it. */
enum { ROOM = LOG_LINE_MAX - 2 };

/* All of it or nothing. */
static void put(line *l, const char *s, size_t n) {
    if (n > ROOM - l->n) {
        l->full = true;
        return;
    }
    memcpy(l->s + l->n, s, n);
    l->n += n;
}

static void put_text(line *l, const char *s) {
    put(l, s, strlen(s));
}

static bool needs_quotes(const char *s) {
    if (*s == '\0' || !utf8_valid(s, strlen(s))) return true;
    for (; *s != '\0'; s++)
        if ((unsigned char)*s <= 0x20 || *s == '"' || *s == '=' || *s == '\\' || *s == 0x7F)
            return true;
    return false;
}

/* Valid UTF-8 whatever s holds: names of files and certificates are bytes, and one of them must not
 * make a line unreadable. Nothing is cut within a character or an escape. */
static void put_escaped(line *l, const char *s) {
    char out[8];
    size_t n;
    for (size_t left = strlen(s); left > 0; left -= n, s += n) {
        const unsigned char c = (unsigned char)*s;
        uint32_t cp;
        n = utf8_decode(s, left, &cp);
        int len = (int)n;
        if (c == '"' || c == '\\')
            len = snprintf(out, sizeof out, "\\%c", c);
        else if (c < 0x20 || c == 0x7F || cp == UTF8_BAD)
            len = snprintf(out, sizeof out, "\\u%04x", cp == UTF8_BAD ? 0xFFFDU : c);
        else
            memcpy(out, s, n);
        if ((size_t)len + 1 > ROOM - l->n) return; /* a quote follows */
        put(l, out, (size_t)len);
    }
}

static void put_string(line *l, const char *s) {
    if (s == NULL) s = "";
    const bool quote = logger.json || needs_quotes(s);
    if (quote) put(l, "\"", 1);
    put_escaped(l, s);
    if (quote) put(l, "\"", 1);
}

static void put_value(line *l, const log_field *f) {
    char num[32];
    switch (f->kind) {
    case LOG_F_STR:
        put_string(l, f->value.str);
        return;
    case LOG_F_INT:
        (void)snprintf(num, sizeof num, "%" PRId64, f->value.i);
        break;
    case LOG_F_UINT:
        (void)snprintf(num, sizeof num, "%" PRIu64, f->value.u);
        break;
    case LOG_F_DOUBLE:
        if (!isfinite(f->value.d)) {
            put_string(l, isnan(f->value.d) ? "nan" : "inf");
            return;
        }
        (void)snprintf(num, sizeof num, "%.6g", f->value.d);
        break;
    case LOG_F_BOOL:
        (void)snprintf(num, sizeof num, "%s", f->value.b ? "true" : "false");
        break;
    }
    put_text(l, num);
}

/* A long string is cut; a field that then has no room is left out, whole. */
static void put_pair(line *l, const log_field *f) {
    const size_t before = l->n;
    if (logger.json) {
        put_text(l, ",\"");
        put_text(l, f->key);
        put_text(l, "\":");
    } else {
        put_text(l, " ");
        put_text(l, f->key);
        put_text(l, "=");
    }
    put_value(l, f);
    if (l->full) l->n = before;
    l->full = false;
}

static void write_line(const line *l) {
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    /* A regular file is always ready; a full pipe is not: drop the line rather than block a serving
     * thread. */
    if (poll(&out, 1, 0) != 1 || (out.revents & (POLLOUT | POLLERR | POLLHUP)) != POLLOUT ||
        write(STDOUT_FILENO, l->s, l->n) != (ssize_t)l->n)
        atomic_fetch_add_explicit(&logger.dropped, 1, memory_order_relaxed);
}

void log_write(log_level level, const char *event, const log_field *fields, int n_fields) {
    assert(n_fields <= LOG_FIELDS_MAX);
    if (level < logger.min_level) return;
    char stamp[32];
    clock_wall_stamp(stamp);
    line l = {.n = 0};
    if (logger.json) {
        put_text(&l, "{\"ts\":\"");
        put_text(&l, stamp);
        put_text(&l, "\",\"level\":\"");
        put_text(&l, level_names[level]);
        put_text(&l, "\"");
    } else {
        put_text(&l, stamp);
        put_text(&l, " ");
        put_text(&l, level_names[level]);
    }
    const log_field name = LOG_STR("event", event);
    put_pair(&l, &name);
    for (int i = 0; i < n_fields; i++) put_pair(&l, &fields[i]);
    if (logger.json) l.s[l.n++] = '}';
    l.s[l.n++] = '\n';
    write_line(&l);
}
