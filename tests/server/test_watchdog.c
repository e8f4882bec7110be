/* The watchdog in a process of its own each time: it ends processes. How old the fake engine's
 * heartbeat is says the test, half an hour from every limit, so that the machine's speed decides
 * nothing; what is seen from outside is the exit code. How long it takes is measured by
 * tests/fleet/hang.py. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "server/watchdog.h"
#include "tests/check_main.h"
#include "tests/server/fake_engine.h"
#include "tests/server/loopback.h"
#include "tests/wait.h"

typedef struct rig {
    server *server;
    engine *engine;
    watchdog *watchdog;
} rig;

enum { NOT_READY_S = 3600, EXIT_S = 36000, HALF_HOUR_S = 1800, EXIT_NEVER = 98 };

/* What the child has to see before its end. */
static _Atomic bool seen_all;

/* The watchdog's way out, in place of the C library's: the last second of a process is as long as
 * its other threads need. */
void _exit(int code) {
    int64_t end_ns = 0;
    while (!atomic_load(&seen_all))
        if (!wait_more(&end_ns)) _Exit(EXIT_NEVER);
    _Exit(code);
}

static bool rig_open(rig *r) {
    const server_options o = {.listen = "127.0.0.1:0",
                              .rpc_threads = 1,
                              .max_streams = 16,
                              .max_message_bytes = LIMIT_MESSAGE_BYTES_DEFAULT,
                              .slow_reader_s = 3600,
                              .max_choices = 1};
    error err;
    log_init(LOG_ERROR, false);
    if (server_open(&o, &r->server, &err) != OK) return false;
    r->engine = fake_engine_open(server_on_step, r->server, 1000);
    const served_model m = fake_served_model(r->engine);
    return server_serve(r->server, &m) == OK &&
           watchdog_open(r->server, NOT_READY_S, EXIT_S, &r->watchdog, &err) == OK;
}

static void set_age(rig *r, int age_s) {
    atomic_store(&r->engine->heart_age_ns, age_s * NS_PER_S);
}

/* Until the watchdog has looked at the engine as it is now, and judged. */
static bool wait_judged(const rig *r) {
    const uint64_t n = atomic_load(&r->engine->n_looks) + 3;
    int64_t end_ns = 0;
    while (atomic_load(&r->engine->n_looks) < n)
        if (!wait_more(&end_ns)) return false;
    return true;
}

static bool wait_ready(const rig *r, bool want) {
    int64_t end_ns = 0;
    while (server_ready(r->server) != want)
        if (!wait_more(&end_ns)) return false;
    return true;
}

static void wait_for_the_end(void) {
    int64_t end_ns = 0;
    atomic_store(&seen_all, true);
    while (wait_more(&end_ns)) continue;
    _Exit(EXIT_NEVER);
}

static int exit_code_of(void (*body)(void)) {
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        body();
        _Exit(99);
    }
    int state = 0;
    ck_assert_int_eq(waitpid(child, &state, 0), child);
    return WIFEXITED(state) ? WEXITSTATUS(state) : -1;
}

/* Exit codes of the child: what went wrong before the watchdog could speak. */
static void body_hang(void) {
    rig r;
    if (!rig_open(&r) || !wait_ready(&r, true)) _Exit(50);
    set_age(&r, NOT_READY_S + HALF_HOUR_S);
    if (!wait_ready(&r, false) || server_live(r.server)) _Exit(53);
    if (strcmp(server_state_name(r.server), "stalled") != 0) _Exit(57);
    set_age(&r, 0); /* it moves again: so is the verdict */
    if (!wait_ready(&r, true)) _Exit(54);
    set_age(&r, EXIT_S - HALF_HOUR_S);
    if (!wait_judged(&r) || strcmp(server_state_name(r.server), "stalled") != 0) _Exit(58);
    set_age(&r, 0);
    if (!wait_ready(&r, true)) _Exit(59);
    /* A stream that runs when it hangs for good is told why. */
    grpc_channel *ch = loopback_channel(server_address(r.server));
    const uint8_t request[] = {3 << 3 | 2, 1, 'x'};
    loopback_call c;
    loopback_start(&c, ch, "/inferd.v1.Inference/Generate", request, sizeof request, NULL, NULL, 0);
    Inferd__V1__GenerateResponse *m;
    for (int i = 0; i < 20; i++) {
        m = loopback_read(&c, &inferd__v1__generate_response__descriptor);
        if (!m) _Exit(55);
        inferd__v1__generate_response__free_unpacked(m, NULL);
    }
    atomic_store(&r.engine->frozen, true);
    set_age(&r, EXIT_S + HALF_HOUR_S);
    while ((m = loopback_read(&c, &inferd__v1__generate_response__descriptor)))
        inferd__v1__generate_response__free_unpacked(m, NULL);
    if (loopback_status(&c) != GRPC_STATUS_UNAVAILABLE) _Exit(56);
    if (GRPC_SLICE_LENGTH(c.details) < 10 ||
        memcmp(GRPC_SLICE_START_PTR(c.details), "the engine", 10) != 0)
        _Exit(60);
    wait_for_the_end();
}

START_TEST(a_hung_engine_ends_the_process) {
    ck_assert_int_eq(exit_code_of(body_hang), EXIT_WATCHDOG);
}
END_TEST

/* Hung when it is told to end: hours before EXIT_S would be over. */
static void body_hurry(void) {
    rig r;
    if (!rig_open(&r)) _Exit(50);
    watchdog_hurry(r.watchdog);
    wait_for_the_end();
}

START_TEST(an_engine_that_does_not_end_is_not_waited_for) {
    const int64_t start = clock_now_ns();
    ck_assert_int_eq(exit_code_of(body_hurry), EXIT_WATCHDOG);
    ck_assert_int_ge(clock_now_ns() - start, 1900 * NS_PER_MS); /* its second, and the last words */
}
END_TEST

static void body_fault(void) {
    rig r;
    if (!rig_open(&r) || !wait_ready(&r, true)) _Exit(50);
    atomic_store(&r.engine->device_fault, true);
    if (!wait_ready(&r, false)) _Exit(51);
    wait_for_the_end();
}

START_TEST(a_device_fault_ends_the_process) {
    ck_assert_int_eq(exit_code_of(body_fault), EXIT_DEVICE_FAULT);
}
END_TEST

static void body_quiet(void) {
    rig r;
    if (!rig_open(&r)) _Exit(50);
    for (int i = 0; i < 5; i++) {
        set_age(&r, i % 2 ? NOT_READY_S - HALF_HOUR_S : 0);
        if (!wait_judged(&r) || !server_ready(r.server) || !server_live(r.server)) _Exit(51);
    }
    watchdog_close(r.watchdog);
    server_close(r.server);
    fake_engine_close(r.engine);
    _Exit(0);
}

START_TEST(a_quiet_engine_is_left_alone) {
    ck_assert_int_eq(exit_code_of(body_quiet), 0);
}
END_TEST

int main(void) {
    Suite *s = suite_create("watchdog");
    TCase *t = tcase_create("all");
    tcase_add_test(t, a_hung_engine_ends_the_process);
    tcase_add_test(t, an_engine_that_does_not_end_is_not_waited_for);
    tcase_add_test(t, a_device_fault_ends_the_process);
    tcase_add_test(t, a_quiet_engine_is_left_alone);
    suite_add_tcase(s, t);
    /* each test forks itself, before core has threads */
    return check_run_suite(s, CK_NOFORK);
}
