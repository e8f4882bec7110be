/* gRPC core's own log lines become events of ours: stderr carries refusals only. */
#ifndef INFERD_SERVER_GRPC_LOG_H
#define INFERD_SERVER_GRPC_LOG_H

/* Before grpc_init. */
void grpc_log_to_ours(void);
#endif
