/* Counts of times, with percentiles within 0.8 % (64 buckets an octave), in fixed memory however
 * long a run is. Thread: one owner; merge after the owners have ended. */
#ifndef INFERD_CLIENT_HISTOGRAM_H
#define INFERD_CLIENT_HISTOGRAM_H

#include <stdint.h>

enum {
    HISTOGRAM_SUB_BITS = 6,
    HISTOGRAM_BUCKETS = (64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS
};

typedef struct histogram { /* zero is empty */
    uint64_t n, max_ns;
    double sum_ns;
    uint64_t counts[HISTOGRAM_BUCKETS];
} histogram;

void histogram_add(histogram *h, int64_t ns); /* below 0 counts as 0 */
void histogram_merge(histogram *into, const histogram *from);
/* Nearest rank, q in 0..1; 0 when empty. Milliseconds. */
double histogram_quantile_ms(const histogram *h, double q);
double histogram_mean_ms(const histogram *h);
#endif
