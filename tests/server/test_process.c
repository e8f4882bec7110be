/* The process's own figures against what the test does to itself. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/process.h"
#include "tests/check_main.h"

START_TEST(figures_follow_the_process) {
    enum { N = 10, BYTES = 32 << 20 };
    process_usage a, b;
    int fd[N];
    process_read_usage(&a);
    for (int i = 0; i < N; i++) ck_assert_int_ge(fd[i] = open("/dev/null", O_RDONLY), 0);
    char *p = malloc(BYTES);
    ck_assert_ptr_nonnull(p);
    do { /* work until it is seen, and keep the pages from those who want memory */
        memset(p, 1, BYTES);
        process_read_usage(&b);
    } while (b.cpu_s < a.cpu_s + 0.02);
    ck_assert_uint_eq(b.fds_open, a.fds_open + N);
    ck_assert_uint_ge(b.resident_bytes, a.resident_bytes + BYTES / 2);
    ck_assert_uint_ge(b.virtual_bytes, b.resident_bytes);
    ck_assert_uint_ge(b.fds_max, b.fds_open);
    ck_assert(b.start_s == a.start_s);
    ck_assert_double_le(b.start_s, (double)time(NULL) + 2);
    ck_assert_double_ge(b.start_s, (double)time(NULL) - 600);
    for (int i = 0; i < N; i++) close(fd[i]);
    free(p);
}
END_TEST

START_TEST(metrics_are_well_formed) {
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    process_write_metrics(f);
    fclose(f);
    static const char *const NAMES[] = {
        "cpu_seconds_total",    "start_time_seconds", "resident_memory_bytes",
        "virtual_memory_bytes", "open_fds",           "max_fds"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        char row[64];
        snprintf(row, sizeof row, "\nprocess_%s ", NAMES[i]);
        const char *at = strstr(text, row);
        ck_assert_msg(at && strtod(at + strlen(row), NULL) > 0, "%s", NAMES[i]);
    }
    free(text);
}
END_TEST

int main(void) {
    TCase *t = tcase_create("all");
    tcase_add_test(t, figures_follow_the_process);
    tcase_add_test(t, metrics_are_well_formed);
    return check_run("process", t);
}
