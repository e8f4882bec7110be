/* inferctl: the command-line client of inferd. */
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/streams.h"
#include "client/cli.h"
#include "client/output.h"

static const command *const commands[] = {
    &command_generate, &command_chat,   &command_tokenize, &command_detokenize, &command_info,
    &command_status,   &command_health, &command_abort,    &command_bench,
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int print_help(void) {
    fputs("usage: inferctl [--server ADDR] COMMAND [flags]\n\ncommands:\n", stdout);
    for (int i = 0; i < N_COMMANDS; i++)
        printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
    fputs(
        "\ninferctl COMMAND --help shows its flags and examples. --version prints the version.\n"
        "\nADDR is host:port or unix:PATH; without --server it is INFERCTL_SERVER, else "
        "127.0.0.1:50051.\n"
        "\nexamples:\n"
        "  inferctl chat\n"
        "  inferctl generate --chat \"What is the capital of France?\"\n"
        "  inferctl --server unix:/run/inferd.sock status --json\n"
        "\nexit codes: 0 done, 1 the request failed, 2 usage, 3 no server there, 130 interrupted\n",
        stdout);
    return CLI_OK;
}

static const command *find_command(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static int run(cli *c, int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("inferctl %s\n", INFERD_VERSION);
        return CLI_OK;
    }
    int i;
    const int code = cli_parse_shared(c, argc, argv, &i);
    if (code >= 0) return code;
    if (c->help || (i < argc && strcmp(argv[i], "help") == 0)) return print_help();
    if (i == argc) return cli_usage_error(c, "which command?");
    c->command = find_command(argv[i]);
    if (!c->command) return cli_usage_error(c, "unknown command %s", argv[i]);
    return c->command->run(c, argc - i, argv + i);
}

int main(int argc, char **argv) {
    streams_keep_standard();
    (void)setlocale(LC_CTYPE, "");
    /* Ctrl-C stays pending until a call looks for it (session_interrupted): no handler, no global.
     * Set before gRPC starts threads, so that they inherit it. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    rpc_init();
    cli *c = calloc(1, sizeof *c);
    if (!c) return CLI_FAILED;
    const char *server = getenv("INFERCTL_SERVER");
    c->rpc.server = server && *server ? server : "127.0.0.1:50051";
    int code = run(c, argc, argv);
    /* Whoever closed the pipe knows; a full disk has to be told. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && code != CLI_INTERRUPTED) {
        if (!output_reader_gone()) cli_say("standard output: it cannot be written");
        code = CLI_FAILED;
    }
    cli_deinit(c);
    free(c);
    rpc_deinit();
    return code;
}
