/* Structured log: one line per event on stdout, `ts level event key=value ...` or one JSON object.
 * Never prompt or output text, never per token. Values are escaped; a line is cut at LOG_LINE_MAX.
 * Thread: any; the writer never blocks the caller on a full pipe: lines are dropped and counted. */
#ifndef INFERD_BASE_LOG_H
#define INFERD_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* LOG_ALWAYS: written as info at every level, for what other programs wait for ("ready"). */
typedef enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_ALWAYS } log_level;

/* One key=value of an event. Build with the macros below. */
typedef struct log_field {
    const char *key;
    enum { LOG_F_STR, LOG_F_INT, LOG_F_UINT, LOG_F_DOUBLE, LOG_F_BOOL } kind;
    union {
        const char *str; /* borrowed for the call; NULL prints as "" */
        int64_t i;
        uint64_t u;
        double d;
        bool b;
    } value;
} log_field;

#define LOG_STR(k, v)  ((log_field){.key = (k), .kind = LOG_F_STR, .value.str = (v)})
#define LOG_INT(k, v)  ((log_field){.key = (k), .kind = LOG_F_INT, .value.i = (int64_t)(v)})
#define LOG_UINT(k, v) ((log_field){.key = (k), .kind = LOG_F_UINT, .value.u = (uint64_t)(v)})
#define LOG_DBL(k, v)  ((log_field){.key = (k), .kind = LOG_F_DOUBLE, .value.d = (double)(v)})
#define LOG_BOOL(k, v) ((log_field){.key = (k), .kind = LOG_F_BOOL, .value.b = (v)})

/* Start-up only. Default: LOG_INFO, text. */
void log_init(log_level min_level, bool json);

/* Writes one event; fields past LOG_FIELDS_MAX are an assertion. */
void log_write(log_level level, const char *event, const log_field *fields, int n_fields);

#define log_event(level, event, ...)                                                               \
    log_write((level), (event), (const log_field[]){__VA_ARGS__},                                  \
              (int)(sizeof((const log_field[]){__VA_ARGS__}) / sizeof(log_field)))

/* Lines dropped since start because stdout could not take them. */
uint64_t log_dropped(void);

enum { LOG_LINE_MAX = 4096, LOG_FIELDS_MAX = 48 };
#endif
