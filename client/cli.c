#include "client/cli.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/output.h"

enum { FILE_BYTES_MAX = 16 << 20, SHARED_FLAGS = 11 };

/* One line, whatever a server or a path may contain. */
BASE_PRINTF(1, 0) static void say_line(const char *fmt, va_list args, const char *tail) {
    char line[2048];
    (void)vsnprintf(line, sizeof line, fmt, args);
    fputs("inferctl: ", stderr);
    output_write_line(stderr, line, strlen(line));
    fprintf(stderr, "%s\n", tail);
}

void cli_say(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    say_line(fmt, args, "");
    va_end(args);
}

int cli_usage_error(const cli *c, const char *fmt, ...) {
    char tail[64];
    (void)snprintf(tail, sizeof tail, " (see inferctl %s%s--help)",
                   c->command ? c->command->name : "", c->command ? " " : "");
    va_list args;
    va_start(args, fmt);
    say_line(fmt, args, tail);
    va_end(args);
    return CLI_USAGE;
}

static void shared_flags(cli *c, flag out[SHARED_FLAGS]) {
    const flag all[SHARED_FLAGS] = {
        {"--server", FLAG_TEXT, &c->rpc.server, "ADDR",
         "host:port or unix:PATH (or INFERCTL_SERVER; default 127.0.0.1:50051)"},
        {"--timeout", FLAG_DOUBLE, &c->timeout_s, "S", "give the call this many seconds"},
        {"--wait", FLAG_DOUBLE, &c->wait_s, "S", "first wait up to S seconds until it serves"},
        {"--retries", FLAG_I32, &c->rpc.retries, "N", "repeat a refused call up to 4 times"},
        {"--tls", FLAG_BOOL, &c->rpc.tls, NULL, "speak TLS, trusting the system's authorities"},
        {"--ca", FLAG_TEXT, &c->rpc.ca, "FILE", "speak TLS, trusting the authorities in FILE"},
        {"--cert", FLAG_TEXT, &c->rpc.cert, "FILE", "own certificate (mTLS), with --key"},
        {"--key", FLAG_TEXT, &c->rpc.key, "FILE", "its private key"},
        {"--token-file", FLAG_TEXT, &c->token_file, "FILE",
         "bearer token in FILE (or INFERCTL_TOKEN)"},
        {"--json", FLAG_BOOL, &c->json, NULL, "JSON on standard output"},
        {"--help", FLAG_BOOL, &c->help, NULL, "this text"},
    };
    memcpy(out, all, sizeof all);
}

static void print_flags(const flag *flags, int n) {
    for (int i = 0; i < n; i++) {
        char left[64];
        (void)snprintf(left, sizeof left, "%s%s%s", flags[i].name, flags[i].arg ? " " : "",
                       flags[i].arg ? flags[i].arg : "");
        printf("  %-28s %s%s\n", left, flags[i].doc,
               flags[i].kind == FLAG_TEXTS ? " (may be repeated)" : "");
    }
}

static void print_help(const cli *c, const flag *flags, int n, const flag *shared) {
    printf("usage: inferctl %s %s\n\n%s\n", c->command->name, c->command->args,
           c->command->summary);
    if (c->command->details) printf("%s\n", c->command->details);
    if (n > 0) printf("\nflags:\n");
    print_flags(flags, n);
    printf("\nshared flags:\n");
    print_flags(shared, SHARED_FLAGS);
    printf("\nexamples:\n%s", c->command->examples);
    printf("\nexit codes: 0 done, 1 the request failed, 2 usage, 3 no server there, 130 "
           "interrupted\n");
}

static bool digits_only(const char *s) {
    return *s && strspn(s, "0123456789") == strlen(s);
}

static bool append_text(cli *c, text_list *l, const char *value, int argc) {
    if (!l->items) {
        if (c->n_lists == (int)(sizeof c->lists / sizeof *c->lists)) return false;
        l->items = calloc((size_t)argc, sizeof *l->items); /* more values there cannot be */
        if (!l->items) return false;
        c->lists[c->n_lists++] = l->items;
    }
    l->items[l->n++] = value;
    return true;
}

static bool set_flag(cli *c, const flag *f, const char *value, int argc) {
    char *end;
    errno = 0;
    switch (f->kind) {
    case FLAG_BOOL:
        *(bool *)f->to = true;
        return true;
    case FLAG_TEXT:
        *(const char **)f->to = value;
        return true;
    case FLAG_TEXTS:
        return append_text(c, f->to, value, argc);
    case FLAG_U32:
    case FLAG_U64: {
        const unsigned long long v = strtoull(value, &end, 10);
        if (!digits_only(value) || errno || (f->kind == FLAG_U32 && v > UINT32_MAX)) return false;
        if (f->kind == FLAG_U32)
            *(uint32_t *)f->to = (uint32_t)v;
        else
            *(uint64_t *)f->to = v;
        return true;
    }
    case FLAG_I32: {
        const long v = strtol(value, &end, 10);
        if (end == value || *end || errno || v < INT32_MIN || v > INT32_MAX) return false;
        *(int32_t *)f->to = (int32_t)v;
        return true;
    }
    case FLAG_FLOAT:
        *(float *)f->to = strtof(value, &end);
        return end != value && !*end;
    case FLAG_DOUBLE: {
        const double v = strtod(value, &end);
        if (end == value || *end || !isfinite(v) || v < 0 || v > 1e9) return false;
        *(double *)f->to = v;
        return true;
    }
    }
    return false;
}

void cli_deinit(cli *c) {
    for (int i = 0; i < c->n_lists; i++) free(c->lists[i]);
    free(c->args);
}

static const flag *find_flag(const flag *flags, int n, const char *name, size_t len) {
    for (int i = 0; i < n; i++)
        if (strlen(flags[i].name) == len && strncmp(flags[i].name, name, len) == 0)
            return &flags[i];
    return NULL;
}

/* Reads argv[*i] if it is a flag. -1 read, CLI_USAGE said why. */
static int read_flag(cli *c, const flag *flags, int n, const flag *shared, int argc, char **argv,
                     int *i) {
    const char *arg = argv[*i];
    const size_t len = strcspn(arg, "=");
    const flag *f = find_flag(shared, SHARED_FLAGS, arg, len);
    if (!f) f = find_flag(flags, n, arg, len);
    if (!f && strcmp(arg, "-h") == 0) f = find_flag(shared, SHARED_FLAGS, "--help", 6);
    if (!f) return cli_usage_error(c, "unknown flag %.*s", (int)len, arg);
    const char *value = arg[len] == '=' ? arg + len + 1 : NULL;
    if (f->kind == FLAG_BOOL && value) return cli_usage_error(c, "%s takes no value", f->name);
    if (f->kind != FLAG_BOOL && !value) {
        if (*i + 1 >= argc) return cli_usage_error(c, "%s needs a value", f->name);
        value = argv[++*i];
    }
    if (!set_flag(c, f, value, argc)) return cli_usage_error(c, "%s: not a usable value", f->name);
    return -1;
}

int cli_parse_shared(cli *c, int argc, char **argv, int *i_command) {
    flag shared[SHARED_FLAGS];
    shared_flags(c, shared);
    int i = 1;
    for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        const int code = read_flag(c, NULL, 0, shared, argc, argv, &i);
        if (code >= 0) return code;
    }
    *i_command = i;
    return -1;
}

/* What a header can carry; gRPC would end the process over anything else. */
static bool is_token(const char *s, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (s[i] < 0x20 || s[i] > 0x7e) return false;
    return bytes > 0;
}

static int read_token(cli *c) {
    const char *from_environment = getenv("INFERCTL_TOKEN");
    if (c->token_file) {
        size_t bytes;
        char *text = cli_read_file(c->token_file, &bytes);
        if (!text) return CLI_USAGE;
        bytes = strcspn(text, "\r\n");
        const bool fits = bytes < sizeof c->token && is_token(text, bytes);
        if (fits) {
            memcpy(c->token, text, bytes);
            c->token[bytes] = '\0';
        }
        free(text);
        if (!fits)
            return cli_usage_error(
                c, "%s: its first line is no token (printable ASCII, 4095 bytes)", c->token_file);
        c->rpc.token = c->token;
    } else if (from_environment && *from_environment) {
        if (!is_token(from_environment, strlen(from_environment)))
            return cli_usage_error(c, "INFERCTL_TOKEN is no token (printable ASCII)");
        c->rpc.token = from_environment;
    }
    return -1;
}

int cli_parse(cli *c, const flag *flags, int n_flags, int argc, char **argv) {
    flag shared[SHARED_FLAGS];
    shared_flags(c, shared);
    c->args = calloc((size_t)argc + 1, sizeof *c->args);
    if (!c->args) return CLI_FAILED;
    for (int i = 1; i < argc; i++) {
        if (!c->no_flags && strcmp(argv[i], "--") == 0) {
            c->no_flags = true;
        } else if (!c->no_flags && argv[i][0] == '-' && argv[i][1]) {
            const int code = read_flag(c, flags, n_flags, shared, argc, argv, &i);
            if (code >= 0) return code;
        } else {
            c->args[c->n_args++] = argv[i];
        }
    }
    if (c->help) {
        print_help(c, flags, n_flags, shared);
        return CLI_OK;
    }
    if (c->rpc.retries < 0 || c->rpc.retries > 4)
        return cli_usage_error(c, "--retries must be 0..4");
    return read_token(c);
}

void cli_let_interrupt(bool on) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    (void)pthread_sigmask(on ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
}

static char *read_stream(FILE *f, const char *name, size_t *bytes) {
    char *text = malloc(FILE_BYTES_MAX + 1);
    if (!text) {
        cli_say("out of memory");
        return NULL;
    }
    cli_let_interrupt(true); /* nothing is under way yet that would want to end in order */
    *bytes = fread(text, 1, FILE_BYTES_MAX + 1, f);
    cli_let_interrupt(false);
    if (ferror(f) || *bytes > FILE_BYTES_MAX) {
        cli_say("%s: %s", name, ferror(f) ? strerror(errno) : "larger than 16 MiB");
        free(text);
        return NULL;
    }
    text[*bytes] = '\0';
    char *fitted = realloc(text, *bytes + 1);
    return fitted ? fitted : text;
}

char *cli_read_file(const char *path, size_t *bytes) {
    if (strcmp(path, "-") == 0) return read_stream(stdin, "standard input", bytes);
    FILE *f = fopen(path, "rb");
    if (!f) {
        cli_say("%s: %s", path, strerror(errno));
        return NULL;
    }
    char *text = read_stream(f, path, bytes);
    (void)fclose(f);
    return text;
}

char *cli_read_input(const cli *c, int i, size_t *bytes) {
    if (i < c->n_args && strcmp(c->args[i], "-") != 0) {
        *bytes = strlen(c->args[i]);
        char *copy = malloc(*bytes + 1);
        if (copy) memcpy(copy, c->args[i], *bytes + 1);
        return copy;
    }
    if (i >= c->n_args && isatty(STDIN_FILENO)) {
        (void)cli_usage_error(c, "nothing to send: give a text, or pipe one in");
        return NULL;
    }
    return read_stream(stdin, "standard input", bytes);
}

int64_t cli_deadline_ns(const cli *c) {
    if (c->timeout_s <= 0) return TIME_NEVER;
    return clock_now_ns() + (int64_t)(c->timeout_s * 1e9);
}
