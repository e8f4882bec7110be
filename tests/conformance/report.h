/* What the suite found: one row a measured quantity, printed as a table, as JSON, as Markdown. */
#ifndef INFERD_TESTS_CONFORMANCE_REPORT_H
#define INFERD_TESTS_CONFORMANCE_REPORT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct report report;

report *report_open(bool quiet); /* quiet: passed rows are not printed */
void report_close(report *r);

/* A quantity that must not exceed limit. NaN fails. note: printf-style, may be "". */
void report_measure(report *r, const char *suite, const char *name, const char *what, double worst,
                    double limit, const char *note, ...) __attribute__((format(printf, 7, 8)));
/* A case that did not get as far as a number. */
void report_fail(report *r, const char *suite, const char *name, const char *why, ...)
    __attribute__((format(printf, 4, 5)));
void report_skip(report *r, const char *suite, const char *name, const char *why, ...)
    __attribute__((format(printf, 4, 5)));

/* "N passed, N failed, N skipped"; returns the process's exit status: 1 if any failed, or if
 * nothing passed and nothing was skipped. */
int report_summary(const report *r);
/* E.g. "results.json" or "results.md", by the ending. False: could not be written. */
bool report_write(const report *r, const char *path, const char *title);
#endif
