/* grpc.reflection.v1 and v1alpha ServerReflection (wire-identical) over the descriptors embedded at
 * build time. Thread: rpc. */
#ifndef INFERD_SERVER_REFLECTION_H
#define INFERD_SERVER_REFLECTION_H

#include "server/call.h"

bool reflection_serves(grpc_slice method);
void reflection_handle(call *c);
/* One request -> one response (tests). False: the request is malformed, or out of memory. */
bool reflection_answer(const void *request, size_t len, pb_writer *out);
#endif
