/* Judges the engine by its heartbeat, on a thread of its own and CLOCK_MONOTONIC, without gRPC or
 * CUDA: whatever hangs there must not hang the judge.
 *   no heartbeat for max(not_ready_s, 20 mean steps): not ready, not live; back when it moves again
 *   no heartbeat for exit_s: streams end UNAVAILABLE STALLED, exit 7
 *   device fault:            streams end UNAVAILABLE DEVICE_FAULT, exit 6 within 2 s */
#ifndef INFERD_SERVER_WATCHDOG_H
#define INFERD_SERVER_WATCHDOG_H

#include "server/server.h"

typedef struct watchdog watchdog;

enum { EXIT_DEVICE_FAULT = 6, EXIT_WATCHDOG = 7 };

/* Judges from now on; s must have its model. Ends the process itself by _exit. */
BASE_MUST_USE status watchdog_open(server *s, int not_ready_s, int exit_s, watchdog **out,
                                   error *err);
/* From now on the engine has a second, or a few of its steps, to end: else as after exit_s. NULL is
 * legal. */
void watchdog_hurry(watchdog *w);
void watchdog_close(watchdog *w); /* NULL is legal */
#endif
