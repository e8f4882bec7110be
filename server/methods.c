/* The table of methods. Requests that are not armed wait inside gRPC core, unseen and without a
 * bound: slots are re-armed before any work, and load is shed by us. */
#include "server/generate.h"
#include "server/health.h"
#include "server/orca.h"
#include "server/unary.h"

#define INFERENCE "/inferd.v1.Inference/"
#define HEALTH    "/grpc.health.v1.Health/"

const rpc_method RPC_METHODS[] = {
    {INFERENCE "Generate", generate_handle, 16, false},
    {INFERENCE "Tokenize", unary_tokenize, 4, false},
    {INFERENCE "Detokenize", unary_detokenize, 4, false},
    {INFERENCE "ModelInfo", unary_model_info, 2, false},
    {INFERENCE "EngineStatus", unary_engine_status, 2, false},
    {INFERENCE "Abort", unary_abort, 2, false},
    {"/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", orca_stream, 1, false},
    {HEALTH "Check", health_check, 4, true},
    {HEALTH "List", health_list, 1, true},
    {HEALTH "Watch", health_watch, 2, true},
};
const int RPC_N_METHODS = sizeof RPC_METHODS / sizeof *RPC_METHODS;
