/* Push-back and the queue's time, before and after something is measured. */
#include "server/backlog.h"

#include "tests/check_main.h"

START_TEST(a_fresh_server_does_not_send_callers_away) {
    /* Full from its first second on: whatever waits, it has seen no request end. */
    for (uint64_t waiting = 0; waiting <= 1000000; waiting = waiting * 10 + 1) {
        const backlog fresh = {.waiting = waiting};
        const backlog prefilled = {.waiting = waiting, .n_measured = 1, .mean_tokens = 64};
        const backlog busy = {.waiting = waiting, .tokens_per_s = 0.5};
        const backlog *const unknown[] = {&fresh, &prefilled, &busy};
        for (int i = 0; i < 3; i++) {
            ck_assert(!backlog_known(unknown[i]));
            ck_assert_int_eq(backlog_pushback_ms(unknown[i], 0), 800);
            ck_assert_int_eq(backlog_pushback_ms(unknown[i], 0.5), 1000);
            ck_assert_int_le(backlog_pushback_ms(unknown[i], 1), 1200);
        }
    }
}
END_TEST

START_TEST(measured_backlogs_are_divided_by_the_rate) {
    backlog b = {.waiting = 99, .n_measured = 40, .mean_tokens = 10, .tokens_per_s = 1000};
    ck_assert(backlog_known(&b));
    ck_assert_double_eq_tol(backlog_ms(&b), 990, 1e-6);
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), 500); /* half of the time of 100 */
    ck_assert_int_eq(backlog_pushback_ms(&b, 0), 400);
    b.tokens_per_s = 100;
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), 5000);
    b.waiting = 9;
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), 500);
    b.mean_tokens = 20;
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), 1000);
}
END_TEST

START_TEST(there_are_bounds) {
    backlog b = {.waiting = 0, .n_measured = 1, .mean_tokens = 1, .tokens_per_s = 1e6};
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), BACKLOG_PUSHBACK_MIN_MS);
    b.waiting = UINT32_MAX;
    b.mean_tokens = 1e6;
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), BACKLOG_PUSHBACK_MAX_MS);
    b = (backlog){.waiting = 1, .n_measured = 1, .mean_tokens = 4, .tokens_per_s = 0.001};
    ck_assert_int_eq(backlog_pushback_ms(&b, 0.5), 4000); /* as at one token a second */
}
END_TEST

int main(void) {
    TCase *t = tcase_create("backlog");
    tcase_add_test(t, a_fresh_server_does_not_send_callers_away);
    tcase_add_test(t, measured_backlogs_are_divided_by_the_rate);
    tcase_add_test(t, there_are_bounds);
    return check_run("backlog", t);
}
