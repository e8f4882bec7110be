/* Server certificates from files, replaced without restart: the files are read and checked (OpenSSL
 * takes them, the pair matches, the chain parses, now is in their time) by tls_reload, and each new
 * handshake gets the newest good ones. Running streams are untouched. Thread: tls_reload and
 * tls_files_changed one at a time; handshakes and tls_not_after_s any. */
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
 * names the file and says what is wrong with it. */
BASE_MUST_USE status tls_open(const char *cert, const char *key, const char *client_ca, tls **out,
                              error *err);
/* Credentials for a port; the caller releases them. t outlives the server. */
grpc_server_credentials *tls_credentials(tls *t);
/* Re-reads the files. *changed: there are new ones. On any error the old ones stay. */
BASE_MUST_USE status tls_reload(tls *t, bool *changed, error *err);
/* To be asked about every second. True: the files have been replaced since the last tls_reload, and
 * a look later they still were as the last look found them (or they never come to rest). */
bool tls_files_changed(tls *t);
/* When the certificate in use ends, in seconds since 1970; 0: unknown. */
int64_t tls_not_after_s(tls *t);
/* SHA-256 of the certificate's DER, in hex; false: pem is none. */
bool tls_certificate_digest(const char *pem, size_t len, char out[65]);
void tls_close(tls *t); /* NULL is legal; after the grpc_server is gone */
#endif
