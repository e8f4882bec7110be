/* Method: texts from small alphabets of troublesome characters, split by every rule, against what
 * the regular expressions give (tests/data/pretokenize, with the script that made it).
 * INFERD_PRETOKENIZE names another file of the same form. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/pretokenize.h"
#include "engine/unicode.h"
#include "tests/check_main.h"

/* True if the cursor gives exactly the pieces that end at ends. */
static bool splits_so(pretokenizer pre, const char *text, size_t len, const json_t *ends) {
    pretok_cursor c;
    pretok_init(&c, pre, text, len);
    size_t a, b, n = 0;
    while (pretok_next(&c, &a, &b)) {
        if (b <= a || (json_int_t)b != json_integer_value(json_array_get(ends, n))) return false;
        n++;
    }
    return n == json_array_size(ends);
}

START_TEST(equals_the_regular_expressions) {
    const char *path = getenv("INFERD_PRETOKENIZE");
    FILE *f = fopen(path ? path : TEST_DATA "/pretokenize/cases.jsonl", "r");
    ck_assert(f != NULL);
    json_t *record, *ends;
    const char *name;
    int n = 0, n_wrong = 0;
    while ((record = json_loadf(f, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, NULL))) {
        json_t *text = json_object_get(record, "text");
        json_object_foreach(json_object_get(record, "ends"), name, ends) {
            pretokenizer pre;
            ck_assert(pretokenizer_find(name, strlen(name), &pre));
            if (!splits_so(pre, json_string_value(text), json_string_length(text), ends)) {
                char *dump = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
                char *want = json_dumps(ends, 0);
                if (n_wrong++ < 20) fprintf(stderr, "%s: %s want %s\n", name, dump, want);
                free(dump);
                free(want);
            }
        }
        n++;
        json_decref(record);
    }
    fclose(f);
    printf("%d texts\n", n);
    ck_assert_int_gt(n, 300);
    ck_assert_int_eq(n_wrong, 0);
}
END_TEST

/* Every position belongs to one piece, whatever bytes come. */
START_TEST(pieces_cover_the_text) {
    char text[64];
    srand((unsigned)_i);
    for (int round = 0; round < 2000; round++) {
        size_t len = 0;
        for (int n = rand() % 16; n > 0; n--) {
            const uint32_t cp = (uint32_t)rand() % (rand() % 2 ? 0x80 : 0x11000);
            if (cp >= 0xD800 && cp < 0xE000) continue;
            len += utf8_put(cp, text + len);
        }
        for (int pre = PRE_GPT2; pre <= PRE_DEFAULT; pre++) {
            pretok_cursor c;
            pretok_init(&c, (pretokenizer)pre, text, len);
            size_t at = 0, a, b;
            while (pretok_next(&c, &a, &b)) {
                ck_assert_uint_eq(a, at);
                ck_assert_uint_gt(b, a);
                ck_assert(b == len || ((unsigned char)text[b] & 0xC0) != 0x80);
                at = b;
            }
            ck_assert_uint_eq(at, len);
        }
    }
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("pretokenize");
    tcase_add_test(tc, equals_the_regular_expressions);
    tcase_add_loop_test(tc, pieces_cover_the_text, 0, 4);
    return check_run("pretokenize", tc);
}
