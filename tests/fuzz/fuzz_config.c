/* A YAML file as the configuration. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "config/config.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[] = "/tmp/inferd-fuzz-config-XXXXXX";
    char name[] = "inferd", flag[] = "--config";
    char *argv[] = {name, flag, path, NULL}, *no_env[] = {NULL};
    static config c; /* large */
    config_action action;
    error err = {0};
    const int fd = mkstemp(path);
    if (fd < 0) abort();
    if (write(fd, data, size) != (ssize_t)size) abort();
    (void)close(fd);
    const status s = config_load(3, argv, no_env, &c, &action, &err);
    assert(s == OK || err.text[0] != '\0');
    (void)unlink(path);
    return 0;
}
