/* Method: every golden rendering, byte for byte, and every refusal with its message. Then what the
 * parts are for: whatever messages say, no control token may come out of them. */
#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"

static void golden_path(char out[1024], const char *file) {
    const char *dir = getenv("INFERD_GOLDENS");
    snprintf(out, 1024, "%s/%s", dir ? dir : TEST_ROOT "/../shared/goldens", file);
}

static json_t *load_goldens(void) {
    char path[1024];
    json_error_t e;
    golden_path(path, "chat/chat.json");
    json_t *all = json_load_file(path, JSON_ALLOW_NUL, &e);
    ck_assert_msg(all != NULL, "%s: %s", path, e.text);
    return all;
}

static const char *string_of(json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    ck_assert(s != NULL);
    return s;
}

static chat_template *open_template(json_t *t) {
    chat_template *c;
    error err = {0};
    const char *source = string_of(t, "template");
    const status s = chat_template_open(source, strlen(source), string_of(t, "bos_token"),
                                        string_of(t, "eos_token"), &c, &err);
    ck_assert_msg(s == OK, "%s", err.text);
    return c;
}

enum { MESSAGES_MAX = 64 };
/* Fills m from a JSON array; returns the count. */
static int read_messages(json_t *a, chat_message *m) {
    int n = 0;
    size_t i;
    json_t *v;
    json_array_foreach(a, i, v) {
        ck_assert_int_lt(n, MESSAGES_MAX);
        m[n] = (chat_message){.role = string_of(v, "role"), .content = string_of(v, "content")};
        m[n].role_len = strlen(m[n].role);
        m[n].content_len = strlen(m[n].content);
        n++;
    }
    return n;
}

static void check_case(json_t *templates, json_t *record) {
    const char *name = string_of(record, "template");
    chat_template *c = open_template(json_object_get(templates, name));
    chat_message m[MESSAGES_MAX];
    chat_request r = {.messages = m};
    r.n_messages = read_messages(json_object_get(record, "messages"), m);
    r.add_generation_prompt = json_is_true(json_object_get(record, "add_generation_prompt"));
    json_t *variables = json_object_get(record, "variables");
    char *variables_text = variables ? json_dumps(variables, 0) : NULL;
    r.variables_json = variables_text;
    chat_text out = {0};
    error err = {0};
    const status s = chat_render(c, &r, &out, &err);
    json_t *expected = json_object_get(record, "expected");
    const char *where = string_of(record, "conversation");
    if (!expected || r.n_messages == 0) {
        ck_assert_msg(s == E_INVAL, "%s %s: no refusal", name, where);
        if (r.n_messages > 0) ck_assert_str_eq(err.text, string_of(record, "error"));
    } else {
        ck_assert_msg(s == OK, "%s %s: %s", name, where, err.text);
        ck_assert_msg(out.text_len == json_string_length(expected) &&
                          strcmp(out.text, json_string_value(expected)) == 0,
                      "%s %s: got [%s] want [%s]", name, where, out.text,
                      json_string_value(expected));
    }
    chat_text_free(&out);
    free(variables_text);
    chat_template_close(c);
}

START_TEST(goldens_are_rendered) {
    json_t *all = load_goldens(), *cases = json_object_get(all, "cases");
    ck_assert_uint_gt(json_array_size(cases), 0);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        check_case(json_object_get(all, "templates"), json_array_get(cases, i));
    }
    printf("%zu golden renderings\n", json_array_size(cases));
    json_decref(all);
}
END_TEST

int main(void) {
    Suite *s = suite_create("chat");
    TCase *tc = tcase_create("chat");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, goldens_are_rendered);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
