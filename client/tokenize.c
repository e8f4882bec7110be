/* inferctl tokenize, detokenize. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/json.h"
#include "client/output.h"
#include "client/request.h"
#include "client/session.h"

enum { ARENA_BYTES = 256 << 20 };

static void print_pieces(const Inferd__V1__TokenizeResponse *r) {
    for (size_t i = 0; i < r->n_token_ids; i++) {
        printf("%8u", r->token_ids[i]);
        if (i < r->n_pieces) {
            const Inferd__V1__Piece *p = r->pieces[i];
            printf("  %6u..%-6u  ", p->start, p->end);
            json_t *text = json_of_text(p->bytes.data, p->bytes.len);
            (void)json_dumpf(text, stdout, JSON_ENCODE_ANY);
            json_decref(text);
        }
        putchar('\n');
    }
}

static void print_ids(const uint32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) printf("%s%u", i ? "," : "", ids[i]);
    putchar('\n');
}

static int build(const cli *c, const input_options *in, arena *a, Inferd__V1__TokenizeRequest *r) {
    if (in->chat || in->system || in->messages.n > 0 || in->messages_file) {
        r->input_case = INFERD__V1__TOKENIZE_REQUEST__INPUT_CHAT;
        return request_build_chat(c, in, a, &r->chat);
    }
    if (in->tools_file || in->no_generation_prompt)
        return cli_usage_error(c, "--tools and --no-generation-prompt need a chat: add --chat");
    size_t bytes;
    char *text = cli_read_input(c, 0, &bytes);
    if (!text) return CLI_USAGE;
    r->input_case = INFERD__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    r->text = (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)arena_strndup(a, text, bytes)};
    free(text);
    return r->text.data ? -1 : CLI_FAILED;
}

static int tokenize_run(cli *c, int argc, char **argv) {
    input_options in = {0};
    bool add_special = false, pieces = false;
    const char *model = NULL;
    flag flags[INPUT_FLAGS + 3];
    int n = input_flags(&in, flags);
    flags[n++] = (flag){"--add-special", FLAG_BOOL, &add_special, NULL, "BOS as the model asks"};
    flags[n++] = (flag){"--pieces", FLAG_BOOL, &pieces, NULL, "each token's bytes and place"};
    flags[n++] = (flag){"--model", FLAG_TEXT, &model, "NAME", "the served name, if it must be it"};
    int code = cli_parse(c, flags, n, argc, argv);
    if (code >= 0) return code;
    if (c->n_args > 1) return cli_usage_error(c, "one text is expected: put it in quotes");
    arena a;
    arena_init(&a, ARENA_BYTES);
    Inferd__V1__TokenizeRequest r = INFERD__V1__TOKENIZE_REQUEST__INIT;
    r.model = request_text(model);
    r.add_special = add_special;
    r.pieces = pieces;
    r.plain = in.plain;
    code = build(c, &in, &a, &r);
    session s = {0};
    if (code < 0) code = session_open(&s, c);
    ProtobufCMessage *m = NULL;
    if (code < 0)
        code = session_unary(&s, METHOD_TOKENIZE, &r.base,
                             &inferd__v1__tokenize_response__descriptor, &m);
    if (m) {
        const Inferd__V1__TokenizeResponse *t = (const void *)m;
        if (c->json)
            json_print_line(json_of_message(m, true));
        else if (pieces)
            print_pieces(t);
        else
            print_ids(t->token_ids, t->n_token_ids);
        protobuf_c_message_free_unpacked(m, NULL);
    }
    session_close(&s);
    arena_reset(&a);
    return code;
}

static int detokenize_run(cli *c, int argc, char **argv) {
    bool keep_special = false;
    const char *model = NULL;
    const flag flags[] = {
        {"--keep-special", FLAG_BOOL, &keep_special, NULL, "special tokens are in the text"},
        {"--model", FLAG_TEXT, &model, "NAME", "the served name, if it must be it"},
    };
    int code = cli_parse(c, flags, 2, argc, argv);
    if (code >= 0) return code;
    if (c->n_args > 1) return cli_usage_error(c, "one list of ids is expected: 1,2,3");
    size_t bytes;
    char *text = cli_read_input(c, 0, &bytes);
    if (!text) return CLI_USAGE;
    arena a;
    arena_init(&a, ARENA_BYTES);
    Inferd__V1__DetokenizeRequest r = INFERD__V1__DETOKENIZE_REQUEST__INIT;
    r.model = request_text(model);
    r.keep_special = keep_special;
    code = request_parse_ids(c, text, &a, &r.token_ids, &r.n_token_ids);
    session s = {0};
    if (code < 0) code = session_open(&s, c);
    ProtobufCMessage *m = NULL;
    if (code < 0)
        code = session_unary(&s, METHOD_DETOKENIZE, &r.base,
                             &inferd__v1__detokenize_response__descriptor, &m);
    if (m) {
        const Inferd__V1__DetokenizeResponse *t = (const void *)m;
        if (c->json) {
            json_print_line(json_of_message(m, true));
        } else {
            const bool terminal = isatty(STDOUT_FILENO);
            output_write_terminal(stdout, t->text.data, t->text.len, terminal);
            if (terminal) putchar('\n');
        }
        protobuf_c_message_free_unpacked(m, NULL);
    }
    session_close(&s);
    arena_reset(&a);
    free(text);
    return code;
}

const command command_tokenize = {
    .name = "tokenize",
    .args = "[flags] [TEXT | -]",
    .summary = "Text or a chat to token ids.",
    .examples =
        "  inferctl tokenize \"Hello world\"\n"
        "  inferctl tokenize --pieces \"Grüße\"\n"
        "  inferctl tokenize --chat --json \"Hi\" | jq -r .text\n"
        "  wc -m < book.txt; inferctl tokenize --json < book.txt | jq '.token_ids|length'\n",
    .run = tokenize_run,
};
const command command_detokenize = {
    .name = "detokenize",
    .args = "[flags] [IDS | -]",
    .summary = "Token ids to text, byte for byte.",
    .examples = "  inferctl detokenize 19556,905\n"
                "  inferctl tokenize \"round trip\" | inferctl detokenize\n",
    .run = detokenize_run,
};
