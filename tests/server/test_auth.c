/* Tokens: files good and bad, who is let in, and a tenant's limits on a clock of the test's own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "server/auth.h"
#include "tests/check_main.h"

static char path[] = "/tmp/inferd_test_auth_XXXXXX";

static void hash_of(const char *secret, char hex[65]) {
    uint8_t digest[32];
    ck_assert_int_eq(sha256_of(secret, strlen(secret), digest), OK);
    sha256_hex(digest, hex);
}

static void write_file(const char *text) {
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static void write_line(const char *secret, const char *rest) {
    char hex[65], line[400];
    hash_of(secret, hex);
    snprintf(line, sizeof line, "# comment\n\n  sha256:%s %s # tail\n", hex, rest);
    write_file(line);
}

static bool enters(auth *a, const char *header, identity *who) {
    return auth_check(a, header, header ? strlen(header) : 0, who);
}

START_TEST(without_a_file_all_are_welcome) {
    auth *a;
    error err;
    identity who;
    ck_assert_int_eq(auth_open(NULL, &a, &err), OK);
    ck_assert(!auth_required(a));
    ck_assert(enters(a, NULL, &who));
    ck_assert_uint_eq(who.id, 0);
    ck_assert_int_eq(auth_reload(a, &err), OK);
    auth_close(a);
}
END_TEST

START_TEST(only_the_token_enters) {
    auth *a;
    error err;
    identity who;
    write_line("s3cret", "team-a");
    ck_assert_msg(auth_open(path, &a, &err) == OK, "%s", err.text);
    ck_assert(enters(a, "Bearer s3cret", &who));
    ck_assert_str_eq(who.name, "team-a");
    ck_assert_uint_ne(who.id, 0);
    static const char *const WRONG[] = {NULL,
                                        "",
                                        "Bearer",
                                        "Bearer ",
                                        "Bearer s3cre",
                                        "Bearer s3crett",
                                        "bearer s3cret",
                                        "s3cret",
                                        "Basic s3cret",
                                        "Bearer  s3cret"};
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++)
        ck_assert_msg(!enters(a, WRONG[i], &who) && who.id == 0, "%zu", i);
    auth_close(a);
}
END_TEST

START_TEST(expired_tokens_stay_out) {
    auth *a;
    error err;
    identity who;
    write_line("old", "t expires=2001-09-09");
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    ck_assert(!enters(a, "Bearer old", &who));
    write_line("new", "t expires=2999-12-31");
    ck_assert_int_eq(auth_reload(a, &err), OK);
    ck_assert(enters(a, "Bearer new", &who));
    ck_assert(!enters(a, "Bearer old", &who));
    auth_close(a);
}
END_TEST

START_TEST(bad_files_are_refused_and_change_nothing) {
    static const char *const BAD[] = {
        "",
        "# nobody\n",
        "token team\n",
        "sha256:abcd team\n",
        "sha256:0000000000000000000000000000000000000000000000000000000000000000\n",
        "sha256:0000000000000000000000000000000000000000000000000000000000000000 a/b\n",
        "sha256:0000000000000000000000000000000000000000000000000000000000000000 a streams=x\n",
        "sha256:0000000000000000000000000000000000000000000000000000000000000000 a streams=-1\n",
        "sha256:0000000000000000000000000000000000000000000000000000000000000000 a stream=1\n",
        ("sha256:0000000000000000000000000000000000000000000000000000000000000000 a "
         "expires=2026-13-01\n")};
    auth *a, *b;
    error err;
    identity who;
    write_line("good", "t");
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        write_file(BAD[i]);
        ck_assert_msg(auth_reload(a, &err) == E_FORMAT, "%zu", i);
        ck_assert(enters(a, "Bearer good", &who));
        ck_assert_int_eq(auth_open(path, &b, &err), E_FORMAT);
    }
    unlink(path);
    ck_assert_int_eq(auth_reload(a, &err), E_NOTFOUND);
    ck_assert(enters(a, "Bearer good", &who));
    auth_close(a);
}
END_TEST

/* The first line is good and has other limits, the second is not: neither may take effect. */
START_TEST(a_bad_file_leaves_limits_alone) {
    auth *a;
    error err;
    identity who;
    int retry_ms;
    tenant_charge c[2];
    char hex[65], text[300];
    write_line("x", "t streams=1");
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    ck_assert(enters(a, "Bearer x", &who));
    hash_of("x", hex);
    snprintf(text, sizeof text, "sha256:%s t streams=2\nsha256:%s other\nbroken\n", hex, hex);
    write_file(text);
    ck_assert_int_eq(auth_reload(a, &err), E_FORMAT);
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c[1], &retry_ms), E_FULL);
    write_line("x", "t streams=2");
    ck_assert_int_eq(auth_reload(a, &err), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c[1], &retry_ms), OK);
    tenant_release(&c[0], 2);
    tenant_release(&c[1], 2);
    auth_close(a);
}
END_TEST

/* A tenant whose tokens are gone no longer makes the one that is left share the queue. */
START_TEST(shares_are_for_those_with_tokens) {
    auth *a;
    error err;
    identity who;
    int retry_ms;
    tenant_charge c[2];
    char hex[2][65], text[300];
    hash_of("x", hex[0]);
    hash_of("y", hex[1]);
    snprintf(text, sizeof text, "sha256:%s x\nsha256:%s y\n", hex[0], hex[1]);
    write_file(text);
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    auth_set_share(a, 1);
    ck_assert(enters(a, "Bearer x", &who));
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c[1], &retry_ms), E_FULL);
    write_line("x", "x");
    ck_assert_int_eq(auth_reload(a, &err), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c[1], &retry_ms), OK);
    auth_close(a);
}
END_TEST

START_TEST(limits_hold) {
    auth *a;
    error err;
    identity who;
    int retry_ms = 0;
    tenant_charge c[4];
    write_line("x", "t streams=2 waiting_tokens=100 tokens_per_minute=600");
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    ck_assert(enters(a, "Bearer x", &who));
    int64_t now = 1000 * NS_PER_S;
    ck_assert_int_eq(tenant_admit(who.tenant, 50, 50, now, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 51, 1, now, &c[1], &retry_ms), E_FULL); /* tokens */
    ck_assert_int_eq(tenant_admit(who.tenant, 50, 50, now, &c[1], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 0, 1, now, &c[2], &retry_ms), E_FULL); /* streams */
    tenant_release(&c[0], 100);
    tenant_release(&c[1], 60); /* 40 come back */
    tenant_release(&c[1], 0);  /* a charge ends once */
    ck_assert_int_eq(tenant_admit(who.tenant, 10, 430, now, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 10, 90, now, &c[1], &retry_ms), E_FULL); /* 0 left */
    ck_assert_int_ge(retry_ms, 9900);
    ck_assert_int_le(retry_ms, 10100);
    now += 10 * NS_PER_S; /* ten a second */
    ck_assert_int_eq(tenant_admit(who.tenant, 10, 90, now, &c[1], &retry_ms), OK);
    tenant_release(&c[0], 440);
    tenant_release(&c[1], 100);
    now += 600 * NS_PER_S; /* never more than a minute's worth */
    ck_assert_int_eq(tenant_admit(who.tenant, 10, 5000, now, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, now, &c[1], &retry_ms), E_FULL);
    tenant_release(&c[0], 5010);
    ck_assert_int_eq(tenant_admit(NULL, 1u << 30, 1u << 30, now, &c[0], &retry_ms), OK);
    auth_close(a);
}
END_TEST

/* A call whose last output is not taken counts until it is gone, but does not keep its client from
 * the next one; a prompt above the limit comes in when it is alone. */
START_TEST(ended_calls_and_long_prompts) {
    auth *a;
    error err;
    identity who;
    int retry_ms = 0;
    tenant_charge c[3];
    write_line("x", "t streams=1 waiting_tokens=100 tokens_per_minute=1000");
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    ck_assert(enters(a, "Bearer x", &who));
    tenant *t = who.tenant;
    ck_assert_int_eq(tenant_admit(t, 300, 700, 1, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(t, 1, 1, 1, &c[1], &retry_ms), E_FULL);
    tenant_end(&c[0], 310); /* and 690 come back at once */
    tenant_end(&c[0], 0);
    ck_assert_int_eq(tenant_admit(t, 10, 680, 1, &c[1], &retry_ms), OK);
    tenant_end(&c[1], 10);
    ck_assert_int_eq(tenant_admit(t, 1, 1, 1, &c[2], &retry_ms), E_FULL); /* two are not read */
    tenant_release(&c[0], 0);
    ck_assert_int_eq(tenant_admit(t, 1, 679, 1, &c[2], &retry_ms), OK);
    tenant_release(&c[1], 0);
    tenant_release(&c[2], 0);
    auth_close(a);
}
END_TEST

START_TEST(as_many_tokens_as_there_may_be) {
    auth *a;
    error err;
    for (int n = AUTH_TOKENS_MAX; n <= AUTH_TOKENS_MAX + 1; n++) {
        FILE *f = fopen(path, "w");
        ck_assert_ptr_nonnull(f);
        for (int i = 0; i < n; i++) fprintf(f, "sha256:%064x t\n", i + 1);
        fputs("# the end\n\n", f);
        fclose(f);
        if (n > AUTH_TOKENS_MAX) {
            ck_assert_int_eq(auth_open(path, &a, &err), E_FORMAT);
            ck_assert_msg(strstr(err.text, ":1025: too many tokens") != NULL, "%s", err.text);
        } else {
            ck_assert_msg(auth_open(path, &a, &err) == OK, "%s", err.text);
            auth_close(a);
        }
    }
}
END_TEST

/* A tenant's blocks: its own percentage, else the default, of the pool; 100 % is no bound. */
START_TEST(kv_shares) {
    static const struct {
        const char *line;
        int blocks, percent, want;
    } rows[] = {{"t", 0, 50, 0},
                {"t", 1000, 100, 0},
                {"t", 1000, 25, 250},
                {"t kv_percent=10", 1000, 100, 100},
                {"t kv_percent=10", 1000, 25, 100},
                {"t kv_percent=100", 1000, 25, 0},
                {"t kv_percent=1", 20, 100, 1},
                {"t", 2147483647, 99, 2126008810}};
    auth *a;
    error err;
    identity who;
    int retry_ms;
    tenant_charge c;
    write_line("x", "t");
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_line("x", rows[i].line);
        ck_assert_int_eq(auth_reload(a, &err), OK);
        auth_set_pool(a, rows[i].blocks, rows[i].percent);
        ck_assert(enters(a, "Bearer x", &who));
        ck_assert_int_eq(tenant_admit(who.tenant, 1, 1, 1, &c, &retry_ms), OK);
        ck_assert_int_eq(c.account_blocks_max, rows[i].want);
        ck_assert_int_eq(c.account, 1); /* the same for ever */
        tenant_release(&c, 2);
    }
    static const char *const bad[] = {"t kv_percent=0", "t kv_percent=101",
                                      "t kv_percent=", "t kv_percent=5%"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_line("x", bad[i]);
        ck_assert_int_eq(auth_reload(a, &err), E_FORMAT);
    }
    auth_close(a);
}
END_TEST

/* n lines, of tenants first, first + 1, ...; the token is the same for all. */
static void write_tenants(int first, int n) {
    char hex[65];
    hash_of("x", hex);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    for (int i = first; i < first + n; i++) fprintf(f, "sha256:%s t%d\n", hex, i);
    ck_assert_int_eq(fclose(f), 0);
}

/* Tenants are never forgotten, so their number is bounded; the old file stays in force. */
START_TEST(too_many_tenants_since_the_start) {
    auth *a;
    error err;
    identity who;
    write_tenants(0, AUTH_TOKENS_MAX);
    ck_assert_int_eq(auth_open(path, &a, &err), OK);
    for (int i = AUTH_TOKENS_MAX; i < LIMIT_ACCOUNTS; i += AUTH_TOKENS_MAX) {
        write_tenants(i, AUTH_TOKENS_MAX);
        ck_assert_int_eq(auth_reload(a, &err), OK);
    }
    write_tenants(LIMIT_ACCOUNTS, 1);
    ck_assert_int_eq(auth_reload(a, &err), E_FULL);
    ck_assert_ptr_nonnull(strstr(err.text, "tenants"));
    ck_assert(enters(a, "Bearer x", &who));
    write_tenants(7, 1);
    ck_assert_int_eq(auth_reload(a, &err), OK);
    ck_assert(enters(a, "Bearer x", &who));
    ck_assert_str_eq(who.name, "t7");
    auth_close(a);
}
END_TEST

/* Tenants by their certificates' names: as many turns as names, the same one for ever. */
START_TEST(certificates_are_tenants) {
    auth *a;
    error err;
    identity x, y, again, last;
    int retry_ms;
    tenant_charge c[3];
    char name[200];
    ck_assert_int_eq(auth_open(NULL, &a, &err), OK);
    auth_set_share(a, 1);
    auth_set_pool(a, 100, 30);
    ck_assert(auth_certificate(a, "x", 1, &x));
    ck_assert_int_eq(tenant_admit(x.tenant, 1, 1, 1, &c[0], &retry_ms), OK);
    ck_assert_int_eq(tenant_admit(x.tenant, 1, 1, 1, &c[1], &retry_ms), OK); /* the only one */
    tenant_release(&c[1], 0);
    ck_assert(auth_certificate(a, "yx", 1, &y));
    ck_assert(auth_certificate(a, "x", 1, &again));
    ck_assert_ptr_eq(x.tenant, again.tenant);
    ck_assert_str_eq(y.name, "y");
    ck_assert(x.id != y.id && x.id == again.id && x.tenant != y.tenant);
    ck_assert_int_eq(tenant_admit(y.tenant, 1, 1, 1, &c[1], &retry_ms), OK);
    ck_assert(c[0].account != c[1].account);
    ck_assert_int_eq(c[1].account_blocks_max, 30);
    ck_assert_int_eq(tenant_admit(x.tenant, 1, 1, 1, &c[2], &retry_ms), E_FULL); /* its share */
    /* Long names differ though they are logged alike. */
    memset(name, 'n', sizeof name);
    ck_assert(auth_certificate(a, name, sizeof name, &again));
    ck_assert(auth_certificate(a, name, sizeof name - 1, &last));
    ck_assert_uint_eq(strlen(again.name), TENANT_NAME_BYTES);
    ck_assert(again.tenant != last.tenant && again.id != last.id);
    /* The name that is shown is text, whatever a certificate holds and wherever it is cut. */
    for (size_t n = 0; n < 4; n++) {
        memset(name, 'x', n);
        for (size_t at = n; at + 3 <= sizeof name; at += 3) memcpy(name + at, "\xE2\x82\xAC", 3);
        ck_assert(auth_certificate(a, name, n + 120, &last));
        ck_assert_uint_eq(strlen(last.name), n + (TENANT_NAME_BYTES - n) / 3 * 3);
        ck_assert(utf8_valid(last.name, strlen(last.name)));
        memset(name + n, 0xFF, 40);
        ck_assert(auth_certificate(a, name, n + 40, &last));
        ck_assert_uint_eq(strlen(last.name), n + (TENANT_NAME_BYTES - n) / 3 * 3);
        ck_assert(utf8_valid(last.name, strlen(last.name)));
        ck_assert_ptr_nonnull(last.tenant);
    }
    for (int i = 12; i < LIMIT_ACCOUNTS; i++) {
        const int len = snprintf(name, sizeof name, "%d", i);
        ck_assert(auth_certificate(a, name, (size_t)len, &last));
        ck_assert_ptr_nonnull(last.tenant);
    }
    ck_assert(auth_certificate(a, "one more", 8, &last));
    ck_assert_ptr_null(last.tenant);
    ck_assert_uint_ne(last.id, 0);
    ck_assert_int_eq(tenant_admit(last.tenant, 1, 1, 1, &c[2], &retry_ms), OK);
    ck_assert_int_eq(c[2].account, 0);
    auth_close(a);
}
END_TEST

int main(void) {
    const int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    TCase *t = tcase_create("all");
    tcase_add_test(t, without_a_file_all_are_welcome);
    tcase_add_test(t, only_the_token_enters);
    tcase_add_test(t, expired_tokens_stay_out);
    tcase_add_test(t, bad_files_are_refused_and_change_nothing);
    tcase_add_test(t, a_bad_file_leaves_limits_alone);
    tcase_add_test(t, shares_are_for_those_with_tokens);
    tcase_add_test(t, limits_hold);
    tcase_add_test(t, ended_calls_and_long_prompts);
    tcase_add_test(t, as_many_tokens_as_there_may_be);
    tcase_add_test(t, kv_shares);
    tcase_add_test(t, certificates_are_tenants);
    tcase_add_test(t, too_many_tenants_since_the_start);
    const int failed = check_run("auth", t);
    unlink(path);
    return failed;
}
