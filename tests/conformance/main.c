/* conformance: the tokens against references made independently of this project.
 *
 *   conformance [--goldens DIR] [--backend cpu|cuda] [--only SUITE[,SUITE]] [--case TEXT]
 *               [--model FILE] [--threads N] [--draws N] [--write FILE.json|FILE.md] [--quiet]
 *
 * DIR (default: $INFERD_GOLDENS, else the repository's sibling shared/goldens, else tests/data) has
 * the folders models, tokenizer, smollm2, sampling, chat; a missing one is skipped with a line that
 * says so. Exit status: 0 all passed, 1 something failed, 2 usage. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suites.h"

static const struct {
    const char *name;
    void (*run)(const suite_context *c);
} suites[] = {{"models", suite_models},
              {"tokenizer", suite_tokenizer},
              {"chat", suite_chat},
              {"sampling", suite_sampling},
              {"smollm2", suite_smollm2}};

enum { N_SUITES = sizeof suites / sizeof suites[0] };

typedef struct arguments {
    suite_context c;
    const char *write;
    bool only[N_SUITES];
    bool quiet;
} arguments;

static int usage(void) {
    fprintf(stderr, "usage: conformance [--goldens DIR] [--backend cpu|cuda] [--only "
                    "models,tokenizer,chat,sampling,smollm2]\n"
                    "                   [--case TEXT] [--model FILE] [--threads N] [--draws N] "
                    "[--write FILE.json|FILE.md] [--quiet]\n");
    return 2;
}

static bool parse_only(const char *list, bool only[N_SUITES]) {
    memset(only, 0, N_SUITES * sizeof *only);
    for (const char *p = list; *p != '\0';) {
        const size_t len = strcspn(p, ",");
        int found = -1;
        for (int i = 0; i < N_SUITES; i++)
            if (strlen(suites[i].name) == len && memcmp(p, suites[i].name, len) == 0) found = i;
        if (found < 0) return false;
        only[found] = true;
        p += len + (p[len] == ',');
    }
    return true;
}

static bool parse_int(const char *s, int lo, int hi, int *out) {
    char *end;
    const long v = strtol(s, &end, 10);
    if (end == s || *end != '\0' || v < lo || v > hi) return false;
    *out = (int)v;
    return true;
}

static bool parse(int argc, char **argv, arguments *a) {
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(flag, "--quiet") == 0) {
            a->quiet = true;
            continue;
        }
        if (value == NULL) return false;
        i++;
        if (strcmp(flag, "--goldens") == 0) {
            a->c.goldens = value;
        } else if (strcmp(flag, "--backend") == 0) {
            a->c.backend = value;
        } else if (strcmp(flag, "--only") == 0) {
            if (!parse_only(value, a->only)) return false;
        } else if (strcmp(flag, "--case") == 0) {
            a->c.filter = value;
        } else if (strcmp(flag, "--model") == 0) {
            a->c.model = value;
        } else if (strcmp(flag, "--threads") == 0) {
            if (!parse_int(value, 0, 1024, &a->c.threads)) return false;
        } else if (strcmp(flag, "--draws") == 0) {
            if (!parse_int(value, 0, 100000000, &a->c.n_draws)) return false;
        } else if (strcmp(flag, "--write") == 0) {
            a->write = value;
        } else {
            return false;
        }
    }
    return true;
}

/* The first of the places where golden data may lie. */
static const char *default_goldens(void) {
    const char *env = getenv("INFERD_GOLDENS");
    if (env != NULL && env[0] != '\0') return env;
    return files_exist(TEST_ROOT "/../shared/goldens/README.md") ? TEST_ROOT "/../shared/goldens"
                                                                 : TEST_ROOT "/tests/data";
}

static const char *default_model(char *out, size_t bytes) {
    const char *env = getenv("INFERD_MODEL"), *home = getenv("HOME");
    if (env != NULL && env[0] != '\0') return env;
    (void)snprintf(out, bytes, "%s/.cache/inferd/SmolLM2-135M-Instruct.Q4_1.gguf",
                   home != NULL ? home : "");
    return files_exist(out) ? out : NULL;
}

int main(int argc, char **argv) {
    char model[1024], title[256];
    arguments a = {.c = {.backend = "cpu", .n_draws = 100000}};
    for (int i = 0; i < N_SUITES; i++) a.only[i] = true;
    if (!parse(argc, argv, &a)) return usage();
    if (a.c.goldens == NULL) a.c.goldens = default_goldens();
    if (a.c.model == NULL) a.c.model = default_model(model, sizeof model);
    a.c.cpu = strcmp(a.c.backend, "cpu") == 0;
    a.c.report = report_open(a.quiet);
    if (a.c.report == NULL) return 1;
    for (int i = 0; i < N_SUITES; i++)
        if (a.only[i]) suites[i].run(&a.c);
    int rc = report_summary(a.c.report);
    (void)snprintf(title, sizeof title, "Conformance, backend %s", a.c.backend);
    if (a.write != NULL && !report_write(a.c.report, a.write, title)) {
        fprintf(stderr, "conformance: cannot write %s\n", a.write);
        rc = 1;
    }
    report_close(a.c.report);
    return rc;
}
