/* The HTTP port for people and machines that watch: /metrics, /livez, /readyz, /statusz. Reads
 * atomics only; its thread never meets the engine's. Thread: main. */
#ifndef INFERD_SERVER_ADMIN_H
#define INFERD_SERVER_ADMIN_H

#include "server/server.h"

typedef struct admin admin;

/* addr: host:port, port 0 picks one; unix:PATH, a socket that is in the way is replaced. E_IO. */
BASE_MUST_USE status admin_open(server *s, const char *addr, admin **out, error *err);
const char *admin_address(const admin *a); /* the bound one */
void admin_close(admin *a);                /* NULL is legal; before server_close */
#endif
