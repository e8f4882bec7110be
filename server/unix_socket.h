/* Sockets that are files. Thread: any. */
#ifndef INFERD_SERVER_UNIX_SOCKET_H
#define INFERD_SERVER_UNIX_SOCKET_H

#include <stdbool.h>

#define UNIX_SCHEME "unix:"

/* The PATH of unix:PATH, within addr; NULL: another kind of address. */
const char *unix_socket_path(const char *addr);
/* Somebody answers at unix:PATH. Whoever binds there takes the file away from him, whom nobody can
 * reach from then on: so gRPC does without a question, and so would we. A socket that was left
 * behind does not answer. False for other kinds of address. */
bool unix_socket_in_use(const char *addr);
#endif
