/* Monotonic time in nanoseconds, and its printing as wall time for stamps only. Thread: any. */
#ifndef INFERD_BASE_CLOCK_H
#define INFERD_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define NS_PER_S   INT64_C(1000000000)
#define NS_PER_MS  INT64_C(1000000)
#define TIME_NEVER INT64_MAX /* a deadline that does not come */

/* CLOCK_MONOTONIC. */
int64_t clock_now_ns(void);

/* RFC 3339 UTC with milliseconds, e.g. 2026-01-02T03:04:05.678Z, into out[32]. */
void clock_wall_stamp(char out[32]);
#endif
