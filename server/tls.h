/* Server certificates from files, replaced without restart: the files are read and checked (pair
 * matches, chain parses) by tls_reload, and each new handshake gets the newest good ones. Running
 * streams are untouched. Thread: tls_reload one at a time; handshakes any. */
#ifndef INFERD_SERVER_TLS_H
#define INFERD_SERVER_TLS_H

#include <grpc/grpc_security.h>
#if defined(__has_include) && __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h> /* its own header in a current core */
#endif
#include <stdbool.h>

#include "base/status.h"

typedef struct tls tls;

/* client_ca NULL: no client certificate is asked for; else one that it signed is required. E_IO
 * names the file or says that key and certificate do not belong together. */
BASE_MUST_USE status tls_open(const char *cert, const char *key, const char *client_ca, tls **out,
                              error *err);
/* Credentials for a port; the caller releases them. t outlives the server. */
grpc_server_credentials *tls_credentials(tls *t);
/* Re-reads the files. *changed: there are new ones. On any error the old ones stay. */
BASE_MUST_USE status tls_reload(tls *t, bool *changed, error *err);
/* The files have other times than at the last look: reload is worth it. */
bool tls_files_changed(tls *t);
void tls_close(tls *t); /* NULL is legal; after the grpc_server is gone */
#endif
