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

static struct {
    log_level min_level; /* constant after log_init */
    bool json;
    _Atomic uint64_t dropped;
} logger = {.min_level = LOG_INFO};

typedef struct line {
    char s[LOG_LINE_MAX];
    size_t n;
} line;

static const char *const level_names[] = {"debug", "info", "warn", "error", "info"};

void log_init(log_level min_level, bool json) {
    logger.min_level = min_level;
    logger.json = json;
}

uint64_t log_dropped(void) {
    return atomic_load_explicit(&logger.dropped, memory_order_relaxed);
}

/* One byte is kept for the newline, two for a closing quote and brace. */
static void put(line *l, const char *s, size_t n) {
    const size_t room = LOG_LINE_MAX - 4 - l->n;
    if (n > room) n = room;
    memcpy(l->s + l->n, s, n);
    l->n += n;
}

static void put_text(line *l, const char *s) {
    put(l, s, strlen(s));
}

static bool needs_quotes(const char *s) {
    if (*s == '\0') return true;
    for (; *s != '\0'; s++)
        if ((unsigned char)*s <= 0x20 || *s == '"' || *s == '=' || *s == '\\' || *s == 0x7F)
            return true;
    return false;
}

static void put_escaped(line *l, const char *s) {
    char hex[8];
    for (; *s != '\0'; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            const char pair[2] = {'\\', (char)c};
            put(l, pair, 2);
        } else if (c < 0x20 || c == 0x7F) {
            (void)snprintf(hex, sizeof hex, "\\u%04x", c);
            put(l, hex, 6);
        } else {
            put(l, s, 1);
        }
    }
}

static void put_string(line *l, const char *s) {
    if (s == NULL) s = "";
    const bool quote = logger.json || needs_quotes(s);
    if (!quote) {
        put_text(l, s);
        return;
    }
    put(l, "\"", 1);
    put_escaped(l, s);
    if (l->n >= LOG_LINE_MAX - 4) l->n = LOG_LINE_MAX - 5;
    l->s[l->n++] = '"';
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

static void put_pair(line *l, const log_field *f) {
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
