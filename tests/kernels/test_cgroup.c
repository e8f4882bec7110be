/* Limits of cgroups, read from trees of files as the kernel shows them. */
#define _DEFAULT_SOURCE /* mkdtemp */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "kernels/cpu/cgroup.h"
#include "tests/check_main.h"

#define MIB (UINT64_C(1) << 20)

static char mount[64];

static void make_tree(void) {
    (void)snprintf(mount, sizeof mount, "/tmp/inferd-cgroup-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(mount));
}

static void remove_tree(void) {
    static const char *const names[] = {"memory.max", "memory.current", "memory.stat", "cpu.max"};
    static const char *const folders[] = {"/a/b", "/a", ""};
    char path[256];
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 4; k++) {
            (void)snprintf(path, sizeof path, "%s%s/%s", mount, folders[i], names[k]);
            (void)unlink(path);
        }
        (void)snprintf(path, sizeof path, "%s%s", mount, folders[i]);
        (void)rmdir(path);
    }
}

BASE_PRINTF(2, 3) static void put(const char *file, const char *fmt, ...) {
    char path[256];
    (void)snprintf(path, sizeof path, "%s/a", mount);
    (void)mkdir(path, 0700);
    (void)snprintf(path, sizeof path, "%s/a/b", mount);
    (void)mkdir(path, 0700);
    (void)snprintf(path, sizeof path, "%s%s", mount, file);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    va_list args;
    va_start(args, fmt);
    (void)vfprintf(f, fmt, args);
    va_end(args);
    ck_assert_int_eq(fclose(f), 0);
}

static uint64_t total, available;
static void ask(const char *own) {
    total = 1000 * MIB;
    available = 900 * MIB;
    cgroup_limit_memory(mount, own, &total, &available);
}

START_TEST(no_limit_changes_nothing) {
    ask("/");
    ck_assert_uint_eq(total, 1000 * MIB);
    put("/a/memory.max", "max\n");
    put("/a/memory.current", "%llu\n", 800ull * MIB);
    ask("/a");
    ck_assert_uint_eq(available, 900 * MIB);
    ask("/gone/elsewhere");
    ck_assert_uint_eq(available, 900 * MIB);
    ck_assert_int_eq(cgroup_quota_cores(mount, "/a"), 0);
}
END_TEST

/* What fills a container that has just read its model: 300 of 310 MiB are pages of the file. */
START_TEST(pages_of_files_are_free) {
    put("/memory.max", "%llu\n", 400ull * MIB);
    put("/memory.current", "%llu\n", 310ull * MIB);
    ask("/");
    ck_assert_uint_eq(available, 90 * MIB);
    put("/memory.stat", "anon %llu\nfile %llu\ninactive_file %llu\nactive_file %llu\nslab 5\n",
        10ull * MIB, 300ull * MIB, 290ull * MIB, 10ull * MIB);
    ask("/");
    ck_assert_uint_eq(total, 400 * MIB);
    ck_assert_uint_eq(available, 390 * MIB);
    put("/memory.current", "%llu\n", 100ull * MIB); /* read at another moment than the pages */
    ask("/");
    ck_assert_uint_eq(available, 400 * MIB);
    put("/memory.current", "%llu\n", 900ull * MIB); /* above the limit */
    ask("/");
    ck_assert_uint_eq(available, 0);
}
END_TEST

/* A service's folder lies below the mount, and its slice may have less left than the service. */
START_TEST(limits_of_every_level_count) {
    put("/a/b/memory.max", "%llu\n", 500ull * MIB);
    put("/a/b/memory.current", "%llu\n", 100ull * MIB);
    put("/a/memory.max", "%llu\n", 600ull * MIB);
    put("/a/memory.current", "%llu\n", 550ull * MIB);
    ask("/a/b");
    ck_assert_uint_eq(total, 500 * MIB);
    ck_assert_uint_eq(available, 50 * MIB);
    ask("/a/b/"); /* not how the kernel writes it, and no matter */
    ck_assert_uint_eq(available, 50 * MIB);
    ask("/");
    ck_assert_uint_eq(available, 900 * MIB);
}
END_TEST

START_TEST(quotas) {
    static const struct {
        const char *file, *text;
        int want;
    } puts_in_turn[] = {
        {"/a/b/cpu.max", "max 100000\n", 0},    {"/a/cpu.max", "250000 100000\n", 3},
        {"/a/b/cpu.max", "150000 100000\n", 2}, {"/a/b/cpu.max", "9223372036854775807 1\n", 3},
        {"/a/b/cpu.max", "rubbish", 3},         {"/a/b/cpu.max", "-1 0\n", 3}};
    for (size_t i = 0; i < sizeof puts_in_turn / sizeof *puts_in_turn; i++) {
        put(puts_in_turn[i].file, "%s", puts_in_turn[i].text);
        ck_assert_int_eq(cgroup_quota_cores(mount, "/a/b"), puts_in_turn[i].want);
    }
}
END_TEST

START_TEST(own_folder_is_absolute) {
    char own[CGROUP_PATH_MAX];
    cgroup_own(own);
    ck_assert_int_eq(own[0], '/');
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("cgroup");
    tcase_add_checked_fixture(tc, make_tree, remove_tree);
    tcase_add_test(tc, no_limit_changes_nothing);
    tcase_add_test(tc, pages_of_files_are_free);
    tcase_add_test(tc, limits_of_every_level_count);
    tcase_add_test(tc, quotas);
    tcase_add_test(tc, own_folder_is_absolute);
    return check_run("cgroup", tc);
}
