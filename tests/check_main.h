/* The end of every Check program: runs its suite, prints the result, and says whether one failed.
 */
#ifndef INFERD_TESTS_CHECK_MAIN_H
#define INFERD_TESTS_CHECK_MAIN_H

#include <check.h>

/* A test that takes longer hangs. Check's own limit, 4 s, is wall time: a sanitizer on a crowded
 * machine passes it without any fault. */
enum { TEST_LIMIT_S = 600 };

/* 0, or 1 when a test failed. CK_FORK_GETENV: a process a test, unless CK_FORK=no. */
static inline int check_run_suite(Suite *s, enum fork_status fork_status) {
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, fork_status);
    srunner_run_all(r, CK_ENV); /* CK_VERBOSITY; normal when unset */
    const int n_failed = srunner_ntests_failed(r);
    srunner_free(r);
    return n_failed != 0;
}

/* A suite of one case, which it is named after by the caller. */
static inline int check_run(const char *name, TCase *tc) {
    Suite *s = suite_create(name);
    tcase_set_timeout(tc, TEST_LIMIT_S);
    suite_add_tcase(s, tc);
    return check_run_suite(s, CK_FORK_GETENV);
}
#endif
