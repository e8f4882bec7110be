#include "server/backlog.h"

bool backlog_known(const backlog *b) {
    return b->n_measured > 0 && b->tokens_per_s > 0;
}

double backlog_ms(const backlog *b) {
    const double rate = b->tokens_per_s > 1 ? b->tokens_per_s : 1; /* a window full of prefill */
    return 1000.0 * (double)b->waiting * b->mean_tokens / rate;
}

int backlog_pushback_ms(const backlog *b, double dice) {
    backlog with_it = *b;
    with_it.waiting++;
    /* Half of the queue's time, for others come back empty-handed, too. */
    const double mean_ms = backlog_known(b) ? 0.5 * backlog_ms(&with_it) : BACKLOG_UNKNOWN_MS;
    const double ms = mean_ms * (0.8 + 0.4 * dice);
    return ms < BACKLOG_PUSHBACK_MIN_MS   ? BACKLOG_PUSHBACK_MIN_MS
           : ms > BACKLOG_PUSHBACK_MAX_MS ? BACKLOG_PUSHBACK_MAX_MS
                                          : (int)ms;
}
