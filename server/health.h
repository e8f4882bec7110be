/* grpc.health.v1.Health. Services: "", `inferd.v1.Inference` and `readiness` (takes requests),
 * `startup` (has been ready once), `liveness` (the watchdog has no complaint). Thread: rpc. */
#ifndef INFERD_SERVER_HEALTH_H
#define INFERD_SERVER_HEALTH_H

#include "server/call.h"

void health_check(call *c);
void health_list(call *c);
void health_watch(call *c);
#endif
