/* Threads for long texts: tokenising two megabytes takes a second, and an rpc thread has other
 * streams to serve. A bounded queue; what does not fit is refused by the caller. */
#ifndef INFERD_SERVER_WORKER_H
#define INFERD_SERVER_WORKER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum { WORKER_FROM_BYTES = 64 << 10 }; /* request messages above it are worth the hop */

#define WORKER_FULL "too many long requests are being read" /* QUEUE_FULL's message */

typedef struct worker worker;

BASE_MUST_USE status worker_open(worker **out);
/* Runs what is queued, then ends. NULL is legal. */
void worker_close(worker *w);
/* Any thread. False: the queue is full, and nothing was taken. */
BASE_MUST_USE bool worker_push(worker *w, void (*run)(void *arg), void *arg);
#endif
