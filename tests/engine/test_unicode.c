/* Method: NFC against the reference normaliser (tests/data/nfc, with the script that made it;
 * INFERD_NFC names another file), the property of Unicode data that lets us cut texts into
 * segments, the map back to the source, and linear time on the longest runs of marks. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/utf8.h"
#include "engine/unicode.h"
#include "tests/check_main.h"

START_TEST(nfc_equals_the_reference) {
    const char *path = getenv("INFERD_NFC");
    FILE *f = fopen(path ? path : TEST_DATA "/nfc/cases.jsonl", "r");
    ck_assert(f != NULL);
    json_t *record;
    int n = 0;
    while ((record = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL))) {
        const json_t *text = json_object_get(record, "text"),
                     *want = json_object_get(record, "nfc");
        text_buffer out = {0};
        const char *s = json_string_value(text);
        ck_assert_int_eq(unicode_nfc(s, json_string_length(text), &out, NULL), OK);
        ck_assert_msg(strcmp(out.s, json_string_value(want)) == 0, "record %d", n);
        if (strcmp(s, out.s) != 0) ck_assert(unicode_may_need_nfc(s, strlen(s)));
        text_buffer_free(&out);
        json_decref(record);
        n++;
    }
    fclose(f);
    ck_assert_int_gt(n, 100);
}
END_TEST

/* Both halves of every composition stay in one segment: what NFC makes of the two one after the
 * other is what it makes of the text, in whatever segments it was cut. Checked by putting the
 * character's own decomposition back together. */
START_TEST(every_composition_is_found) {
    FILE *f =
        fopen(TEST_DATA "/nfc/compositions.txt", "r"); /* NFD bytes in hex, code point in hex */
    ck_assert(f != NULL);
    unsigned cp;
    char hex[64];
    int n = 0;
    while (fscanf(f, "%63s %x", hex, &cp) == 2) {
        char text[32], want[5] = "";
        size_t len = 0;
        unsigned byte;
        for (; hex[2 * len] && sscanf(hex + 2 * len, "%2x", &byte) == 1; len++) {
            text[len] = (char)byte;
        }
        utf8_put(cp, want);
        text_buffer out = {0};
        ck_assert_int_eq(unicode_nfc(text, len, &out, NULL), OK);
        ck_assert_msg(strcmp(out.s, want) == 0, "U+%04X", cp);
        text_buffer_free(&out);
        n++;
    }
    fclose(f);
    ck_assert_int_gt(n, 900);
}
END_TEST

START_TEST(map_leads_back) {
    /* e+acute, x, A-ring sign: bytes 0-2 -> 0-1, 3 -> 2, 4-6 -> 3-4 */
    const char *s = "e\xCC\x81x\xE2\x84\xAB!";
    text_buffer out = {0};
    text_map map = {0};
    ck_assert_int_eq(unicode_nfc(s, strlen(s), &out, &map), OK);
    ck_assert_str_eq(out.s, "\xC3\xA9x\xC3\x85!");
    static const uint32_t want[][4] = {{0, 2, 0, 3}, {2, 3, 3, 4}, {3, 5, 4, 7}, {5, 6, 7, 8}};
    size_t cursor = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t start = want[i][0], end = want[i][1];
        text_map_range(&map, out.len, strlen(s), &start, &end, &cursor);
        ck_assert_uint_eq(start, want[i][2]);
        ck_assert_uint_eq(end, want[i][3]);
    }
    text_map_free(&map);
    text_buffer_free(&out);
}
END_TEST

static double nfc_seconds(const char *unit, size_t bytes) {
    const size_t n = strlen(unit);
    char *s = malloc(bytes + n);
    size_t len = 0;
    for (; len < bytes; len += n) memcpy(s + len, unit, n);
    text_buffer out = {0};
    const clock_t start = clock();
    ck_assert_int_eq(unicode_nfc(s, len, &out, NULL), OK);
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    text_buffer_free(&out);
    free(s);
    return seconds;
}

/* Marks in the worst order for an insertion sort; precomposed letters; Hangul. */
START_TEST(long_runs_take_linear_time) {
    static const char *const units[] = {"\xCC\x81\xCC\xA3", "\xCC\x81", "e\xCC\x81", "\xED\x95\x9C",
                                        "\xE1\x84\x92\xE1\x85\xA1"};
    const char *unit = units[_i];
    double one = 1e9, two = 1e9; /* the best of a few: others use the machine as well */
    for (int i = 0; i < 5 || (i < 40 && two >= 2.6 * one + 0.005); i++) {
        const double a = nfc_seconds(unit, 1 << 20), b = nfc_seconds(unit, 2 << 20);
        if (a < one) one = a;
        if (b < two) two = b;
    }
    ck_assert_msg(two < 2.6 * one + 0.005, "%.1f ms for twice of %.1f ms", two * 1e3, one * 1e3);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("unicode");
    tcase_add_test(tc, nfc_equals_the_reference);
    tcase_add_test(tc, every_composition_is_found);
    tcase_add_test(tc, map_leads_back);
    tcase_add_loop_test(tc, long_runs_take_linear_time, 0, 5);
    return check_run("unicode", tc);
}
