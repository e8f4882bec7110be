/* How the sources are put together. Internal to config/. Thread: main. */
#ifndef INFERD_CONFIG_LOAD_H
#define INFERD_CONFIG_LOAD_H

#include "config/table.h"

enum { CONFIG_KEYS_MAX = 64 };

/* Where a key got its value: for messages about values that do not go together. */
typedef enum origin_kind { FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_FLAG } origin_kind;

typedef struct loader {
    config c;
    const char *file; /* borrowed; NULL: none */
    struct {
        origin_kind kind;
        int line; /* FROM_FILE, from 1 */
    } origin[CONFIG_KEYS_MAX];
} loader;

/* Sets key `name` from an outside source. `where` starts the message: "FILE:LINE", a variable, a
 * flag. E_INVAL: unknown key or bad value. */
BASE_MUST_USE status loader_set(loader *l, const char *where, const char *name, const char *text,
                                origin_kind kind, int line, error *err);

/* Each reads one source over what is there. E_IO: unreadable file; E_FORMAT: not the YAML that is
 * taken; E_INVAL: key or value. */
BASE_MUST_USE status loader_read_file(loader *l, const char *path, error *err);
BASE_MUST_USE status loader_read_yaml(loader *l, const char *text, size_t bytes, error *err);
BASE_MUST_USE status loader_read_environment(loader *l, char *const envp[], error *err);

/* "server.tls.cert" -> "INFERD_SERVER_TLS_CERT". */
void config_environment_name(const char *key, char out[CONFIG_NAME_MAX]);
#endif
