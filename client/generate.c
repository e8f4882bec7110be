/* inferctl generate: one prompt, its tokens as they come. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/json.h"
#include "client/output.h"
#include "client/request.h"
#include "client/session.h"

enum { ARENA_BYTES = 256 << 20 };

typedef struct printer {
    const cli *c;
    output out[8]; /* by choice; the first is printed as it comes */
    unsigned n_choices;
    char last; /* last byte written to stdout, for the closing line break */
    bool finished;
    Inferd__V1__FinishReason reason;
    Inferd__V1__Usage usage;
} printer;

static void on_response(void *ctx, const ProtobufCMessage *m) {
    printer *p = ctx;
    const Inferd__V1__GenerateResponse *r = (const void *)m;
    if (r->finish) p->reason = r->finish->reason;
    if (r->usage) {
        p->usage = *r->usage;
        p->finished = true;
    }
    if (p->c->json) {
        json_print_line(json_of_message(m, false));
        return;
    }
    if (p->n_choices <= 1) {
        output_write_terminal(stdout, r->text.data, r->text.len, isatty(STDOUT_FILENO));
        if (r->text.len > 0) p->last = (char)r->text.data[r->text.len - 1];
        (void)fflush(stdout);
    } else if (r->index < 8) {
        output_append(&p->out[r->index], r->text.data, r->text.len);
    }
}

static void print_choices(printer *p) {
    for (unsigned i = 0; i < p->n_choices && i < 8; i++) {
        printf("[%u] ", i);
        output_write_terminal(stdout, p->out[i].data, p->out[i].bytes, isatty(STDOUT_FILENO));
        putchar('\n');
    }
}

static int generate_run(cli *c, int argc, char **argv) {
    generate_options o = {0};
    flag flags[GENERATE_FLAGS];
    const int n = generate_flags(&o, flags);
    int code = cli_parse(c, flags, n, argc, argv);
    if (code >= 0) return code;
    arena a;
    arena_init(&a, ARENA_BYTES);
    Inferd__V1__GenerateRequest r;
    code = request_build_generate(c, &o, &a, &r);
    session s = {0};
    if (code < 0) code = session_open(&s, c);
    printer p = {.c = c, .n_choices = o.choices, .last = '\n'};
    if (code < 0)
        code = session_call(&s, METHOD_GENERATE, &r.base,
                            &inferd__v1__generate_response__descriptor, on_response, &p);
    if (!c->json && o.choices > 1)
        print_choices(&p);
    else if (p.last != '\n')
        putchar('\n');
    (void)fflush(stdout);
    if (code == CLI_OK && !p.finished) {
        cli_say("the stream ended without its last message");
        code = CLI_FAILED;
    }
    if (o.usage && p.finished) output_usage(&p.usage, (int)p.reason);
    for (int i = 0; i < 8; i++) output_deinit(&p.out[i]);
    session_close(&s);
    arena_reset(&a);
    return code;
}

const command command_generate = {
    .name = "generate",
    .args = "[flags] [TEXT | -]",
    .summary = "Continues a text or answers a chat; the output is streamed.",
    .details = "Without TEXT, or with -, the text is read from standard input. --json prints one "
               "JSON object a\nmessage, with the field names of the API. Ctrl-C cancels the call.",
    .examples =
        "  inferctl generate --chat \"What is the capital of France?\"\n"
        "  inferctl generate --max-tokens 32 --temperature 0.8 --seed 7 \"Once upon a time\"\n"
        "  inferctl generate --chat --system \"Answer in French.\" --usage < question.txt\n"
        "  inferctl generate --messages chat.json --stop \"\\n\\n\" --json | jq -j .text\n"
        "  inferctl --wait 60 generate --token-ids 1,2,3 --ignore-eos --max-tokens 8 --json\n",
    .run = generate_run,
};
