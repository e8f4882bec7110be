/* Admission of Generate: from the wire to engine_submit, or a refusal. Thread: rpc. */
#ifndef INFERD_SERVER_GENERATE_H
#define INFERD_SERVER_GENERATE_H

#include "server/call.h"

void generate_handle(call *c);

#endif
