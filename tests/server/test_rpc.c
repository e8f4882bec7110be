/* server/rpc.c: how many threads serve. The calls themselves: test_call.c. */
#include "server/rpc.h"
#include "tests/check_main.h"

START_TEST(threads_follow_cores) {
    static const struct {
        int wanted;
        long n_cores;
        int want;
    } cases[] = {
        {0, -1, 1}, {0, 1, 1},  {0, 2, 1},  {0, 3, 1}, {0, 4, 2},
        {0, 8, 4},  {0, 96, 4}, {1, 96, 1}, {3, 2, 3}, {RPC_THREADS_MAX, 1, RPC_THREADS_MAX}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_msg(rpc_threads_of(cases[i].wanted, cases[i].n_cores) == cases[i].want,
                      "%d wanted, %ld cores", cases[i].wanted, cases[i].n_cores);
}
END_TEST

int main(void) {
    TCase *t = tcase_create("all");
    tcase_add_test(t, threads_follow_cores);
    return check_run("rpc", t);
}
