/* inferctl chat: a conversation on the terminal. The client keeps the history and sends all of it
 * each turn; the server's prompt cache makes that cheap. */
#include <histedit.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/output.h"
#include "client/request.h"
#include "client/session.h"

enum { ARENA_BYTES = 64 << 20, TURNS_MAX = 4096, HISTORY_LINES = 500 };

typedef struct turn {
    const char *role; /* static */
    char *text;       /* owned */
    size_t bytes;
} turn;

typedef struct chat {
    session s;
    generate_options o;
    turn turns[TURNS_MAX];
    int n_turns;
    output answer; /* of the running turn */
    bool terminal, finished;
    Inferd__V1__FinishReason reason;
    Inferd__V1__Usage usage;
} chat;

static void push_turn(chat *h, const char *role, const char *text, size_t bytes) {
    turn *t = &h->turns[h->n_turns++];
    t->role = role;
    t->bytes = bytes;
    t->text = malloc(bytes + 1);
    if (!t->text) abort();
    memcpy(t->text, text, bytes);
    t->text[bytes] = '\0';
}

static void drop_turns(chat *h, int keep) {
    while (h->n_turns > keep) free(h->turns[--h->n_turns].text);
}

static int n_system(const chat *h) {
    return h->n_turns > 0 && strcmp(h->turns[0].role, "system") == 0;
}

static void set_system(chat *h, const char *text) {
    drop_turns(h, 0);
    if (*text) push_turn(h, "system", text, strlen(text));
}

static void on_response(void *ctx, const ProtobufCMessage *m) {
    chat *h = ctx;
    const Inferd__V1__GenerateResponse *r = (const void *)m;
    output_append(&h->answer, r->text.data, r->text.len);
    output_write_terminal(stdout, r->text.data, r->text.len, h->terminal);
    (void)fflush(stdout);
    if (r->finish) h->reason = r->finish->reason;
    if (r->usage) {
        h->usage = *r->usage;
        h->finished = true;
    }
}

/* One turn: the history and `text` out, the answer in. Returns an exit code of the call. */
static int ask(chat *h, const char *text, size_t bytes) {
    push_turn(h, "user", text, bytes);
    arena a;
    arena_init(&a, ARENA_BYTES);
    Inferd__V1__GenerateRequest r;
    Inferd__V1__Chat c = INFERD__V1__CHAT__INIT;
    int code = request_build_parameters(h->s.c, &h->o, &a, &r);
    c.messages = arena_calloc(&a, (size_t)h->n_turns, sizeof *c.messages);
    for (int i = 0; c.messages && i < h->n_turns; i++) {
        c.messages[i] = request_message(&a, h->turns[i].role, h->turns[i].text, h->turns[i].bytes);
        if (!c.messages[i]) c.messages = NULL;
    }
    if (code < 0 && !c.messages) {
        cli_say("the conversation is too long for this client: /reset begins a new one");
        code = CLI_FAILED;
    }
    c.n_messages = (size_t)h->n_turns;
    r.input_case = INFERD__V1__GENERATE_REQUEST__INPUT_CHAT;
    r.chat = &c;
    h->answer.bytes = 0;
    h->finished = false;
    if (code < 0)
        code = session_call(&h->s, METHOD_GENERATE, &r.base,
                            &inferd__v1__generate_response__descriptor, on_response, h);
    arena_reset(&a);
    if (h->answer.bytes > 0) putchar('\n');
    if (code == CLI_INTERRUPTED) fputs("(interrupted)\n", stderr);
    if (code == CLI_OK || (code == CLI_INTERRUPTED && h->answer.bytes > 0))
        push_turn(h, "assistant", h->answer.data ? h->answer.data : "", h->answer.bytes);
    else
        drop_turns(h, h->n_turns - 1); /* the question was not answered: as if not asked */
    if (h->finished && h->reason == INFERD__V1__FINISH_REASON__FINISH_REASON_CONTEXT_FULL)
        fputs("(the context is full: /reset begins a new conversation)\n", stderr);
    if (h->o.usage && h->finished) output_usage(&h->usage, (int)h->reason);
    return code;
}

static void print_commands(void) {
    fputs("/reset          forget the conversation\n"
          "/system TEXT    begin anew with this system message (none: without one)\n"
          "/quit           end (also Ctrl-D)\n"
          "Ctrl-C stops an answer.\n",
          stderr);
}

/* A line that begins with '/'. False: end. */
static bool obey(chat *h, const char *line) {
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return false;
    if (strcmp(line, "/reset") == 0) {
        drop_turns(h, n_system(h));
        fputs("(new conversation)\n", stderr);
    } else if (strcmp(line, "/system") == 0 || strncmp(line, "/system ", 8) == 0) {
        set_system(h, line[7] ? line + 8 : "");
        fputs("(new conversation)\n", stderr);
    } else {
        if (strcmp(line, "/help") != 0) fputs("no such command; there are:\n", stderr);
        print_commands();
    }
    return true;
}

static const char *prompt_text(EditLine *e) {
    (void)e;
    return "> ";
}

/* Reads lines with editing and history on a terminal, plainly from a pipe. */
typedef struct line_reader {
    EditLine *edit; /* NULL: a pipe */
    History *history;
    char *plain; /* owned, getline's */
    size_t capacity;
} line_reader;

static void reader_open(line_reader *r) {
    *r = (line_reader){0};
    if (!isatty(STDIN_FILENO)) return;
    HistEvent ev;
    r->edit = el_init("inferctl", stdin, stdout, stderr);
    r->history = history_init();
    if (!r->edit || !r->history) abort();
    (void)history(r->history, &ev, H_SETSIZE, HISTORY_LINES);
    (void)el_set(r->edit, EL_PROMPT, prompt_text);
    (void)el_set(r->edit, EL_EDITOR, "emacs");
    (void)el_set(r->edit, EL_HIST, history, r->history);
    (void)el_set(r->edit, EL_SIGNAL, 1); /* the terminal is put right before a signal ends us */
}

static void reader_close(line_reader *r) {
    if (r->history) history_end(r->history);
    if (r->edit) el_end(r->edit);
    free(r->plain);
}

/* The next line without its line break, borrowed until the next call; NULL at the end. */
static char *reader_next(line_reader *r, size_t *bytes) {
    if (!r->edit) {
        cli_let_interrupt(true);
        const ssize_t n = getline(&r->plain, &r->capacity, stdin);
        cli_let_interrupt(false);
        if (n < 0) return NULL;
        *bytes = (size_t)n;
    } else {
        int n = 0;
        cli_let_interrupt(true);
        const char *line = el_gets(r->edit, &n);
        cli_let_interrupt(false);
        if (!line || n <= 0) return NULL;
        HistEvent ev;
        if (n > 1) (void)history(r->history, &ev, H_ENTER, line);
        free(r->plain);
        r->plain = malloc((size_t)n + 1);
        if (!r->plain) abort();
        memcpy(r->plain, line, (size_t)n + 1);
        *bytes = (size_t)n;
    }
    while (*bytes > 0 && (r->plain[*bytes - 1] == '\n' || r->plain[*bytes - 1] == '\r'))
        r->plain[--*bytes] = '\0';
    return r->plain;
}

/* Greets with what is served. Returns -1 or the exit code of the failed call. */
static int greet(chat *h) {
    Inferd__V1__ModelInfoRequest ask_info = INFERD__V1__MODEL_INFO_REQUEST__INIT;
    ProtobufCMessage *m = NULL;
    const int code = session_unary(&h->s, METHOD_MODEL_INFO, &ask_info.base,
                                   &inferd__v1__model_info_response__descriptor, &m);
    if (code != CLI_OK) return code;
    const Inferd__V1__ModelInfoResponse *info = (const void *)m;
    if (isatty(STDIN_FILENO)) {
        output_write_line(stderr, info->name.data, info->name.len);
        fprintf(stderr, " on %s, context %u tokens. /help shows commands, Ctrl-D ends.\n",
                h->s.c->rpc.server, info->context_length);
    }
    protobuf_c_message_free_unpacked(m, NULL);
    return -1;
}

static int talk(chat *h) {
    int code = greet(h);
    if (code >= 0) return code;
    line_reader r;
    reader_open(&r);
    code = CLI_OK;
    size_t bytes;
    for (char *line; (line = reader_next(&r, &bytes)) != NULL;) {
        if (bytes == 0) continue;
        if (line[0] == '/') {
            if (!obey(h, line)) break;
            continue;
        }
        if (h->n_turns + 3 > TURNS_MAX) {
            drop_turns(h, n_system(h));
            fputs("(too many turns: a new conversation begins)\n", stderr);
        }
        code = ask(h, line, bytes);
        if (code == CLI_UNREACHABLE || output_lost()) break;
        if (code == CLI_INTERRUPTED && !r.edit) break; /* a script's Ctrl-C means all of it */
    }
    reader_close(&r);
    return code;
}

static int chat_run(cli *c, int argc, char **argv) {
    chat *h = calloc(1, sizeof *h);
    if (!h) abort();
    flag flags[SAMPLING_FLAGS + 1];
    int n = sampling_flags(&h->o, flags);
    flags[n++] = (flag){"--system", FLAG_TEXT, &h->o.input.system, "TEXT", "system message"};
    int code = cli_parse(c, flags, n, argc, argv);
    if (code < 0 && c->n_args > 0)
        code = cli_usage_error(c, "chat takes no text: type it at the prompt");
    if (code < 0 && c->json) code = cli_usage_error(c, "chat has no --json: use generate --chat");
    if (code < 0) {
        h->terminal = isatty(STDOUT_FILENO);
        if (h->o.input.system) set_system(h, h->o.input.system);
        code = session_open(&h->s, c);
        if (code < 0) code = talk(h);
        session_close(&h->s);
    }
    drop_turns(h, 0);
    output_deinit(&h->answer);
    free(h);
    return code;
}

const command command_chat = {
    .name = "chat",
    .args = "[flags]",
    .summary = "Talks with the model; answers are streamed, the conversation is kept.",
    .details = "At the prompt: /reset, /system TEXT, /quit. Lines may also be piped in.",
    .examples = "  inferctl chat\n"
                "  inferctl chat --system \"You are terse.\" --temperature 0.7\n"
                "  inferctl --server unix:/run/inferd.sock chat --usage\n",
    .run = chat_run,
};
