/* The unary methods of inferd.v1.Inference. Thread: rpc. */
#ifndef INFERD_SERVER_UNARY_H
#define INFERD_SERVER_UNARY_H

#include "server/call.h"

void unary_tokenize(call *c);
void unary_detokenize(call *c);
void unary_model_info(call *c);
void unary_engine_status(call *c);
void unary_abort(call *c);
#endif
