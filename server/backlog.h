/* What waiting costs: how long the queue will take, and when a refused call should come again. Pure
 * functions. Thread: any. */
#ifndef INFERD_SERVER_BACKLOG_H
#define INFERD_SERVER_BACKLOG_H

#include <stdbool.h>
#include <stdint.h>

typedef struct backlog {
    uint64_t waiting;    /* requests */
    uint64_t n_measured; /* requests that mean_tokens is taken from */
    double mean_tokens;  /* output of a request */
    double tokens_per_s; /* of the server now; 0: not measured yet */
} backlog;

/* False: nothing is known yet about how fast the queue moves. */
bool backlog_known(const backlog *b);
/* Until the queue is through: one place gets free when a request ends. Only when it is known. */
double backlog_ms(const backlog *b);

enum { BACKLOG_PUSHBACK_MIN_MS = 50, BACKLOG_PUSHBACK_MAX_MS = 30000, BACKLOG_UNKNOWN_MS = 1000 };
/* For one who was refused behind b->waiting others; dice 0..1 spreads a herd by a fifth each way. A
 * server that has not ended a request yet says BACKLOG_UNKNOWN_MS, spread alike: it knows no
 * better, and by then it will. */
int backlog_pushback_ms(const backlog *b, double dice);
#endif
