/* The ordered end: readiness falls, calls are admitted for drain_delay_s, then refused; streams may
 * finish until drain_s; the rest ends UNAVAILABLE DRAINING. A second signal leaves 2 s. Thread:
 * main, with SIGTERM and SIGINT blocked. */
#ifndef INFERD_SERVER_DRAIN_H
#define INFERD_SERVER_DRAIN_H

#include "server/server.h"

void drain_run(server *s, engine *e, int drain_delay_s, int drain_s);
#endif
