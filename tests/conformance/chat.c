/* Chat templates: every rendering byte for byte, every refusal. */
#include "engine/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "suites.h"

enum { MESSAGES_MAX = 256 };

typedef struct tally {
    int n, n_wrong;
    char first[160];
} tally;

static const char *field(const json_t *o, const char *key, size_t *len) {
    const json_t *v = json_object_get(o, key);
    *len = json_string_length(v);
    return json_is_string(v) ? json_string_value(v) : "";
}

/* What came from messages must be literal: concatenated parts are the text, and no literal byte
 * belongs to the template. Here: the parts add up. */
static bool parts_add_up(const chat_text *t) {
    size_t at = 0;
    for (int i = 0; i < t->n_parts; i++) {
        if (t->parts[i].s != t->text + at) return false;
        at += t->parts[i].len;
    }
    return at == t->text_len;
}

/* Every message's content that appears in the text lies in literal parts: markup never holds it
 * whole (unless the template itself spells it). */
static const char *run_case(const chat_template *t, const json_t *o) {
    const json_t *messages = json_object_get(o, "messages");
    const json_t *variables = json_object_get(o, "variables");
    const char *expected = json_string_value(json_object_get(o, "expected"));
    const char *refusal = json_string_value(json_object_get(o, "error"));
    const char *kind = json_string_value(json_object_get(o, "error_kind"));
    chat_message m[MESSAGES_MAX] = {{0}};
    const size_t n = json_array_size(messages);
    if (n > MESSAGES_MAX) return "too many messages for this program";
    for (size_t i = 0; i < n; i++) {
        const json_t *from = json_array_get(messages, i);
        m[i].role = field(from, "role", &m[i].role_len);
        m[i].content = field(from, "content", &m[i].content_len);
        m[i].name = field(from, "name", &m[i].name_len);
    }
    char *vars = json_is_object(variables) ? json_dumps(variables, 0) : NULL;
    const chat_request r = {.messages = m,
                            .n_messages = (int)n,
                            .add_generation_prompt =
                                json_is_true(json_object_get(o, "add_generation_prompt")),
                            .variables_json = vars};
    chat_text out = {0};
    error err = {0};
    const char *wrong = NULL;
    const status s = chat_render(t, &r, &out, &err);
    if (n == 0 || expected == NULL) {
        if (s != E_INVAL)
            wrong = "rendered what must be refused";
        else if (n > 0 && kind != NULL && strcmp(kind, "refused") == 0 &&
                 strstr(err.text, refusal) == NULL)
            wrong = "refused with another message";
    } else if (s != OK) {
        wrong = "refused";
    } else if (out.text_len != json_string_length(json_object_get(o, "expected")) ||
               memcmp(out.text, expected, out.text_len) != 0) {
        wrong = "another text";
    } else if (!parts_add_up(&out)) {
        wrong = "the parts do not add up to the text";
    }
    if (s == OK) chat_text_free(&out);
    free(vars);
    return wrong;
}

static void run_template(const suite_context *c, const char *name, const json_t *spec,
                         const json_t *cases) {
    size_t len, i;
    const json_t *o;
    error err = {0};
    chat_template *t = NULL;
    tally y = {0};
    const char *source = field(spec, "template", &len);
    const char *bos = json_string_value(json_object_get(spec, "bos_token"));
    const char *eos = json_string_value(json_object_get(spec, "eos_token"));
    const status s =
        chat_template_open(source, len, bos != NULL ? bos : "", eos != NULL ? eos : "", &t, &err);
    if (s != OK) {
        report_fail(c->report, "chat", name, "%s: %s", status_name(s), err.text);
        return;
    }
    json_array_foreach(cases, i, o) {
        const char *of = json_string_value(json_object_get(o, "template"));
        if (of == NULL || strcmp(of, name) != 0) continue;
        const char *wrong = run_case(t, o);
        y.n++;
        if (wrong != NULL && y.n_wrong++ == 0)
            (void)snprintf(y.first, sizeof y.first, "; first: case %zu (%s): %s", i,
                           json_string_value(json_object_get(o, "conversation")), wrong);
    }
    chat_template_close(t);
    report_measure(c->report, "chat", name, "renderings wrong", y.n_wrong, 0, "%d of %d%s",
                   y.n - y.n_wrong, y.n, y.first);
}

void suite_chat(const suite_context *c) {
    char why[256], path[1024];
    const char *name;
    json_t *spec;
    files_path(path, sizeof path, c->goldens, "chat", "chat", ".json");
    if (!files_exist(path)) {
        report_skip(c->report, "chat", "-", "no %s", path);
        return;
    }
    json_t *j = files_load_json(c->goldens, "chat", "chat", ".json", why, sizeof why);
    if (j == NULL) {
        report_fail(c->report, "chat", "-", "%s", why);
        return;
    }
    json_object_foreach(json_object_get(j, "templates"), name, spec) {
        if (suite_wants(c, name)) run_template(c, name, spec, json_object_get(j, "cases"));
    }
    json_decref(j);
}
