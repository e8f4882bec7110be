/* One server, one command: blocking calls that Ctrl-C can end, and failures said in words.
 * Thread: main. */
#ifndef INFERD_CLIENT_SESSION_H
#define INFERD_CLIENT_SESSION_H

#include "client/cli.h"

#define METHOD_GENERATE     "/inferd.v1.Inference/Generate"
#define METHOD_TOKENIZE     "/inferd.v1.Inference/Tokenize"
#define METHOD_DETOKENIZE   "/inferd.v1.Inference/Detokenize"
#define METHOD_MODEL_INFO   "/inferd.v1.Inference/ModelInfo"
#define METHOD_STATUS       "/inferd.v1.Inference/EngineStatus"
#define METHOD_ABORT        "/inferd.v1.Inference/Abort"
#define METHOD_HEALTH_CHECK "/grpc.health.v1.Health/Check"
#define METHOD_HEALTH_WATCH "/grpc.health.v1.Health/Watch"
#define METHOD_HEALTH_LIST  "/grpc.health.v1.Health/List"

typedef struct session {
    cli *c;
    rpc_channel *channel;
    rpc_loop *loop;
} session;

typedef void message_handler(void *ctx, const ProtobufCMessage *m);

/* Opens the channel and, with --wait, waits until the server says SERVING. -1, or the exit code
 * after saying why. */
int session_open(session *s, cli *c);
void session_close(session *s);

/* Runs a call to its end, or cancels it: at Ctrl-C, and when nobody reads standard output any
 * more. Each message is unpacked as `type` and borrowed by on_message. Returns CLI_OK or the exit
 * code after saying why. */
int session_call(session *s, const char *method, const ProtobufCMessage *request,
                 const ProtobufCMessageDescriptor *type, message_handler *on_message, void *ctx);
/* The same for one answer: *out is owned (protobuf_c_message_free_unpacked). */
int session_unary(session *s, const char *method, const ProtobufCMessage *request,
                  const ProtobufCMessageDescriptor *type, ProtobufCMessage **out);

/* Ctrl-C is kept pending (main blocks SIGINT) and taken here: true once per press. */
bool session_interrupted(void);

/* Says why a call failed and what to do about it; returns its exit code. */
int fail_report(const cli *c, const rpc_result *r);
#endif
