#include "base/streams.h"

#include <fcntl.h>
#include <unistd.h>

void streams_keep_standard(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0) (void)open("/dev/null", O_RDONLY); /* the lowest free: fd */
}
