/* The table as people read it: YAML with its docs, Markdown, help. */
#include <string.h>

#include "config/table.h"

enum { LINE_COLUMNS = 98 };

/* Words of text, each line led by indent and "# ". */
static void print_comment(FILE *out, int indent, const char *text) {
    int column = 0;
    while (*text) {
        const int len = (int)strcspn(text, " ");
        if (column == 0 || column + 1 + len > LINE_COLUMNS) {
            column = fprintf(out, "%s%*s#", column ? "\n" : "", indent, "");
        }
        column += fprintf(out, " %.*s", len, text);
        text += len + (text[len] == ' ');
    }
    fputc('\n', out);
}

/* A double-quoted YAML scalar. The loader admits printable UTF-8 only. */
static void print_quoted(FILE *out, const char *text) {
    fputc('"', out);
    for (const char *p = text; *p; p++) {
        if (*p == '"' || *p == '\\') fputc('\\', out);
        fputc(*p, out);
    }
    fputc('"', out);
}

static bool is_string(const config_key *k) {
    return k->kind <= KEY_SHA256;
}

/* Opens the sections in which `name` lies and `previous` does not; returns the depth. */
static int print_sections(FILE *out, const char *name, const char *previous) {
    int depth = 0;
    const char *start = name;
    for (const char *dot; (dot = strchr(start, '.')) != NULL; start = dot + 1, depth++) {
        const size_t upto = (size_t)(dot - name) + 1;
        if (previous && strncmp(previous, name, upto) == 0) continue;
        fprintf(out, "%s%*s%.*s:\n", depth == 0 && previous ? "\n" : "", 2 * depth, "",
                (int)(dot - start), start);
    }
    return depth;
}

void config_print(const config *c, FILE *out) {
    int n;
    const config_key *keys = config_keys(&n);
    fprintf(out,
            "# inferd configuration. A flag wins over the environment (INFERD_SECTION_KEY), the "
            "environment\n# over this file.\n");
    for (int i = 0; i < n; i++) {
        const config_key *k = &keys[i];
        const int depth = print_sections(out, k->name, i > 0 ? keys[i - 1].name : NULL);
        char range[CONFIG_REASON_MAX], doc[1024], value[CONFIG_TEXT_MAX];
        config_key_range(k, range);
        (void)snprintf(doc, sizeof doc, "%s%s%s%s", k->doc, *range ? " [" : "", range,
                       *range ? "]" : "");
        print_comment(out, 2 * depth, doc);
        config_key_text(k, c, value);
        fprintf(out, "%*s%s: ", 2 * depth, "", strrchr(k->name, '.') + 1);
        if (is_string(k))
            print_quoted(out, value);
        else
            fprintf(out, "%s", value);
        fputc('\n', out);
    }
}

void config_print_markdown(FILE *out) {
    int n;
    const config_key *keys = config_keys(&n);
    fprintf(out, "| key | default | values | meaning |\n|---|---|---|---|\n");
    for (int i = 0; i < n; i++) {
        char range[CONFIG_REASON_MAX];
        config_key_range(&keys[i], range);
        fprintf(out, "| `%s` | %s%s%s | %s | %s |\n", keys[i].name, *keys[i].initial ? "`" : "",
                keys[i].initial, *keys[i].initial ? "`" : "", range, keys[i].doc);
    }
}

void config_help(FILE *out) {
    fputs("inferd serves one GGUF language model over gRPC.\n"
          "\n"
          "usage: inferd --model FILE [flags]\n"
          "\n"
          "  --model FILE             the model, a GGUF file (model.path)\n"
          "  --config FILE            YAML; inferd --print-config writes one with every key\n"
          "  --listen ADDR            gRPC: host:port, port 0 picks one, or unix:PATH\n"
          "                           (server.listen, default 127.0.0.1:50051)\n"
          "  --admin ADDR|off         HTTP: /metrics /livez /readyz /statusz\n"
          "                           (admin.listen, default 127.0.0.1:9090)\n"
          "  --backend auto|cpu|cuda  (engine.backend)\n"
          "  --threads N              CPU compute threads, 0: all cores (engine.threads)\n"
          "  --set section.key=value  any key; may be repeated, the last one wins\n"
          "  --check-config           read everything, say whether it is good, and end\n"
          "  --print-config           write the configuration that would be used, and end\n"
          "  --version, --help\n"
          "\n"
          "A flag wins over the environment (INFERD_ENGINE_THREADS=4), the environment over the\n"
          "file, the file over the defaults.\n"
          "\n"
          "examples:\n"
          "  inferd --model SmolLM2-135M-Instruct.Q4_1.gguf\n"
          "  inferd --config inferd.yaml --set log.format=json\n"
          "  inferd --model model.gguf --listen unix:/run/inferd.sock --admin off\n"
          "\n"
          "When it serves it logs event=ready addr=ADDR; then: inferctl --server ADDR chat\n"
          "\n"
          "exit codes: 0 asked to stop, 2 bad usage or configuration, 3 model refused, 4 device\n"
          "missing or too little memory, 5 port or TLS, 6 device fault, 7 watchdog\n",
          out);
}
