#include "report.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum outcome { PASSED, FAILED, SKIPPED } outcome;

typedef struct row {
    char suite[16], name[64], what[32], note[256];
    double worst, limit;
    outcome outcome;
} row;

enum { COLUMNS_MAX = 16 };

struct report {
    row *rows;
    size_t n, capacity;
    size_t n_of[3];
    bool quiet;
};

static const char *const outcome_names[] = {"pass", "FAIL", "SKIP"};

report *report_open(bool quiet) {
    report *r = calloc(1, sizeof *r);
    if (r != NULL) r->quiet = quiet;
    return r;
}

void report_close(report *r) {
    if (r == NULL) return;
    free(r->rows);
    free(r);
}

static void print_row(const row *w) {
    if (w->outcome == PASSED || w->what[0] != '\0')
        printf("%-4s %-9s %-28s %-18s %12.4g <= %-10.4g %s\n", outcome_names[w->outcome], w->suite,
               w->name, w->what, w->worst, w->limit, w->note);
    else
        printf("%-4s %-9s %-28s %s\n", outcome_names[w->outcome], w->suite, w->name, w->note);
    fflush(stdout);
}

static row *add(report *r, outcome o, const char *suite, const char *name) {
    if (r->n == r->capacity) {
        r->capacity = r->capacity == 0 ? 256 : r->capacity * 2;
        row *rows = realloc(r->rows, r->capacity * sizeof *rows);
        if (rows == NULL) abort(); /* a test program: nothing to save */
        r->rows = rows;
    }
    row *w = &r->rows[r->n++];
    *w = (row){.outcome = o};
    (void)snprintf(w->suite, sizeof w->suite, "%s", suite);
    (void)snprintf(w->name, sizeof w->name, "%s", name);
    r->n_of[o]++;
    return w;
}

__attribute__((format(printf, 2, 0))) static void note(row *w, const char *format, va_list args) {
    (void)vsnprintf(w->note, sizeof w->note, format, args);
}

void report_measure(report *r, const char *suite, const char *name, const char *what, double worst,
                    double limit, const char *format, ...) {
    const bool pass = worst <= limit; /* false for NaN */
    row *w = add(r, pass ? PASSED : FAILED, suite, name);
    va_list args;
    (void)snprintf(w->what, sizeof w->what, "%s", what);
    w->worst = worst;
    w->limit = limit;
    va_start(args, format);
    note(w, format, args);
    va_end(args);
    if (!pass || !r->quiet) print_row(w);
}

void report_fail(report *r, const char *suite, const char *name, const char *why, ...) {
    row *w = add(r, FAILED, suite, name);
    va_list args;
    va_start(args, why);
    note(w, why, args);
    va_end(args);
    print_row(w);
}

void report_skip(report *r, const char *suite, const char *name, const char *why, ...) {
    row *w = add(r, SKIPPED, suite, name);
    va_list args;
    va_start(args, why);
    note(w, why, args);
    va_end(args);
    print_row(w);
}

int report_summary(const report *r) {
    printf("%zu passed, %zu failed, %zu skipped\n", r->n_of[PASSED], r->n_of[FAILED],
           r->n_of[SKIPPED]);
    return r->n_of[FAILED] > 0 || r->n == 0 ? 1 : 0;
}

static bool write_json(const report *r, FILE *f) {
    json_t *rows = json_array();
    for (size_t i = 0; i < r->n; i++) {
        const row *w = &r->rows[i];
        json_t *o =
            json_pack("{s:s, s:s, s:s, s:s, s:s}", "suite", w->suite, "case", w->name, "quantity",
                      w->what, "outcome", outcome_names[w->outcome], "note", w->note);
        if (w->what[0] != '\0' && isfinite(w->worst)) {
            json_object_set_new(o, "worst", json_real(w->worst));
            json_object_set_new(o, "limit", json_real(w->limit));
        }
        json_array_append_new(rows, o);
    }
    const bool ok = json_dumpf(rows, f, JSON_INDENT(1)) == 0;
    json_decref(rows);
    return ok;
}

static bool same_case(const row *a, const row *b) {
    return strcmp(a->suite, b->suite) == 0 && strcmp(a->name, b->name) == 0;
}

/* One past the last row of the suite that starts at row i. */
static size_t suite_end(const report *r, size_t i) {
    size_t end = i;
    while (end < r->n && strcmp(r->rows[end].suite, r->rows[i].suite) == 0) end++;
    return end;
}

/* The distinct quantities of rows [from, to), in order of appearance. */
static int columns_of(const report *r, size_t from, size_t to, const char *column[COLUMNS_MAX]) {
    int n = 0;
    for (size_t i = from; i < to; i++) {
        int k = 0;
        if (r->rows[i].what[0] == '\0') continue;
        while (k < n && strcmp(column[k], r->rows[i].what) != 0) k++;
        if (k == n && n < COLUMNS_MAX) column[n++] = r->rows[i].what;
    }
    return n;
}

static void write_cell(FILE *f, const row *w, double header_limit) {
    if (w == NULL) {
        fprintf(f, "| ");
        return;
    }
    fprintf(f, "| %s", w->outcome == FAILED ? "**FAIL** " : "");
    if (w->limit > header_limit || w->limit < header_limit)
        fprintf(f, "%.2g (<= %.2g)", w->worst, w->limit);
    else if (w->limit > 0)
        fprintf(f, "%.2g", w->worst);
    else /* a count of wrong ones: the note says of how many */
        fprintf(f, "%.0f: %s", w->worst, w->note);
}

/* One table a suite: a line a case, a column a quantity. */
static void write_suite(const report *r, FILE *f, size_t from, size_t to) {
    const char *column[COLUMNS_MAX];
    double limit[COLUMNS_MAX];
    const int n = columns_of(r, from, to, column);
    fprintf(f, "\n**%s**\n\n| case | |", r->rows[from].suite);
    for (int k = 0; k < n; k++) {
        const row *w = &r->rows[from];
        while (strcmp(w->what, column[k]) != 0) w++;
        limit[k] = w->limit;
        fprintf(f, " ");
        for (const char *c = column[k]; *c != '\0'; c++) fprintf(f, *c == '|' ? "\\|" : "%c", *c);
        if (w->limit > 0) fprintf(f, " (<= %.2g)", w->limit);
        fprintf(f, " |");
    }
    fprintf(f, "\n|---|---|");
    for (int k = 0; k < n; k++) fprintf(f, "---|");
    for (size_t i = from, end; i < to; i = end) {
        const row *w = &r->rows[i];
        for (end = i; end < to && same_case(w, &r->rows[end]);) end++;
        fprintf(f, "\n| %s | %s ", w->name, w->limit > 0 || w->what[0] == '\0' ? w->note : "");
        for (int k = 0; k < n; k++) {
            const row *cell = NULL;
            for (size_t c = i; c < end; c++)
                if (strcmp(r->rows[c].what, column[k]) == 0) cell = &r->rows[c];
            write_cell(f, cell, limit[k]);
            fprintf(f, " ");
        }
        fprintf(f, "|");
    }
    fprintf(f, "\n");
}

static bool is_model_row(const row *w, const char *what) {
    return strcmp(w->suite, "models") == 0 && strcmp(w->what, what) == 0;
}

static const row *row_of(const report *r, const row *of_case, const char *what) {
    for (size_t i = 0; i < r->n; i++)
        if (same_case(&r->rows[i], of_case) && strcmp(r->rows[i].what, what) == 0)
            return &r->rows[i];
    return NULL;
}

/* All cases of one family and weight type, e.g. "llama, Q4_0". */
static void write_kind(const report *r, FILE *f, const char *kind) {
    int n_cases = 0;
    long n = 0, n_wrong = 0;
    double logit = 0, logprob = 0;
    for (size_t i = 0; i < r->n; i++) {
        const row *w = &r->rows[i];
        if (!is_model_row(w, "max |d logit|") || strcmp(w->note, kind) != 0) continue;
        const row *p = row_of(r, w, "|d logprob|"), *greedy = row_of(r, w, "greedy wrong");
        n_cases++;
        if (!(w->worst <= logit)) logit = w->worst;
        if (p != NULL && !(p->worst <= logprob)) logprob = p->worst;
        if (greedy == NULL) continue;
        n += strtol(greedy->note, NULL, 10); /* "96 compared, ..." */
        n_wrong += (long)greedy->worst;
    }
    fprintf(f, "| %s | %d | %.2g | %ld of %ld | %.2g |\n", kind, n_cases, logit, n - n_wrong, n,
            logprob);
}

/* The short answer: a line a family and weight type. */
static void write_matrix(const report *r, FILE *f) {
    bool started = false;
    for (size_t i = 0; i < r->n; i++) {
        const row *w = &r->rows[i];
        bool seen = !is_model_row(w, "max |d logit|");
        for (size_t k = 0; k < i && !seen; k++)
            seen = is_model_row(&r->rows[k], w->what) && strcmp(r->rows[k].note, w->note) == 0;
        if (seen) continue;
        if (!started)
            fprintf(f, "\n**by family and weight type** (perplexity cannot differ by more than the "
                       "factor e to the worst \\|d logprob\\|)\n\n| family, type | models | "
                       "worst \\|d logit\\| | greedy agreement | worst \\|d logprob\\| |\n"
                       "|---|---|---|---|---|\n");
        started = true;
        write_kind(r, f, w->note);
    }
}

static void write_markdown(const report *r, FILE *f, const char *title) {
    fprintf(
        f, "### %s\n\n%zu passed, %zu failed, %zu skipped; each number is the worst of its case.\n",
        title, r->n_of[PASSED], r->n_of[FAILED], r->n_of[SKIPPED]);
    write_matrix(r, f);
    for (size_t i = 0, end; i < r->n; i = end) {
        end = suite_end(r, i);
        write_suite(r, f, i, end);
    }
}

bool report_write(const report *r, const char *path, const char *title) {
    const size_t len = strlen(path);
    bool ok = true;
    FILE *f = fopen(path, "w");
    if (f == NULL) return false;
    if (len > 3 && strcmp(path + len - 3, ".md") == 0)
        write_markdown(r, f, title);
    else
        ok = write_json(r, f);
    return (fclose(f) == 0) && ok;
}
