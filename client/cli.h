/* The command line of inferctl: flags by table, help from the same table, exit codes, and what all
 * commands share. Thread: main. */
#ifndef INFERD_CLIENT_CLI_H
#define INFERD_CLIENT_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/rpc.h"

typedef enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,      /* the server refused, or the call broke */
    CLI_USAGE = 2,       /* wrong command line or unreadable file */
    CLI_UNREACHABLE = 3, /* no server there, or not ready within --wait */
    CLI_INTERRUPTED = 130
} cli_exit;

typedef struct text_list {
    const char **items; /* borrowed from argv; the array is the cli's */
    int n;
} text_list;

typedef enum flag_kind {
    FLAG_BOOL,  /* bool, set to true; takes no value */
    FLAG_TEXT,  /* const char * */
    FLAG_TEXTS, /* text_list: may be repeated */
    FLAG_U32,
    FLAG_I32,
    FLAG_U64,
    FLAG_FLOAT, /* float; inf and nan are passed on: the server judges ranges */
    FLAG_DOUBLE /* double >= 0 */
} flag_kind;

typedef struct flag {
    const char *name; /* "--max-tokens" */
    flag_kind kind;
    void *to;
    const char *arg; /* "N" in the help; NULL for FLAG_BOOL */
    const char *doc;
} flag;

typedef struct cli cli;

typedef struct command {
    const char *name, *args, *summary, *details, *examples;
    int (*run)(cli *c, int argc, char **argv); /* argv[0] is the command's name; an exit code */
} command;

struct cli {
    rpc_options rpc; /* token: see token_file */
    const char *token_file;
    double timeout_s, wait_s; /* 0: none */
    bool json, help;
    char token[4096];
    const command *command;
    const char **args; /* what is not a flag: [n_args], borrowed from argv */
    int n_args;
    const char **lists[16]; /* arrays behind text_lists, owned */
    int n_lists;
    bool no_flags; /* after `--` */
};

/* Reads flags (the command's and the shared ones) and collects the rest in c->args. Returns -1 to
 * go on, else the exit code: help was asked for and printed, or a usage error was. */
int cli_parse(cli *c, const flag *flags, int n_flags, int argc, char **argv);
/* Flags before the command; *i_command is where it stands. As cli_parse. */
int cli_parse_shared(cli *c, int argc, char **argv, int *i_command);

void cli_deinit(cli *c);

/* One line on stderr, with "inferctl: " before it. */
void cli_say(const char *fmt, ...) BASE_PRINTF(1, 2);
/* The same, then a hint at --help; returns CLI_USAGE. */
int cli_usage_error(const cli *c, const char *fmt, ...) BASE_PRINTF(2, 3);

/* argument i, or all of standard input for "-" or when there is none and it is no terminal.
 * NULL: said why. *out is owned, NUL-terminated; *bytes may count NULs inside. */
char *cli_read_input(const cli *c, int i, size_t *bytes);
/* A whole file of at most 16 MiB ("-": standard input). NULL: said why. Owned. */
char *cli_read_file(const char *path, size_t *bytes);

int64_t cli_deadline_ns(const cli *c);

/* true: Ctrl-C ends the program at once; false, as main begins: it waits for
 * session_interrupted. For reading input, where there is no call to end. */
void cli_let_interrupt(bool on);

extern const command command_generate, command_chat, command_tokenize, command_detokenize,
    command_info, command_status, command_health, command_abort, command_bench;
#endif
