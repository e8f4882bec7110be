#include "base/clock.h"

#include <assert.h>
#include <stdio.h>
#include <time.h>

int64_t clock_now_ns(void) {
    struct timespec t;
    const int rc = clock_gettime(CLOCK_MONOTONIC, &t);
    assert(rc == 0);
    (void)rc;
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

void clock_wall_stamp(char out[32]) {
    struct timespec t;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    (void)gmtime_r(&t.tv_sec, &tm);
    const size_t n = strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(out + n, 32 - n, ".%03dZ", (int)(t.tv_nsec / NS_PER_MS));
}
