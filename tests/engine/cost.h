/* What a call costs: CPU time (the machine that runs the tests may be busy) and the growth of the
 * process's peak memory. Check gives each test a process of its own, so the peak is the test's. */
#ifndef INFERD_TESTS_ENGINE_COST_H
#define INFERD_TESTS_ENGINE_COST_H

#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { REFUSAL_MS_MAX = 100, REFUSAL_KIB_MAX = 64 << 10 }; /* memory: above the file's size */

typedef struct cost {
    int64_t ns;
    long peak_kib;
} cost;

static inline cost cost_now(void) {
    struct timespec t;
    struct rusage u;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    (void)getrusage(RUSAGE_SELF, &u);
    return (cost){(int64_t)t.tv_sec * 1000000000 + t.tv_nsec, u.ru_maxrss};
}

static inline cost cost_since(cost start) {
    const cost end = cost_now();
    return (cost){end.ns - start.ns, end.peak_kib - start.peak_kib};
}

/* CPU time beside others is more than alone: they share caches and cores' halves. With INFERD_QUIET
 * in the environment a limit is taken as it is; without, what is five times above it has grown in
 * another order. */
static inline double cost_crowded(void) {
    return getenv("INFERD_QUIET") != NULL ? 1 : 5;
}

/* The bound on what refusing a file may cost. A sanitizer takes ten times the time, and memory of
 * its own. */
static inline void cost_check_refusal(cost c, size_t file_bytes, const char *what) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const int slow = 10;
    (void)file_bytes;
#else
    const int slow = 1;
    ck_assert_msg(c.peak_kib <= REFUSAL_KIB_MAX + (long)(file_bytes >> 10), "%s: %ld KiB", what,
                  c.peak_kib);
#endif
    ck_assert_msg((double)c.ns < 1e6 * REFUSAL_MS_MAX * slow * cost_crowded(), "%s: %lld ns", what,
                  (long long)c.ns);
}
#endif
