/* The watchdog in a process of its own each time: it ends processes. The engine is a fake that can
 * be frozen; what is seen from outside is the exit code, its time, and what a stream was told. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "server/watchdog.h"
#include "tests/check_main.h"
#include "tests/server/fake_engine.h"
#include "tests/server/loopback.h"

typedef struct rig {
    server *server;
    engine *engine;
    watchdog *watchdog;
} rig;

enum { NOT_READY_S = 1, EXIT_S = 3 };

static bool rig_open(rig *r) {
    const server_options o = {.listen = "127.0.0.1:0",
                              .rpc_threads = 1,
                              .max_streams = 16,
                              .max_message_bytes = LIMIT_MESSAGE_BYTES_DEFAULT,
                              .slow_reader_s = 30,
                              .max_choices = 1};
    error err;
    log_init(LOG_ERROR, false);
    if (server_open(&o, &r->server, &err) != OK) return false;
    r->engine = fake_engine_open(server_on_step, r->server, 1000);
    const served_model m = {.tokenizer = (const tokenizer *)r->engine,
                            .engine = r->engine,
                            .name = "fake",
                            .context_length = FAKE_CONTEXT,
                            .n_vocab = FAKE_VOCAB};
    return server_serve(r->server, &m) == OK &&
           watchdog_open(r->server, NOT_READY_S, EXIT_S, &r->watchdog, &err) == OK;
}

static void sleep_ms(int ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* Waits at most limit_ms for it to become what is wanted; the milliseconds it took, or -1. */
static int wait_ready(server *s, bool want, int limit_ms) {
    for (int ms = 0; ms <= limit_ms; ms += 10) {
        if (server_ready(s) == want) return ms;
        sleep_ms(10);
    }
    return -1;
}

static int exit_code_of(void (*body)(void), int *took_ms) {
    const int64_t start = clock_now_ns();
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        body();
        _exit(99);
    }
    int state = 0;
    ck_assert_int_eq(waitpid(child, &state, 0), child);
    *took_ms = (int)((clock_now_ns() - start) / NS_PER_MS);
    return WIFEXITED(state) ? WEXITSTATUS(state) : -1;
}

/* Exit codes of the child: what went wrong before the watchdog could speak. */
static void body_hang(void) {
    rig r;
    if (!rig_open(&r)) _exit(50);
    if (wait_ready(r.server, true, 100) < 0) _exit(51);
    sleep_ms(1500); /* an idle engine is a healthy one */
    if (!server_ready(r.server)) _exit(52);
    atomic_store(&r.engine->frozen, true);
    const int ms = wait_ready(r.server, false, 2000);
    if (ms < 800 || server_live(r.server)) _exit(53);
    if (strcmp(server_state_name(r.server), "stalled") != 0) _exit(57);
    atomic_store(&r.engine->frozen, false); /* it moves again: so is the verdict */
    if (wait_ready(r.server, true, 1000) < 0) _exit(54);
    /* A stream that runs when it hangs for good is told why. */
    grpc_channel *ch = loopback_channel(server_address(r.server));
    const uint8_t request[] = {3 << 3 | 2, 1, 'x'};
    loopback_call c;
    loopback_start(&c, ch, "/inferd.v1.Inference/Generate", request, sizeof request, NULL, NULL, 0);
    Inferd__V1__GenerateResponse *m;
    for (int i = 0; i < 20; i++) {
        m = loopback_read(&c, &inferd__v1__generate_response__descriptor);
        if (!m) _exit(55);
        inferd__v1__generate_response__free_unpacked(m, NULL);
    }
    atomic_store(&r.engine->frozen, true);
    while ((m = loopback_read(&c, &inferd__v1__generate_response__descriptor)))
        inferd__v1__generate_response__free_unpacked(m, NULL);
    if (loopback_status(&c) != GRPC_STATUS_UNAVAILABLE) _exit(56);
    sleep_ms(10000); /* the watchdog ends the process before */
}

START_TEST(a_hung_engine_ends_the_process) {
    int took_ms;
    ck_assert_int_eq(exit_code_of(body_hang, &took_ms), EXIT_WATCHDOG);
    ck_assert_int_lt(took_ms, 20000);
}
END_TEST

/* Hung when it is told to end: long before EXIT_S would be over. */
static void body_hurry(void) {
    rig r;
    if (!rig_open(&r)) _exit(50);
    watchdog_hurry(r.watchdog);
    sleep_ms(10000);
}

START_TEST(an_engine_that_does_not_end_is_not_waited_for) {
    int took_ms;
    ck_assert_int_eq(exit_code_of(body_hurry, &took_ms), EXIT_WATCHDOG);
    ck_assert_int_ge(took_ms, 1900); /* its second, and the last words */
    ck_assert_int_lt(took_ms, 8000);
}
END_TEST

static void body_fault(void) {
    rig r;
    if (!rig_open(&r)) _exit(50);
    atomic_store(&r.engine->device_fault, true);
    if (wait_ready(r.server, false, 1000) < 0) _exit(51);
    sleep_ms(10000);
}

START_TEST(a_device_fault_ends_the_process_within_2_s) {
    int took_ms;
    ck_assert_int_eq(exit_code_of(body_fault, &took_ms), EXIT_DEVICE_FAULT);
    ck_assert_int_lt(took_ms, 3000); /* start-up included */
}
END_TEST

static void body_quiet(void) {
    rig r;
    if (!rig_open(&r)) _exit(50);
    for (int i = 0; i < 40; i++) {
        if (!server_ready(r.server)) _exit(51);
        sleep_ms(50);
    }
    watchdog_close(r.watchdog);
    server_close(r.server);
    fake_engine_close(r.engine);
    _exit(0);
}

START_TEST(a_quiet_engine_is_left_alone) {
    int took_ms;
    ck_assert_int_eq(exit_code_of(body_quiet, &took_ms), 0);
}
END_TEST

int main(void) {
    Suite *s = suite_create("watchdog");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, a_hung_engine_ends_the_process);
    tcase_add_test(t, an_engine_that_does_not_end_is_not_waited_for);
    tcase_add_test(t, a_device_fault_ends_the_process_within_2_s);
    tcase_add_test(t, a_quiet_engine_is_left_alone);
    suite_add_tcase(s, t);
    /* each test forks itself, before core has threads */
    return check_run_suite(s, CK_NOFORK);
}
