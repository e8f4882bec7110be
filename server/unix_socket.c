#include "server/unix_socket.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

const char *unix_socket_path(const char *addr) {
    const size_t n = strlen(UNIX_SCHEME);
    return strncmp(addr, UNIX_SCHEME, n) == 0 ? addr + n : NULL;
}

bool unix_socket_in_use(const char *addr) {
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    const char *path = unix_socket_path(addr);
    if (!path || strlen(path) >= sizeof sa.sun_path) return false;
    (void)snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const bool yes = fd >= 0 && (connect(fd, (const struct sockaddr *)&sa, sizeof sa) == 0 ||
                                 errno == EAGAIN); /* its backlog is full */
    if (fd >= 0) close(fd);
    return yes;
}
