#include "client/histogram.h"

#include <math.h>

/* Values below 64 have a bucket each; above, the leading bit gives the octave and the next six bits
 * the bucket in it. */
static unsigned bucket_of(uint64_t v) {
    if (v < UINT64_C(1) << HISTOGRAM_SUB_BITS) return (unsigned)v;
    const unsigned octave = 63u - (unsigned)__builtin_clzll(v) - HISTOGRAM_SUB_BITS;
    const unsigned sub = (unsigned)(v >> octave) & ((1u << HISTOGRAM_SUB_BITS) - 1);
    return ((octave + 1) << HISTOGRAM_SUB_BITS) + sub;
}

static double middle_of(unsigned bucket) {
    if (bucket < 1u << HISTOGRAM_SUB_BITS) return bucket;
    const int octave = (int)(bucket >> HISTOGRAM_SUB_BITS) - 1;
    const unsigned sub = bucket & ((1u << HISTOGRAM_SUB_BITS) - 1);
    return ldexp((double)((1u << HISTOGRAM_SUB_BITS) + sub) + 0.5, octave);
}

void histogram_add(histogram *h, int64_t ns) {
    const uint64_t v = ns > 0 ? (uint64_t)ns : 0;
    h->counts[bucket_of(v)]++;
    h->n++;
    h->sum_ns += (double)v;
    if (v > h->max_ns) h->max_ns = v;
}

void histogram_merge(histogram *into, const histogram *from) {
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) into->counts[i] += from->counts[i];
    into->n += from->n;
    into->sum_ns += from->sum_ns;
    if (from->max_ns > into->max_ns) into->max_ns = from->max_ns;
}

double histogram_quantile_ms(const histogram *h, double q) {
    if (h->n == 0) return 0;
    uint64_t rank = (uint64_t)ceil(q * (double)h->n), seen = 0;
    if (rank < 1) rank = 1;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->counts[i];
        if (seen >= rank) return fmin(middle_of(i), (double)h->max_ns) / 1e6;
    }
    return (double)h->max_ns / 1e6;
}

double histogram_mean_ms(const histogram *h) {
    return h->n ? h->sum_ns / (double)h->n / 1e6 : 0;
}
