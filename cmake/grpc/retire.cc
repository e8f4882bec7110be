// What a drain needs and core's C API lacks: the listeners close and every peer is told to go elsewhere (GOAWAY) while core still
// takes the calls that are on their way. grpc_server_shutdown_and_notify does both only after it has stopped taking calls, and ends
// those in between as CANCELLED (Server::CallData::KillZombie in src/core/server/server.cc), which no retry policy repeats.
// May be called again: for connections whose handshake was under way. Declared on the C side in server/rpc.c.
#include "src/core/lib/iomgr/exec_ctx.h"
#include "src/core/server/server.h"

extern "C" __attribute__((visibility("default"))) void grpc_core_server_retire(grpc_server *server) {
    grpc_core::ExecCtx exec_ctx;
    grpc_core::Server *s = grpc_core::Server::FromC(server);
    s->StopListening();
    s->SendGoaways();
}
