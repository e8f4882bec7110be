/* base/mapping: a file that is cut, rewritten or replaced under a reader. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/mapping.h"
#include "tests/check_main.h"

enum { PAGE = 4096, N_PAGES = 64, BYTES = PAGE * N_PAGES };

static char path[] = "/tmp/inferd-mapping-XXXXXX";

/* BYTES bytes, none of them zero. Check runs each test in a process of its own: each has its file.
 */
static void make_file(void) {
    static char bytes[BYTES];
    const int fd = mkstemp(path);
    memset(bytes, 'x', sizeof bytes);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bytes, sizeof bytes), BYTES);
    ck_assert_int_eq(close(fd), 0);
}

static mapping open_ok(void) {
    mapping m = {0};
    error err = {0};
    ck_assert_msg(mapping_open(path, &m, &err) == OK, "%s", err.text);
    ck_assert_uint_eq(m.bytes, BYTES);
    return m;
}

static size_t count_of(const mapping *m, char c) {
    size_t n = 0;
    for (size_t i = 0; i < m->bytes; i++) n += m->data[i] == c;
    return n;
}

static void expect_changed(const mapping *m, const char *why) {
    error err = {0};
    ck_assert_int_eq(mapping_check(m, path, &err), E_IO);
    ck_assert_msg(strstr(err.text, path) == err.text && strstr(err.text, why) != NULL, "%s",
                  err.text);
}

START_TEST(an_unchanged_file_is_read) {
    make_file();
    mapping m = open_ok();
    ck_assert_uint_eq(count_of(&m, 'x'), BYTES);
    ck_assert_int_eq(mapping_check(&m, path, NULL), OK);
    ck_assert_int_eq(unlink(path), 0); /* the open file stays whole */
    ck_assert_int_eq(mapping_check(&m, path, NULL), OK);
    mapping_close(&m);
    mapping_close(&m);
}
END_TEST

/* Cut to _i / 4 of itself, at a border of pages or within one. */
START_TEST(lost_pages_read_as_zeros) {
    const long left = _i % 2 ? BYTES / 4 * _i + 100 : BYTES / 4 * _i;
    const size_t whole = ((size_t)left + PAGE - 1) / PAGE * PAGE;
    make_file();
    mapping m = open_ok();
    ck_assert_int_eq(truncate(path, left), 0);
    ck_assert_uint_eq(count_of(&m, 'x'), (size_t)left);
    ck_assert_uint_eq(count_of(&m, 0), BYTES - (size_t)left);
    ck_assert(m.data[whole] == 0 && m.data[BYTES - 1] == 0);
    expect_changed(&m, "bytes while it was read");
    ck_assert_int_eq(truncate(path, BYTES), 0); /* as long as before: still not what it was */
    expect_changed(&m, "lost");
    mapping_close(&m);
    (void)unlink(path);
}
END_TEST

static void *read_all(void *arg) {
    size_t *n = malloc(sizeof *n);
    ck_assert_ptr_nonnull(n);
    *n = count_of(arg, 'x');
    return n;
}

START_TEST(any_thread_may_meet_the_end) {
    enum { N = 8 };
    pthread_t thread[N];
    make_file();
    mapping other = open_ok(), m = open_ok();
    ck_assert_int_eq(truncate(path, PAGE), 0);
    for (int i = 0; i < N; i++) ck_assert_int_eq(pthread_create(&thread[i], NULL, read_all, &m), 0);
    for (int i = 0; i < N; i++) {
        void *n = NULL;
        ck_assert_int_eq(pthread_join(thread[i], &n), 0);
        ck_assert_uint_eq(*(size_t *)n, PAGE);
        free(n);
    }
    ck_assert_uint_eq(count_of(&other, 'x'), PAGE); /* each mapping for itself */
    mapping_close(&other);
    mapping_close(&m);
    (void)unlink(path);
}
END_TEST

START_TEST(a_rewritten_file_is_noticed) {
    const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    make_file();
    mapping m = open_ok();
    ck_assert_int_eq(utimensat(AT_FDCWD, path, times, 0), 0); /* clocks may be coarse */
    expect_changed(&m, "written to");
    mapping_close(&m);
    (void)unlink(path);
}
END_TEST

/* Replacing by renaming, as one should: the mapped file is still the old one. */
START_TEST(a_replaced_file_is_the_old_one) {
    char old[sizeof path];
    make_file();
    mapping m = open_ok();
    memcpy(old, path, sizeof old);
    memcpy(path + sizeof path - 7, "XXXXXX", 6);
    make_file();
    ck_assert_int_eq(truncate(path, 1), 0);
    ck_assert_int_eq(rename(path, old), 0);
    ck_assert_uint_eq(count_of(&m, 'x'), BYTES);
    ck_assert_int_eq(mapping_check(&m, old, NULL), OK);
    mapping_close(&m);
    (void)unlink(old);
}
END_TEST

START_TEST(other_bus_errors_still_kill) { /* the case expects SIGBUS */
    make_file();
    mapping m = open_ok();
    (void)unlink(path);
    if (_i == 0) (void)raise(SIGBUS);
    const int fd = open("/proc/self/exe", O_RDONLY); /* a mapping that nobody guards */
    const off_t end = lseek(fd, 0, SEEK_END) / PAGE * PAGE;
    volatile const char *p = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, fd, end);
    ck_assert(p != MAP_FAILED);
    ck_assert_int_eq(p[3 * PAGE], 0);
    mapping_close(&m);
}
END_TEST

START_TEST(mappings_are_counted) {
    mapping *m = calloc(LIMIT_MAPPINGS + 1, sizeof *m);
    error err = {0};
    int n = 0;
    make_file();
    while (mapping_open(path, &m[n], &err) == OK) n++;
    ck_assert_msg(err.code == E_FULL || err.code == E_IO, "%s", err.text); /* or no descriptors */
    ck_assert_int_le(n, LIMIT_MAPPINGS);
    mapping_close(&m[0]);
    ck_assert_int_eq(mapping_open(path, &m[0], &err), OK); /* its place is free again */
    for (int i = 0; i < n; i++) mapping_close(&m[i]);
    (void)unlink(path);
    free(m);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("mapping");
    tcase_add_test(tc, an_unchanged_file_is_read);
    tcase_add_loop_test(tc, lost_pages_read_as_zeros, 0, 4);
    tcase_add_test(tc, any_thread_may_meet_the_end);
    tcase_add_test(tc, a_rewritten_file_is_noticed);
    tcase_add_test(tc, a_replaced_file_is_the_old_one);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they report it instead */
    tcase_add_loop_test_raise_signal(tc, other_bus_errors_still_kill, SIGBUS, 0, 2);
#else
    (void)other_bus_errors_still_kill;
#endif
    tcase_add_test(tc, mappings_are_counted);
    return check_run("mapping", tc);
}
