/* Command line, environment and file over the defaults; the command line is read twice, because it
 * names the file but wins over it. */
#include "config/load.h"

#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

status loader_set(loader *l, const char *where, const char *name, const char *text,
                  origin_kind kind, int line, error *err) {
    int n;
    const config_key *keys = config_keys(&n);
    const int i = config_key_find(name);
    if (i < 0) {
        const char *near = config_key_nearest(name);
        return error_set(err, E_INVAL, "%s: unknown key %.64s%s%s%s", where, name,
                         near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    }
    char reason[CONFIG_REASON_MAX];
    const status s = config_key_set(&keys[i], text, &l->c, reason);
    if (s != OK) return error_set(err, s, "%s: %s %s", where, name, reason);
    l->origin[i].kind = kind;
    l->origin[i].line = line;
    return OK;
}

void config_environment_name(const char *key, char out[CONFIG_NAME_MAX]) {
    (void)snprintf(out, CONFIG_NAME_MAX, "INFERD_%s", key);
    for (char *p = out; *p; p++) *p = *p == '.' ? '_' : (char)toupper((unsigned char)*p);
}

/* Kubernetes puts variables of this form into every container of a namespace that has a Service
 * called inferd-server, inferd-model, ...: they are not ours and not an error. */
static bool is_service_link(const char *name) {
    const size_t len = strlen(name);
    if (strstr(name, "_SERVICE_HOST") || strstr(name, "_SERVICE_PORT")) return true;
    if (len > 5 && strcmp(name + len - 5, "_PORT") == 0) return true;
    const char *port = strstr(name, "_PORT_");
    return port && isdigit((unsigned char)port[6]);
}

/* An INFERD_ variable that begins with the name of a section but is no key is a typing error. */
static status refuse_unknown_variable(const char *name, error *err) {
    int n;
    const config_key *keys = config_keys(&n);
    for (int i = 0; i < n; i++) {
        char section[CONFIG_NAME_MAX];
        config_environment_name(keys[i].name, section);
        const size_t len = strcspn(section + 7, "_") + 8; /* "INFERD_SERVER_" */
        if (strncmp(name, section, len) == 0 && !is_service_link(name))
            return error_set(err, E_INVAL, "environment: %.128s is no key of inferd", name);
    }
    return OK;
}

status loader_read_environment(loader *l, char *const envp[], error *err) {
    int n;
    const config_key *keys = config_keys(&n);
    for (; envp && *envp; envp++) {
        const char *equals = strchr(*envp, '=');
        if (strncmp(*envp, "INFERD_", 7) != 0 || !equals) continue;
        const size_t len = (size_t)(equals - *envp);
        char name[CONFIG_NAME_MAX], where[CONFIG_NAME_MAX];
        if (len >= sizeof name) continue; /* longer than any key */
        memcpy(name, *envp, len);
        name[len] = '\0';
        const config_key *found = NULL;
        for (int i = 0; i < n && !found; i++) {
            config_environment_name(keys[i].name, where);
            if (strcmp(where, name) == 0) found = &keys[i];
        }
        const status s =
            found ? loader_set(l, where, found->name, equals + 1, FROM_ENVIRONMENT, 0, err)
                  : refuse_unknown_variable(name, err);
        if (s != OK) return s;
    }
    return OK;
}

typedef struct flag {
    const char *name;
    const char *key; /* NULL: see the code */
    bool takes_value;
    config_action action; /* when it takes no value */
} flag;

static const flag flags[] = {
    {"--model", "model.path", true, 0},
    {"--config", NULL, true, 0},
    {"--listen", "server.listen", true, 0},
    {"--admin", "admin.listen", true, 0},
    {"--backend", "engine.backend", true, 0},
    {"--threads", "engine.threads", true, 0},
    {"--set", NULL, true, 0},
    {"--check-config", NULL, false, CONFIG_CHECK},
    {"--print-config", NULL, false, CONFIG_PRINT},
    {"--version", NULL, false, CONFIG_VERSION},
    {"--help", NULL, false, CONFIG_HELP},
    {"-h", NULL, false, CONFIG_HELP},
};

/* Reads the argument at *i (and its value). E_INVAL: no such flag, value missing or too much. */
static status next_flag(int argc, char *const argv[], int *i, const flag **out, const char **value,
                        error *err) {
    const char *arg = argv[*i];
    if (arg[0] != '-')
        return error_set(err, E_INVAL, "unexpected argument %.100s (a model is given by --model)",
                         arg);
    const size_t len = strcspn(arg, "=");
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++) {
        if (strlen(flags[f].name) != len || strncmp(flags[f].name, arg, len) != 0) continue;
        *out = &flags[f];
        *value = arg[len] == '=' ? arg + len + 1 : NULL;
        if (!flags[f].takes_value && *value)
            return error_set(err, E_INVAL, "%s takes no value", flags[f].name);
        if (flags[f].takes_value && !*value) {
            if (*i + 1 >= argc) return error_set(err, E_INVAL, "%s needs a value", flags[f].name);
            *value = argv[++*i];
        }
        return OK;
    }
    return error_set(err, E_INVAL, "unknown flag %.100s (see inferd --help)", arg);
}

/* First reading: is every flag one of ours, which file, what to do. */
static status read_flags(int argc, char *const argv[], const char **file, config_action *action,
                         error *err) {
    bool asks = false; /* --help or --version: answered whatever else is there */
    for (int i = 1; i < argc; i++) {
        const flag *f = NULL;
        const char *value = NULL;
        const status s = next_flag(argc, argv, &i, &f, &value, err);
        if (s != OK) return asks ? OK : s;
        if (strcmp(f->name, "--config") == 0) *file = value;
        if (f->takes_value || asks) continue;
        *action = f->action;
        asks = f->action == CONFIG_VERSION || f->action == CONFIG_HELP;
    }
    return OK;
}

static status apply_flags(loader *l, int argc, char *const argv[], error *err) {
    for (int i = 1; i < argc; i++) {
        const flag *f = NULL;
        const char *value = NULL;
        status s = next_flag(argc, argv, &i, &f, &value, err);
        if (s == OK && f->key) {
            s = loader_set(l, f->name, f->key, value, FROM_FLAG, 0, err);
        } else if (s == OK && strcmp(f->name, "--set") == 0) {
            const char *equals = strchr(value, '=');
            if (!equals || equals - value >= CONFIG_NAME_MAX)
                return error_set(err, E_INVAL, "--set needs section.key=value");
            char key[CONFIG_NAME_MAX];
            memcpy(key, value, (size_t)(equals - value));
            key[equals - value] = '\0';
            s = loader_set(l, "--set", key, equals + 1, FROM_FLAG, 0, err);
        }
        if (s != OK) return s;
    }
    return OK;
}

/* A refusal about `key` that says where its value came from. */
static status disagree(const loader *l, const char *key, const char *reason, error *err) {
    const int i = config_key_find(key);
    assert(i >= 0);
    char name[CONFIG_NAME_MAX];
    switch (l->origin[i].kind) {
    case FROM_FILE:
        return error_set(err, E_INVAL, "%s:%d: %s %s", l->file, l->origin[i].line, key, reason);
    case FROM_ENVIRONMENT:
        config_environment_name(key, name);
        return error_set(err, E_INVAL, "%s: %s %s", name, key, reason);
    default:
        return error_set(err, E_INVAL, "%s %s", key, reason);
    }
}

/* Two servers on one address: of a unix socket the later takes the file away from the earlier. */
static bool same_address(const char *a, const char *b) {
    const size_t len = strlen(a);
    return strcmp(a, b) == 0 && strcmp(a, "off") != 0 &&
           !(len > 2 && strcmp(a + len - 2, ":0") == 0);
}

static status check_together(const loader *l, error *err) {
    const config *c = &l->c;
    const bool cert = *c->server.tls.cert, key = *c->server.tls.key;
    if (cert && !key) return disagree(l, "server.tls.cert", "needs server.tls.key", err);
    if (key && !cert) return disagree(l, "server.tls.key", "needs server.tls.cert", err);
    if (*c->server.tls.client_ca && !cert)
        return disagree(l, "server.tls.client_ca", "needs server.tls.cert and .key", err);
    if (same_address(c->server.health_listen, c->server.listen))
        return disagree(l, "server.health_listen", "is server.listen, too", err);
    if (same_address(c->admin.listen, c->server.listen) ||
        same_address(c->admin.listen, c->server.health_listen))
        return disagree(l, "admin.listen", "is another listener's address, too", err);
    if (c->server.drain_s < c->server.drain_delay_s)
        return disagree(l, "server.drain_s", "must not be below server.drain_delay_s", err);
    if (c->watchdog.exit_s < c->watchdog.not_ready_s)
        return disagree(l, "watchdog.exit_s", "must not be below watchdog.not_ready_s", err);
    if (c->engine.kv_blocks > 0 && c->engine.kv_memory_bytes > 0)
        return disagree(l, "engine.kv_blocks", "and engine.kv_memory_bytes exclude each other",
                        err);
    return OK;
}

static void set_defaults(loader *l) {
    int n;
    const config_key *keys = config_keys(&n);
    assert(n <= CONFIG_KEYS_MAX);
    memset(l, 0, sizeof *l);
    for (int i = 0; i < n; i++) {
        char reason[CONFIG_REASON_MAX];
        const status s = config_key_set(&keys[i], keys[i].initial, &l->c, reason);
        assert(s == OK); /* the table's own defaults are within its ranges */
        (void)s;
    }
}

status config_load(int argc, char *const argv[], char *const envp[], config *out,
                   config_action *action, error *err) {
    const char *file = NULL;
    config_action what = CONFIG_SERVE;
    status s = read_flags(argc, argv, &file, &what, err);
    if (s != OK) return s;
    if (what == CONFIG_HELP || what == CONFIG_VERSION) {
        *action = what;
        return OK;
    }
    loader *l = malloc(sizeof *l);
    if (!l) return error_set(err, E_NOMEM, "configuration: %zu bytes", sizeof *l);
    set_defaults(l);
    if (file) s = loader_read_file(l, file, err);
    if (s == OK) s = loader_read_environment(l, envp, err);
    if (s == OK) s = apply_flags(l, argc, argv, err);
    if (s == OK) s = check_together(l, err);
    if (s == OK && what == CONFIG_SERVE && !*l->c.model.path)
        s = error_set(err, E_INVAL, "no model is given: inferd --model FILE.gguf (or model.path)");
    if (s == OK) {
        *out = l->c;
        *action = what;
    }
    free(l);
    return s;
}
