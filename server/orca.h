/* ORCA load reports: in the trailers of Generate, and xds.service.orca.v3.OpenRcaService out of
 * band (a trailer on a minute-long stream is stale). Thread: rpc. */
#ifndef INFERD_SERVER_ORCA_H
#define INFERD_SERVER_ORCA_H

#include "server/call.h"

void orca_stream(call *c);
/* Appends a serialised OrcaLoadReport. */
void orca_report(const server *s, pb_writer *w);
#endif
