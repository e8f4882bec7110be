/* Stop strings across borders of tokens. Method: every way to cut a text into pieces must give the
 * same output before the match, and nothing that is part of a stop string may ever come out. */
#include <stdlib.h>
#include <string.h>

#include "server/stop_match.h"
#include "tests/check_main.h"

static stop_string stop(const char *s) {
    return (stop_string){s, strlen(s)};
}

/* Feeds text in pieces of `piece` bytes; returns the stop's index. *out: all text that came out. */
static int feed(const stop_set *set, const char *text, size_t piece, bool include,
                size_t armed_from, text_buffer *out) {
    stop_match m;
    stop_match_init(&m, set);
    const size_t len = strlen(text);
    for (size_t at = 0; at < len; at += piece) {
        const size_t n = len - at < piece ? len - at : piece;
        int i_stop = -1;
        ck_assert_int_eq(
            stop_match_push(&m, text + at, n, at + n >= armed_from, include, out, &i_stop), OK);
        if (i_stop >= 0) return i_stop;
    }
    ck_assert_int_eq(stop_match_finish(&m, out), OK);
    return -1;
}

static void expect(const stop_string *stops, int n, const char *text, int i_stop, const char *want,
                   const char *want_include) {
    stop_set set;
    stop_set_init(&set, stops, n);
    for (size_t piece = 1; piece <= strlen(text) + 1; piece++) {
        text_buffer out = {0};
        ck_assert_msg(feed(&set, text, piece, false, 0, &out) == i_stop, "piece %zu", piece);
        ck_assert_msg(out.len == strlen(want) && memcmp(out.s ? out.s : "", want, out.len) == 0,
                      "piece %zu: %.*s", piece, (int)out.len, out.s);
        text_buffer_free(&out);
        out = (text_buffer){0};
        feed(&set, text, piece, true, 0, &out);
        ck_assert_msg(out.len == strlen(want_include) &&
                          memcmp(out.s ? out.s : "", want_include, out.len) == 0,
                      "include, piece %zu: %.*s", piece, (int)out.len, out.s);
        text_buffer_free(&out);
    }
}

START_TEST(matches_across_pieces) {
    const stop_string a[] = {stop("END")};
    expect(a, 1, "one EN two END three", 0, "one EN two ", "one EN two END");
    expect(a, 1, "no such thing EN", -1, "no such thing EN", "no such thing EN");
    expect(a, 1, "END", 0, "", "END");
    const stop_string b[] = {stop("\n\n"), stop("aab")};
    expect(b, 2, "aaaab rest", 1, "aa", "aaaab");
    expect(b, 2, "x\ny\n\nz", 0, "x\ny", "x\ny\n\n");
}
END_TEST

START_TEST(earliest_start_then_list_order) {
    const stop_string a[] = {stop("bc"), stop("abc"), stop("ab")};
    stop_set set;
    stop_set_init(&set, a, 3);
    text_buffer out = {0};
    stop_match m;
    int i_stop;
    stop_match_init(&m, &set);
    ck_assert_int_eq(stop_match_push(&m, "xabc", 4, true, false, &out, &i_stop), OK);
    ck_assert_int_eq(i_stop, 1); /* starts first with "ab", and stands before it in the list */
    ck_assert_uint_eq(out.len, 1);
    text_buffer_free(&out);
}
END_TEST

START_TEST(not_armed_lets_a_match_pass) {
    const stop_string a[] = {stop("ab")};
    stop_set set;
    stop_set_init(&set, a, 1);
    text_buffer out = {0};
    ck_assert_int_eq(feed(&set, "ab.ab.ab", 1, false, 6, &out), 0);
    ck_assert_uint_eq(out.len, 6);
    ck_assert_int_eq(memcmp(out.s, "ab.ab.", 6), 0);
    text_buffer_free(&out);
}
END_TEST

/* Against the plain definition, on random texts over a small alphabet. */
START_TEST(agrees_with_the_definition) {
    srand((unsigned)_i);
    char text[200], words[4][5];
    stop_string stops[4];
    const int n_stops = 1 + rand() % 4;
    for (int i = 0; i < n_stops; i++) {
        const int len = 1 + rand() % 4;
        for (int k = 0; k < len; k++) words[i][k] = (char)('a' + rand() % 3);
        words[i][len] = '\0';
        stops[i] = stop(words[i]);
    }
    const int len = rand() % 199;
    for (int k = 0; k < len; k++) text[k] = (char)('a' + rand() % 3);
    text[len] = '\0';
    stop_set set;
    stop_set_init(&set, stops, n_stops);
    /* One byte a time: the match that ends first; of those, the earliest start, then list order. */
    int want = -1;
    size_t start = (size_t)len;
    for (size_t end = 1; end <= (size_t)len && want < 0; end++)
        for (int i = 0; i < n_stops; i++)
            if (stops[i].len <= end &&
                memcmp(text + end - stops[i].len, stops[i].s, stops[i].len) == 0 &&
                (want < 0 || end - stops[i].len < start)) {
                want = i;
                start = end - stops[i].len;
            }
    text_buffer out = {0};
    const int got = feed(&set, text, 1, false, 0, &out);
    ck_assert_int_eq(got, want);
    ck_assert_uint_eq(out.len, start);
    ck_assert(out.len == 0 || memcmp(out.s, text, out.len) == 0);
    text_buffer_free(&out);
}
END_TEST

int main(void) {
    TCase *t = tcase_create("all");
    tcase_add_test(t, matches_across_pieces);
    tcase_add_test(t, earliest_start_then_list_order);
    tcase_add_test(t, not_armed_lets_a_match_pass);
    tcase_add_loop_test(t, agrees_with_the_definition, 0, 500);
    return check_run("stop_match", t);
}
