/* The configuration: every key from every source, precedence, hostile YAML, and the documents that
 * are made from the table. `test_config --markdown` and `--default-yaml` write those documents. */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "config/load.h"
#include "tests/check_main.h"

static char *no_env[] = {NULL};

/* Writes text to a fresh file; the caller unlinks it. */
static void write_file(char path[64], const char *text, size_t bytes) {
    (void)snprintf(path, 64, "/tmp/inferd_test_config_XXXXXX");
    const int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = write(fd, text + done, bytes - done);
        ck_assert_int_gt(n, 0);
        done += (size_t)n;
    }
    ck_assert_int_eq(close(fd), 0);
}

static status load_bytes(const char *text, size_t bytes, config *c, error *err) {
    char path[64];
    write_file(path, text, bytes);
    char *argv[] = {"inferd", "--check-config", "--config", path, NULL};
    config_action action;
    err->text[0] = '\0';
    const status s = config_load(4, argv, no_env, c, &action, err);
    (void)unlink(path);
    if (s == OK) ck_assert_int_eq(action, CONFIG_CHECK);
    return s;
}

static status load_text(const char *text, config *c, error *err) {
    return load_bytes(text, strlen(text), c, err);
}

/* Up to six arguments after the program's name. */
#define LOAD(c, action, err, ...)                                                                  \
    config_load((int)(sizeof((char *[]){"inferd", __VA_ARGS__}) / sizeof(char *)),                 \
                (char *[]){"inferd", __VA_ARGS__, NULL}, no_env, (c), (action), (err))

static void defaults(config *c) {
    config_action action;
    error err;
    ck_assert_int_eq(LOAD(c, &action, &err, "--check-config"), OK);
}

/* A value of the key other than its default. */
static void other_value(const config_key *k, char out[CONFIG_TEXT_MAX]) {
    const char *v = NULL;
    switch (k->kind) {
    case KEY_TEXT:
        v = "a \"quoted\" \\ name: #1 äß";
        break;
    case KEY_PATH:
        v = "/srv/some path/file";
        break;
    case KEY_ADDR:
        v = "unix:/run/inferd.sock";
        break;
    case KEY_ADDR_OFF:
        v = "[::1]:0";
        break;
    case KEY_SHA256:
        v = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
        break;
    case KEY_BOOL:
        v = strcmp(k->initial, "true") == 0 ? "false" : "true";
        break;
    case KEY_ENUM:
        v = strrchr(k->choices, '|') + 1;
        break;
    case KEY_INT:
    case KEY_COUNT:
    case KEY_BYTES:
        (void)snprintf(out, CONFIG_TEXT_MAX, "%" PRIu64, k->max);
        return;
    }
    (void)snprintf(out, CONFIG_TEXT_MAX, "%s", v);
}

/* "server.tls.cert" and a value as a YAML file of nested mappings. */
static void as_yaml(const char *name, const char *value, char *out, size_t size) {
    size_t n = 0;
    int depth = 0;
    const char *start = name;
    for (const char *dot; (dot = strchr(start, '.')) != NULL; start = dot + 1, depth++)
        n += (size_t)snprintf(out + n, size - n, "%*s%.*s:\n", 2 * depth, "", (int)(dot - start),
                              start);
    n += (size_t)snprintf(out + n, size - n, "%*s%s: \"", 2 * depth, "", start);
    for (; *value; value++) {
        if (*value == '"' || *value == '\\') out[n++] = '\\';
        out[n++] = *value;
    }
    (void)snprintf(out + n, size - n, "\"\n");
}

/* Some keys go only together; gives them what they need. */
static void companions(const char *name, char *argv[], int *argc) {
    if (strcmp(name, "server.tls.cert") != 0 && strncmp(name, "server.tls", 10) == 0)
        argv[(*argc)++] = "--set", argv[(*argc)++] = "server.tls.cert=c";
    if (strcmp(name, "server.tls.key") != 0 && strncmp(name, "server.tls", 10) == 0)
        argv[(*argc)++] = "--set", argv[(*argc)++] = "server.tls.key=k";
    if (strcmp(name, "server.drain_delay_s") == 0)
        argv[(*argc)++] = "--set", argv[(*argc)++] = "server.drain_s=86400";
    if (strcmp(name, "watchdog.not_ready_s") == 0)
        argv[(*argc)++] = "--set", argv[(*argc)++] = "watchdog.exit_s=3600";
}

static void check_member(const config_key *k, const config *c, const char *want, const char *how) {
    char got[CONFIG_TEXT_MAX];
    config_key_text(k, c, got);
    ck_assert_msg(strcmp(got, want) == 0, "%s from %s: got %s, want %s", k->name, how, got, want);
}

START_TEST(every_key_can_be_set_from_every_source) {
    int n;
    const config_key *k = &config_keys(&n)[_i];
    if (_i >= n) return;
    char value[CONFIG_TEXT_MAX], text[2 * CONFIG_TEXT_MAX], path[64], name[CONFIG_NAME_MAX];
    other_value(k, value);
    as_yaml(k->name, value, text, sizeof text);
    write_file(path, text, strlen(text));
    config c;
    config_action action;
    error err = {0};

    char *argv[16] = {"inferd", "--check-config"};
    int argc = 2;
    companions(k->name, argv, &argc);
    char set[2 * CONFIG_TEXT_MAX], env[2 * CONFIG_TEXT_MAX];
    (void)snprintf(set, sizeof set, "%s=%s", k->name, value);
    argv[argc] = "--set", argv[argc + 1] = set;
    ck_assert_msg(config_load(argc + 2, argv, no_env, &c, &action, &err) == OK, "%s", err.text);
    check_member(k, &c, value, "--set");

    config_environment_name(k->name, name);
    (void)snprintf(env, sizeof env, "%s=%s", name, value);
    char *envp[] = {"PATH=/bin", env, "INFERD_MODEL=x", NULL};
    ck_assert_msg(config_load(argc, argv, envp, &c, &action, &err) == OK, "%s", err.text);
    check_member(k, &c, value, name);

    argv[argc] = "--config", argv[argc + 1] = path;
    ck_assert_msg(config_load(argc + 2, argv, no_env, &c, &action, &err) == OK, "%s", err.text);
    check_member(k, &c, value, "file");
    (void)unlink(path);
}
END_TEST

START_TEST(values_out_of_range_are_refused_and_named) {
    int n;
    const config_key *k = &config_keys(&n)[_i];
    if (_i >= n) return;
    char bad[6][CONFIG_TEXT_MAX + 64] = {"", "-1", "1.5", " 1", "99999999999999999999999", "x"};
    int n_bad = 6;
    if (k->kind == KEY_TEXT || k->kind == KEY_PATH) {
        memset(bad[0], 'x', k->size);
        bad[0][k->size] = '\0';
        (void)snprintf(bad[1], sizeof *bad, "a\nb");
        (void)snprintf(bad[2], sizeof *bad, "a\xff");
        (void)snprintf(bad[3], sizeof *bad, "a\xc2\x85");
        n_bad = 4;
    } else if (k->kind == KEY_SHA256) {
        bad[0][0] = 'f';
        bad[0][1] = '\0';
    } else if (k->kind == KEY_INT || k->kind == KEY_COUNT || k->kind == KEY_BYTES) {
        (void)snprintf(bad[0], sizeof *bad, "%" PRIu64, k->max + 1);
        if (k->min > 0) (void)snprintf(bad[1], sizeof *bad, "%" PRIu64, k->min - 1);
        ck_assert_msg(k->kind != KEY_INT || k->max <= INT_MAX, "%s", k->name);
    }
    for (int i = 0; i < n_bad; i++) {
        config c = {0};
        config_action action;
        error err = {0};
        char set[8 * CONFIG_TEXT_MAX];
        (void)snprintf(set, sizeof set, "%s=%s", k->name, bad[i]);
        ck_assert_msg(LOAD(&c, &action, &err, "--set", set) == E_INVAL, "%s=%s was taken", k->name,
                      bad[i]);
        ck_assert_msg(strstr(err.text, k->name) != NULL, "%s does not name %s", err.text, k->name);
    }
}
END_TEST

START_TEST(flags_win_over_environment_over_file_over_default) {
    char path[64];
    const char *text = "engine:\n  threads: 1\n  device: 1\n  kv_blocks: 1\n";
    write_file(path, text, strlen(text));
    char *envp[] = {"INFERD_ENGINE_THREADS=2", "INFERD_ENGINE_DEVICE=2", NULL};
    char *argv[] = {"inferd", "--threads", "3", "--model=m.gguf", "--config", path, NULL};
    config c;
    config_action action;
    error err = {0};
    ck_assert_msg(config_load(6, argv, envp, &c, &action, &err) == OK, "%s", err.text);
    (void)unlink(path);
    ck_assert_int_eq(action, CONFIG_SERVE);
    ck_assert_int_eq(c.engine.threads, 3);
    ck_assert_int_eq(c.engine.device, 2);
    ck_assert_int_eq(c.engine.kv_blocks, 1);
    ck_assert_int_eq(c.engine.kv_block_tokens, 32);
    ck_assert_str_eq(c.model.path, "m.gguf");
}
END_TEST

START_TEST(the_last_flag_wins) {
    config c;
    config_action action;
    error err = {0};
    ck_assert_int_eq(LOAD(&c, &action, &err, "--model", "a", "--set", "engine.threads=7",
                          "--threads", "5", "--set", "model.path=b"),
                     OK);
    ck_assert_int_eq(c.engine.threads, 5);
    ck_assert_str_eq(c.model.path, "b");
    ck_assert_int_eq(LOAD(&c, &action, &err, "--set", "log.level=warn", "--set", "log.level=error",
                          "--print-config"),
                     OK);
    ck_assert_int_eq(action, CONFIG_PRINT);
    ck_assert_int_eq(c.log.level, CONFIG_LOG_ERROR);
}
END_TEST

START_TEST(command_line_refusals_say_what_to_do) {
    static const struct {
        const char *args[3];
        const char *says;
    } rows[] = {
        {{"--check-config", "--bogus"}, "unknown flag --bogus"},
        {{"model.gguf"}, "--model"},
        {{"--threads"}, "--threads needs a value"},
        {{"--check-config=1"}, "takes no value"},
        {{"--set", "engine.threads"}, "section.key=value"},
        {{"--set", "engine.thread=1"}, "did you mean engine.threads?"},
        {{"--set", "engine=1"}, "unknown key engine"},
        {{"--set", "=1"}, "unknown key"},
        {{"--threads", "many"}, "0..256"},
        {{"--backend", "vulkan"}, "auto, cpu, cuda"},
        {{"--listen", "50051"}, "host:port"},
        {{"--listen", "off"}, "host:port"},
        {{"--listen", "1.2.3.4:65536"}, "host:port"},
        {{"--listen", "::1:80"}, "host:port"},
        {{"--listen", "unix:"}, "unix:PATH"},
        {{"--admin", "none"}, "off"},
        {{"--config", "/nonexistent/inferd.yaml"}, "/nonexistent/inferd.yaml"},
        {{"--config", "/tmp"}, "/tmp"},
        {{"--threads", "1"}, "no model is given"},
        {{"--model", ""}, "no model is given"},
    };
    config c = {0};
    config_action action;
    error err = {0};
    char *argv[5] = {"inferd"};
    int argc = 1;
    for (; argc < 4 && rows[_i].args[argc - 1]; argc++)
        argv[argc] = (char *)rows[_i].args[argc - 1];
    ck_assert_int_ne(config_load(argc, argv, no_env, &c, &action, &err), OK);
    ck_assert_msg(strstr(err.text, rows[_i].says) != NULL, "%s: not in: %s", rows[_i].says,
                  err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
}
END_TEST

START_TEST(help_and_version_read_nothing) {
    config c;
    config_action action;
    error err;
    ck_assert_int_eq(LOAD(&c, &action, &err, "--version", "--config", "/nonexistent"), OK);
    ck_assert_int_eq(action, CONFIG_VERSION);
    ck_assert_int_eq(LOAD(&c, &action, &err, "--threads", "x", "-h"), OK);
    ck_assert_int_eq(action, CONFIG_HELP);
}
END_TEST

START_TEST(environment_typing_errors_are_refused_but_not_foreign_variables) {
    static const struct {
        char *variable;
        status want;
    } rows[] = {
        {"INFERD_ENGINE_THREAD=1", E_INVAL},
        {"INFERD_SERVER_TLS=x", E_INVAL},
        {"INFERD_ENGINE_THREADS=", E_INVAL},
        {"INFERD_ENGINE_THREADS=0x10", E_INVAL},
        {"INFERD_MODEL=/m.gguf", OK}, /* of the tests */
        {"INFERD_BUILD=x", OK},
        {"INFERD_SERVER_SERVICE_HOST=10.0.0.1", OK}, /* of Kubernetes */
        {"INFERD_SERVER_SERVICE_PORT_GRPC=50051", OK},
        {"INFERD_SERVER_PORT=tcp://10.0.0.1:50051", OK},
        {"INFERD_SERVER_PORT_50051_TCP_ADDR=10.0.0.1", OK},
        {"XINFERD_ENGINE_THREAD=1", OK},
        {"INFERD_ENGINE_THREADS", OK}, /* no value: not a variable */
    };
    char *envp[] = {rows[_i].variable, NULL};
    char *argv[] = {"inferd", "--check-config", NULL};
    config c;
    config_action action;
    error err = {0};
    ck_assert_msg(config_load(2, argv, envp, &c, &action, &err) == rows[_i].want, "%s: %s",
                  rows[_i].variable, err.text);
    if (rows[_i].want != OK) ck_assert_ptr_nonnull(strstr(err.text, "INFERD_"));
}
END_TEST

static const struct {
    const char *text;
    const char *says; /* NULL: taken */
} yaml_rows[] = {
    {"", NULL},
    {"# nothing\n", NULL},
    {"---\n", NULL},
    {"---\n...\n", NULL},
    {"%YAML 1.1\n---\nlog:\n  level: warn\n", NULL},
    {"server:\n", NULL},
    {"server:\n  tls:\n  drain_s: 3\n", NULL},
    {"{log: {level: 'warn'}, engine: {threads: \"2\"}}", NULL},
    {"server: {max_message_bytes: 4MiB}", NULL},
    {"model:\n  name: >-\n    folded\n    text\n", NULL},
    {"sever:\n  listen: x:1\n", ":1: sever: unknown key"},
    {"server:\n  listn: x:1\n", ":2: server.listn: unknown key; did you mean server.listen?"},
    {"Server:\n  listen: x:1\n", ":1: Server: unknown key"},
    {"server.listen: x:1\n", ":1: server.listen: unknown key; sections are nested"},
    {"log:\n  level: info\n\nlog:\n  format: json\n", ":4: log: given twice"},
    {"log:\n  level: info\n  level: info\n", ":3: log.level: given twice"},
    {"server: {tls: {cert: a}, tls: {key: b}}", "server.tls: given twice"},
    {"log:\n  level: loud\n", ":2: log.level must be one of debug, info, warn, error"},
    {"engine:\n  threads: two\n", ":2: engine.threads must be a whole number, 0..256"},
    {"engine:\n  threads: 1_000\n", "engine.threads must be"},
    {"engine:\n  kv_block_tokens: 33\n", "engine.kv_block_tokens must be"},
    {"engine:\n  prefix_cache: yes\n", "engine.prefix_cache must be true or false"},
    {"server:\n  max_message_bytes: 4MB\n", "server.max_message_bytes must be"},
    {"server:\n  max_message_bytes: 18446744073709551615GiB\n", "server.max_message_bytes must be"},
    {"engine:\n  threads:\n", "engine.threads: has no value"},
    {"engine:\n  threads: ~\n", "engine.threads: has no value"},
    {"engine:\n  threads: null\n", "engine.threads: has no value"},
    {"engine:\n  threads: [1]\n", "engine.threads: lists are not taken"},
    {"engine:\n  threads: {a: 1}\n", "engine.threads: takes one value"},
    {"engine: 4\n", ":1: engine: is a section"},
    {"engine: [threads]\n", "engine: lists are not taken"},
    {"- engine\n", "lists are not taken"},
    {"engine\n", "a mapping of sections"},
    {"log: &a\n  level: info\n", "log: anchors are not taken"},
    {"log:\n  level: &a info\n  format: *a\n", ":2: log.level: anchors are not taken"},
    {"log: *a\n", "log: aliases are not taken"},
    {"*a : 1\n", "aliases are not taken"},
    {"&a log: {level: info}\n", "anchors are not taken"},
    {"log: !!map\n  level: info\n", "log: tags are not taken"},
    {"log:\n  level: !!str info\n", "log.level: tags are not taken"},
    {"!x {log: {level: info}}\n", "tags are not taken"},
    {"%TAG ! tag:x,2000:\n---\nlog:\n  level: info\n", "tags are not taken"},
    {"? [a, b]\n: 1\n", "lists are not taken"},
    {"? {a: b}\n: 1\n", "one value is expected"},
    {"<<: {level: info}\n", "<<: unknown key"},
    {"\"\": 1\n", "an empty key"},
    {"\"a\\0b\": 1\n", "a NUL character"},
    {"model:\n  name: \"a\\0b\"\n", "model.name: a NUL character"},
    {"model:\n  name: \"a\\nb\"\n", "model.name must be UTF-8 without control characters"},
    {"model:\n  name: \"a\\eb\"\n", "model.name must be UTF-8 without control characters"},
    {"log:\n  level: info\n---\nlog:\n  level: info\n", "a second document"},
    {"log:\n  level: info\n...\nlog:\n  level: info\n", "not valid YAML"},
    {"log:\n\tlevel: info\n", ":2: not valid YAML"},
    {"log: {level: info\n", "not valid YAML"},
    {"log:\n  level: 'info\n", "not valid YAML"},
    {"log:\n level: info\n  format: json\n", ":2: log.level must be"},
    {"model:\n  name: \xff\n", "not valid YAML"},
    {"\xff\xfel\0o\0g\0", "not valid YAML"},
    {"model:\n  name: \x01\n", "not valid YAML"},
    {"{{{{{{{{{{{{{{{{", "one value is expected"},
    {"[[[[[[[[[[[[[[[[[[[", "lists are not taken"},
    {"server:\n  tls:\n    cert: a.pem\n", ":3: server.tls.cert needs server.tls.key"},
    {"server:\n  tls:\n    client_ca: a.pem\n", ":3: server.tls.client_ca needs server.tls.cert"},
    {"server:\n  listen: unix:a\n  health_listen: unix:a\n", ":3: server.health_listen is server"},
    {"server:\n  listen: a:1\nadmin:\n  listen: a:1\n", ":4: admin.listen is another"},
    {"server:\n  health_listen: a:1\nadmin:\n  listen: a:1\n", ":4: admin.listen is another"},
    {"server:\n  listen: a:0\n  health_listen: a:0\nadmin:\n  listen: a:0\n", NULL},
    {"server:\n  drain_delay_s: 9\n  drain_s: 8\n", ":3: server.drain_s must not be below"},
    {"watchdog:\n  not_ready_s: 9\n  exit_s: 8\n", ":3: watchdog.exit_s must not be below"},
    {"engine:\n  kv_blocks: 9\n  kv_memory_bytes: 8\n", "engine.kv_blocks and engine.kv_memory"},
};

START_TEST(yaml_that_is_not_a_configuration_is_refused_by_line_and_key) {
    config c;
    error err = {0};
    const status s = load_text(yaml_rows[_i].text, &c, &err);
    if (!yaml_rows[_i].says) {
        ck_assert_msg(s == OK, "%s: %s", yaml_rows[_i].text, err.text);
        return;
    }
    ck_assert_msg(s != OK, "was taken: %s", yaml_rows[_i].text);
    ck_assert_msg(strstr(err.text, yaml_rows[_i].says) != NULL, "%s: not in: %s",
                  yaml_rows[_i].says, err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
    ck_assert_int_eq(strncmp(err.text, "/tmp/inferd_test_config_", 24), 0);
}
END_TEST

/* A good file cut at every byte, and one byte of it replaced: an answer, never a crash; and what is
 * taken stays within the ranges, because it can be printed and read again. */
START_TEST(damaged_files_get_an_answer) {
    static const char good[] =
        "server:\n  listen: \"127.0.0.1:0\"\n  tls:\n    cert: 'a'\n    key: b\n"
        "engine: {threads: 2, kv_type: int8}\n# end\n";
    config c;
    error err;
    (void)load_bytes(good, (size_t)_i % sizeof good, &c, &err);
    char text[sizeof good];
    memcpy(text, good, sizeof good);
    srand((unsigned)_i);
    for (int k = 0; k < 3; k++) {
        static const char spice[] = "{}[]:,&*!|>'\"%@`#-? \n\t\0\x80\xff~";
        text[(size_t)rand() % (sizeof good - 1)] = spice[(size_t)rand() % sizeof spice];
        (void)load_bytes(text, sizeof good - 1, &c, &err);
    }
}
END_TEST

START_TEST(size_and_depth_are_capped) {
    config c;
    error err = {0};
    char *text = malloc(LIMIT_CONFIG_BYTES + 2);
    ck_assert_ptr_nonnull(text);
    memset(text, '#', LIMIT_CONFIG_BYTES + 2);
    ck_assert_int_eq(load_bytes(text, LIMIT_CONFIG_BYTES, &c, &err), OK); /* one long comment */
    ck_assert_int_eq(load_bytes(text, LIMIT_CONFIG_BYTES + 1, &c, &err), E_TOO_LARGE);
    memset(text, '[', LIMIT_CONFIG_BYTES);
    ck_assert_int_ne(load_bytes(text, LIMIT_CONFIG_BYTES, &c, &err), OK);
    for (size_t i = 0; i + 3 <= LIMIT_CONFIG_BYTES; i += 3) memcpy(text + i, "{a:", 3);
    ck_assert_int_ne(load_bytes(text, LIMIT_CONFIG_BYTES - 1, &c, &err), OK);
    free(text);
}
END_TEST

/* What --print-config writes is read back to the same values, whatever they are. */
START_TEST(print_and_read_back) {
    config a, b;
    defaults(&a);
    int n;
    const config_key *keys = config_keys(&n);
    for (int i = 0; i < n; i++) {
        if (_i == 0 || strncmp(keys[i].name, "engine.kv_", 10) == 0) continue;
        char value[CONFIG_TEXT_MAX], reason[CONFIG_REASON_MAX];
        other_value(&keys[i], value);
        ck_assert_int_eq(config_key_set(&keys[i], value, &a, reason), OK);
    }
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    ck_assert_ptr_nonnull(out);
    config_print(&a, out);
    ck_assert_int_eq(fclose(out), 0);
    error err = {0};
    ck_assert_msg(load_bytes(text, bytes, &b, &err) == OK, "%s\n%s", err.text, text);
    for (int i = 0; i < n; i++) {
        char want[CONFIG_TEXT_MAX];
        config_key_text(&keys[i], &a, want);
        check_member(&keys[i], &b, want, "print");
    }
    free(text);
}
END_TEST

static char *read_whole(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *text = calloc(1, 1 << 20);
    ck_assert_ptr_nonnull(text);
    const size_t n = fread(text, 1, (1 << 20) - 1, f);
    text[n] = '\0';
    (void)fclose(f);
    return text;
}

/* Made anew by: config_test_config --default-yaml > config/default.yaml */
START_TEST(default_yaml_is_current) {
    char *have = read_whole(TEST_ROOT "/config/default.yaml"), *want = NULL;
    ck_assert_ptr_nonnull(have);
    size_t bytes;
    config c;
    defaults(&c);
    FILE *out = open_memstream(&want, &bytes);
    ck_assert_ptr_nonnull(out);
    config_print(&c, out);
    ck_assert_int_eq(fclose(out), 0);
    ck_assert_str_eq(have, want);
    free(have);
    free(want);
}
END_TEST

/* The README holds the table word for word: config_test_config --markdown writes it. */
START_TEST(readme_table_is_current) {
    char *readme = read_whole(TEST_ROOT "/README.md"), *want = NULL;
    ck_assert_ptr_nonnull(readme);
    size_t bytes;
    FILE *out = open_memstream(&want, &bytes);
    ck_assert_ptr_nonnull(out);
    config_print_markdown(out);
    ck_assert_int_eq(fclose(out), 0);
    ck_assert_msg(strstr(readme, want) != NULL, "README.md lacks the current table of keys");
    free(readme);
    free(want);
}
END_TEST

START_TEST(the_table_is_well_formed) {
    int n;
    const config_key *keys = config_keys(&n);
    ck_assert_int_le(n, CONFIG_KEYS_MAX);
    for (int i = 0; i < n; i++) {
        ck_assert_int_eq(config_key_find(keys[i].name), i); /* no name twice */
        ck_assert_ptr_nonnull(strchr(keys[i].name, '.'));
        ck_assert_ptr_null(strpbrk(keys[i].doc, "|\n"));
        for (int j = 0; j < i; j++) /* no two keys share a member */
            ck_assert(keys[j].offset + keys[j].size <= keys[i].offset ||
                      keys[i].offset + keys[i].size <= keys[j].offset);
    }
}
END_TEST

static Suite *suite(void) {
    int n;
    (void)config_keys(&n);
    Suite *s = suite_create("config");
    TCase *tc = tcase_create("config");
    tcase_set_timeout(tc, TEST_LIMIT_S);
    tcase_add_loop_test(tc, every_key_can_be_set_from_every_source, 0, n);
    tcase_add_loop_test(tc, values_out_of_range_are_refused_and_named, 0, n);
    tcase_add_test(tc, flags_win_over_environment_over_file_over_default);
    tcase_add_test(tc, the_last_flag_wins);
    tcase_add_loop_test(tc, command_line_refusals_say_what_to_do, 0, 20);
    tcase_add_test(tc, help_and_version_read_nothing);
    tcase_add_loop_test(tc, environment_typing_errors_are_refused_but_not_foreign_variables, 0, 12);
    tcase_add_loop_test(tc, yaml_that_is_not_a_configuration_is_refused_by_line_and_key, 0,
                        (int)(sizeof yaml_rows / sizeof *yaml_rows));
    tcase_add_loop_test(tc, damaged_files_get_an_answer, 0, 256);
    tcase_add_test(tc, size_and_depth_are_capped);
    tcase_add_loop_test(tc, print_and_read_back, 0, 2);
    tcase_add_test(tc, default_yaml_is_current);
    if (access(TEST_ROOT "/README.md", F_OK) == 0) tcase_add_test(tc, readme_table_is_current);
    tcase_add_test(tc, the_table_is_well_formed);
    suite_add_tcase(s, tc);
    return s;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--markdown") == 0) {
        config_print_markdown(stdout);
        return 0;
    }
    if (argc == 2 && strcmp(argv[1], "--default-yaml") == 0) {
        config c;
        config_action action;
        error err;
        if (LOAD(&c, &action, &err, "--check-config") != OK) return 1;
        config_print(&c, stdout);
        return 0;
    }
    return check_run_suite(suite(), CK_FORK_GETENV);
}
