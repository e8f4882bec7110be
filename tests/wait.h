/* Waiting for what must come, by looking at it. The limit is only there to end a run in which it
 * never comes: a machine may be slow and crowded, and a test must not fail for that. */
#ifndef INFERD_TESTS_WAIT_H
#define INFERD_TESTS_WAIT_H

#include <check.h>
#include <stdbool.h>
#include <time.h>

#include "base/clock.h"

enum { WAIT_LIMIT_S = 240 };

/* Sleeps a moment. *end_ns is 0 at first; false once WAIT_LIMIT_S have passed since then. */
static inline bool wait_more(int64_t *end_ns) {
    const int64_t now = clock_now_ns();
    if (*end_ns == 0) *end_ns = now + WAIT_LIMIT_S * NS_PER_S;
    nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    return now < *end_ns;
}

/* Until the condition holds; else the test fails and names it. */
#define WAIT_UNTIL(condition)                                                                      \
    do {                                                                                           \
        int64_t wait_end_ns = 0;                                                                   \
        while (!(condition))                                                                       \
            if (!wait_more(&wait_end_ns))                                                          \
                ck_abort_msg("not in %d s: %s", WAIT_LIMIT_S, #condition);                         \
    } while (0)
#endif
