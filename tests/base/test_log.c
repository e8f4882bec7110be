/* Lines of the log: whole, one a line, valid UTF-8, whatever the values hold and wherever a line is
 * cut. */
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/utf8.h"
#include "tests/check_main.h"

/* What log_write puts on stdout. */
static char *written(bool json, const log_field *fields, int n, size_t *len) {
    FILE *f = tmpfile();
    ck_assert_ptr_nonnull(f);
    fflush(stdout);
    const int kept = dup(STDOUT_FILENO);
    ck_assert_int_ge(kept, 0);
    ck_assert_int_ge(dup2(fileno(f), STDOUT_FILENO), 0);
    log_init(LOG_INFO, json);
    log_write(LOG_INFO, "test", fields, n);
    ck_assert_int_ge(dup2(kept, STDOUT_FILENO), 0);
    close(kept);
    char *text = calloc(1, LOG_LINE_MAX + 2);
    ck_assert_ptr_nonnull(text);
    rewind(f);
    *len = fread(text, 1, LOG_LINE_MAX + 1, f);
    fclose(f);
    return text;
}

/* Outside of strings a line of JSON ends with its only closing brace. */
static void expect_whole(const char *s, size_t len, bool json) {
    ck_assert_uint_le(len, LOG_LINE_MAX);
    ck_assert_uint_gt(len, 0);
    ck_assert(utf8_valid(s, len));
    ck_assert_ptr_eq(strchr(s, '\n'), s + len - 1);
    bool quoted = false;
    size_t i_brace = 0;
    for (size_t i = 0; i < len; i++) {
        if (quoted && s[i] == '\\')
            i++;
        else if (s[i] == '"')
            quoted = !quoted;
        else if (s[i] == '}' && !quoted)
            i_brace = i;
    }
    ck_assert(!quoted);
    if (json) ck_assert_uint_eq(i_brace, len - 2);
}

START_TEST(bytes_of_a_name_become_text) {
    size_t len;
    const log_field f[] = {LOG_STR("file", "a\xFF"
                                           "b\xC3\xA4\xE2\x82"),
                           LOG_STR("q", "x\"\\\n")};
    for (int json = 0; json < 2; json++) {
        char *s = written(json, f, 2, &len);
        expect_whole(s, len, json);
        ck_assert_ptr_nonnull(strstr(s, "\"a\\ufffdb\xC3\xA4\\ufffd\""));
        ck_assert_ptr_nonnull(strstr(s, "\"x\\\"\\\\\\u000a\""));
        free(s);
    }
    const log_field plain = LOG_STR("name", "\xC3\xA4");
    char *s = written(false, &plain, 1, &len);
    ck_assert_ptr_nonnull(strstr(s, " name=\xC3\xA4\n")); /* no quotes where none are needed */
    free(s);
}
END_TEST

/* Each unit stands at each place of the line's end. */
START_TEST(long_lines_are_cut_whole) {
    static const char *const unit[] = {"x",  "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\xA6\x99",
                                       "\"", "\x01",     "\xFF",         "y "};
    enum { BYTES = 2 * LOG_LINE_MAX };
    char *text = malloc(BYTES + 16);
    for (int pad = 0; pad < 8; pad++) {
        size_t n = (size_t)pad;
        memset(text, 'p', n);
        while (n < BYTES) n += (size_t)snprintf(text + n, 16, "%s", unit[_i]);
        const log_field f[] = {LOG_STR("text", text), LOG_INT("n", -1234567), LOG_STR("last", "")};
        for (int json = 0; json < 2; json++) {
            size_t len;
            char *s = written(json, f, 3, &len);
            expect_whole(s, len, json);
            ck_assert_uint_gt(len, LOG_LINE_MAX - 16); /* cut late, not dropped */
            ck_assert_ptr_null(strstr(s, "last"));
            free(s);
        }
    }
    free(text);
}
END_TEST

int main(void) {
    TCase *t = tcase_create("log");
    tcase_add_test(t, bytes_of_a_name_become_text);
    tcase_add_loop_test(t, long_lines_are_cut_whole, 0, 8);
    return check_run("log", t);
}
