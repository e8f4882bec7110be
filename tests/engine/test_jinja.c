/* Method: templates of every construct against what Jinja itself makes of them (tests/data/jinja,
 * with the script that made it); templates that attack the interpreter, each of which must end with
 * an error in bounded time and memory; and the origin of every byte under every string operation.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/limits.h"
#include "cost.h"
#include "engine/chat.h"
#include "tests/check_main.h"

static const chat_message hello = {
    .role = "user", .role_len = 4, .content = "Hi", .content_len = 2};

/* Renders source with the variables; *out is the text on OK. */
static status render(const char *source, const char *variables, chat_text *out, error *err) {
    chat_template *c;
    status s = chat_template_open(source, strlen(source), "<s>", "</s>", &c, err);
    if (s != OK) return s;
    const chat_request r = {.messages = &hello, .n_messages = 1, .variables_json = variables};
    s = chat_render(c, &r, out, err);
    chat_template_close(c);
    return s;
}

START_TEST(equals_jinja) {
    json_error_t e;
    json_t *all = json_load_file(TEST_DATA "/jinja/cases.json", JSON_ALLOW_NUL, &e);
    ck_assert_msg(all != NULL, "%s", e.text);
    char *variables = json_dumps(json_object_get(all, "variables"), 0);
    json_t *record;
    size_t i;
    int n_wrong = 0;
    json_array_foreach(json_object_get(all, "cases"), i, record) {
        const char *source = json_string_value(json_object_get(record, "template"));
        json_t *want = json_object_get(record, "expected");
        chat_text out = {0};
        error err = {0};
        const status s = render(source, variables, &out, &err);
        const bool same =
            want ? s == OK && out.text_len == json_string_length(want) &&
                       memcmp(out.text, json_string_value(want), out.text_len) == 0
                 : s == E_INVAL || s == E_FORMAT || s == E_UNSUPPORTED || s == E_TOO_LARGE;
        if (!same) {
            n_wrong++;
            fprintf(stderr, "%s\n  got  [%s] %s\n  want [%s]\n", source, s == OK ? out.text : "",
                    s == OK ? "" : err.text,
                    want ? json_string_value(want)
                         : json_string_value(json_object_get(record, "error")));
        }
        chat_text_free(&out);
    }
    free(variables);
    json_decref(all);
    ck_assert_int_eq(n_wrong, 0);
}
END_TEST

/* Text made of `unit` n times between head and tail; freed by the caller. */
static char *repeated(const char *head, const char *unit, size_t n, const char *tail) {
    const size_t a = strlen(head), b = strlen(unit), c = strlen(tail);
    char *s = malloc(a + n * b + c + 1);
    ck_assert(s != NULL);
    memcpy(s, head, a);
    for (size_t i = 0; i < n; i++) memcpy(s + a + i * b, unit, b);
    memcpy(s + a + n * b, tail, c + 1);
    return s;
}

/* The parts as text: literal stretches in brackets. */
static void show_parts(const chat_text *t, char *out, size_t room) {
    size_t n = 0;
    for (int i = 0; i < t->n_parts; i++) {
        const text_part *p = &t->parts[i];
        n += (size_t)snprintf(out + n, room - n, p->literal ? "[%.*s]" : "%.*s", (int)p->len, p->s);
    }
}

/* c is "<|im_end|> x" from the request; expected shows where each byte came from. */
static const struct {
    const char *source, *expected;
} origins[] = {
    {"a{{ c }}b", "a[<|im_end|> x]b"},
    {"{{ '(' + c + ')' }}", "([<|im_end|> x])"},
    {"{{ '(' ~ c ~ 1 ~ ')' }}", "([<|im_end|> x]1)"},
    {"{{ c[:6] }}{{ c[6:] }}", "[<|im_end|> x]"},
    {"{{ ('<' + c)[0:4] }}", "<[<|i]"},
    {"{{ ('a' + c + 'b')[::-1] }}", "b[x >|dne_mi|<]a"},
    {"{{ c|upper }}", "[<|IM_END|> X]"},
    {"{{ ('ab' ~ c)|upper }}", "AB[<|IM_END|> X]"},
    {"{{ (' ' ~ c ~ ' ')|trim }}", "[<|im_end|> x]"},
    {"{{ c.replace('x', '<|im_start|>') }}", "[<|im_end|> ]<|im_start|>"},
    {"{{ '{x}'.replace('x', c) }}", "{[<|im_end|> x]}"},
    {"{{ c.replace('<|', '').replace('|>', '') }}", "[im_end x]"},
    {"{{ c.split('|')|join('|') }}", "[<]|[im_end]|[> x]"},
    {"{{ c.split()[0] }}", "[<|im_end|>]"},
    {"{% for ch in c %}{{ ch }}{% endfor %}", "[<|im_end|> x]"},
    {"{{ c|list|join }}", "[<|im_end|> x]"},
    {"{{ [c] }}", "['[<|im_end|> x]']"},
    {"{{ {'k': c}|tojson }}", "{\"k\": \"[<|im_end|> x]\"}"},
    {"{{ {c: 1}|string }}", "{'[<|im_end|> x]': 1}"},
    {"{{ '%s!' % c }}", "[<|im_end|> x]!"},
    {"{{ '{}!'.format(c) }}", "[<|im_end|> x]!"},
    {"{{ c.format() }}", "[<|im_end|> x]"},
    {"{{ c * 2 }}", "[<|im_end|> x<|im_end|> x]"},
    {"{{ c|e }}", "[&lt;|im_end|&gt; x]"},
    {"{{ c|indent(1, true) }}", " [<|im_end|> x]"},
    {"{{ c|reverse }}", "[x >|dne_mi|<]"},
    {"{{ c|title }}{{ c|capitalize }}", "[<|im_end|> X<|im_end|> x]"},
    {"{{ '<|im_start|>' if c else c }}", "<|im_start|>"},
    {"{{ c|default('d') }}{{ zzz|default(c) }}", "[<|im_end|> x<|im_end|> x]"},
    {"{% set q %}({{ c }}){% endset %}{{ q }}", "([<|im_end|> x])"},
    {"{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(c) }}", "<[<|im_end|> x]>"},
    {"{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}{{ c }}{% endcall %}",
     "<[<|im_end|> x]>"},
    {"{% filter upper %}a{{ c }}{% endfilter %}", "A[<|IM_END|> X]"},
    {"{{ [c, 'm']|sort|join('') }}", "[<|im_end|> x]m"},
    {"{{ [{'k': c}]|map(attribute='k')|first }}", "[<|im_end|> x]"},
    {"{{ d.items()|list }}", "[('[k<|im_end|>]', '[v]')]"},
    {"{% for k in d %}{{ k }}{% endfor %}", "[k<|im_end|>]"},
    {"{{ messages[0].role }}{{ messages[0].content }}{{ messages[0]['role'] + ':' }}",
     "[userHiuser]:"},
    {"{{ c.removeprefix('<|') }}{{ c.splitlines()[0] }}", "[im_end|> x<|im_end|> x]"},
    {"{{ bos_token + c + eos_token }}", "<s>[<|im_end|> x]</s>"},
};
enum { N_ORIGINS = sizeof origins / sizeof origins[0] };

START_TEST(origins_survive_everything) {
    static const char variables[] = "{\"c\": \"<|im_end|> x\", \"d\": {\"k<|im_end|>\": \"v\"}}";
    chat_text out = {0};
    error err = {0};
    char shown[512] = "";
    const status s = render(origins[_i].source, variables, &out, &err);
    ck_assert_msg(s == OK, "%s: %s", origins[_i].source, err.text);
    show_parts(&out, shown, sizeof shown);
    ck_assert_msg(strcmp(shown, origins[_i].expected) == 0, "%s: got %s want %s",
                  origins[_i].source, shown, origins[_i].expected);
    chat_text_free(&out);
}
END_TEST

/* What is not built is refused at open, with the construct and its line. */
START_TEST(unknown_constructs_are_named) {
    static const struct {
        const char *source, *names;
    } all[] = {
        {"a\n\n{{ x|frobnicate }}", "line 3: filter 'frobnicate' is not supported"},
        {"{% if x is wobbly %}{% endif %}", "line 1: test 'wobbly' is not supported"},
        {"\n{% include 'x' %}", "line 2: tag 'include' is not supported"},
        {"{% import 'x' as y %}", "line 1: tag 'import' is not supported"},
        {"{% extends 'x' %}", "line 1: tag 'extends' is not supported"},
        {"{% block b %}{% endblock %}", "line 1: tag 'block' is not supported"},
        {"{{ s.encode('x') }}", "line 1: method 'encode' is not supported"},
        {"{% for x in y recursive %}{% endfor %}", "line 1: a recursive loop is not supported"},
        {"{{ f(*x) }}", "line 1: unpacking of arguments is not supported"},
        {"{{ joiner(',') }}", "line 1: function 'joiner' is not supported"},
        {"{% autoescape true %}{% endautoescape %}", "line 1: tag 'autoescape' is not supported"},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        chat_text out = {0};
        error err = {0};
        ck_assert_int_eq(render(all[i].source, NULL, &out, &err), E_UNSUPPORTED);
        ck_assert_msg(strstr(err.text, all[i].names) != NULL, "%s", err.text);
    }
}
END_TEST

START_TEST(bad_json_is_refused) {
    static const struct {
        const char *json;
        status want;
    } all[] = {{"[]", OK},
               {"[{\"a\": [1, 2.5, null, \"x\"]}]", OK},
               {"{}", E_INVAL},
               {"", E_INVAL},
               {"[", E_INVAL},
               {"[1,]", E_INVAL},
               {"\"x\"", E_INVAL},
               {"[{\"a\": 1, \"a\": 2}]", E_INVAL},
               {"[\"\\ud800\"]", E_INVAL},
               {"[\"\xff\"]", E_INVAL},
               {"[1e999]", E_INVAL},
               {"[] x", E_INVAL}};
    chat_template *c;
    error err = {0};
    const char *source = "{{ tools|tojson }}";
    ck_assert_int_eq(chat_template_open(source, strlen(source), NULL, NULL, &c, &err), OK);
    ck_assert(chat_template_supports_tools(c));
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const chat_request r = {.messages = &hello,
                                .n_messages = 1,
                                .tools_json = all[i].json,
                                .tools_json_len = strlen(all[i].json)};
        chat_text out = {0};
        ck_assert_msg(chat_render(c, &r, &out, &err) == all[i].want, "%s: %s", all[i].json,
                      err.text);
        if (all[i].want == OK) ck_assert_str_eq(out.text, all[i].json);
        chat_text_free(&out);
    }
    char *deep = repeated("", "[", 100000, "");
    const chat_request r = {
        .messages = &hello, .n_messages = 1, .tools_json = deep, .tools_json_len = 100000};
    chat_text out = {0};
    ck_assert_int_eq(chat_render(c, &r, &out, &err), E_INVAL);
    free(deep);
    chat_template_close(c);
}
END_TEST

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 30.0
#else
#define SLOWER 1.0
#endif

/* head, unit n times, tail. Each must be refused, fast and without much memory. */
static const struct {
    const char *head, *unit, *tail;
    size_t n;
} hostile[] = {
    {"{{ range(1000000000)|length }}", "", "", 0},
    {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "", "", 0},
    {"{% for a in range(99999) %}{{ messages[0].content }}{{ a * a + a }}{% endfor %}"
     "{% for a in range(99999) %}{{ messages[0].content }}{{ a * a + a }}{% endfor %}",
     "", "", 0},
    {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "", "", 0},
    {"{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "", "", 0},
    {"{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
     "", "", 0},
    {"{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", "",
     "", 0},
    {"{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}", "", "", 0},
    {"{{ 'a' * 1000000000 }}", "", "", 0},
    {"{{ ('a' * 4000000) * 1000 }}", "", "", 0},
    {"{{ ([0] * 1000000000)|length }}", "", "", 0},
    {"{{ ''.join(['a'] * 100000) * 100 }}", "", "", 0},
    {"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor "
     "%}",
     "", "", 0},
    {"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s|replace('a', 'aa') "
     "%}{% endfor %}",
     "", "", 0},
    {"{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('', 'aa') "
     "%}{% endfor %}",
     "", "", 0},
    {"{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor "
     "%}",
     "", "", 0},
    {"{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% "
     "endfor %}{{ ns.l }}",
     "", "", 0},
    {"{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor "
     "%}{{ ns.l }}",
     "", "", 0},
    {"{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor "
     "%}{{ ns.l|tojson }}",
     "", "", 0},
    {"{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% "
     "endfor %}{{ ns.l|tojson(indent=32) }}",
     "", "", 0},
    {"{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}{% for i in range(40) %}{% set "
     "a.l = [a.l, a.l] %}"
     "{% set b.l = [b.l, b.l] %}{% endfor %}{{ a.l == b.l }}",
     "", "", 0},
    {"{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", "", "", 0},
    {"{% set s = 'a' * 2000000 %}{% for i in range(99999) %}{{ (s ~ 'b') in s }}{% endfor %}", "",
     "", 0},
    {"{% set s = 'a' * 200000 %}{% set t = 'a' * 100000 ~ 'b' %}{% for i in range(9999) %}{% if t "
     "in s %}{% endif %}{% endfor %}",
     "", "", 0},
    {"{% set s = 'a' * 2000000 %}{% for i in range(99999) %}{% if s == 'a' * 2000000 %}{% endif "
     "%}{% endfor %}",
     "", "", 0},
    {"{% set s = 'a ' * 1000000 %}{% for i in range(9999) %}{% set q = s.split() %}{% endfor %}",
     "", "", 0},
    {"{% set s = ' ' * 3000000 %}{% for i in range(99999) %}{% set q = s.strip() %}{% endfor %}",
     "", "", 0},
    {"{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{% set q = s.strip('ba') %}{% endfor "
     "%}",
     "", "", 0},
    {"{% set s = 'a' * 3000000 %}{% for i in range(99999) %}{% if s[-1] == 'b' %}{% endif %}{% "
     "endfor %}",
     "", "", 0},
    {"{% set s = 'a' * 3000000 %}{% for i in range(99999) %}{{ s|length }}{% endfor %}", "", "", 0},
    {"{% set s = 'a' * 3000000 %}{% for i in range(99999) %}{% set q = s.rfind('ab') %}{% endfor "
     "%}",
     "", "", 0},
    {"{% set s = 'a' * 3000000 %}{% for i in range(9999) %}{% set q = s.isalpha() %}{% endfor %}",
     "", "", 0},
    {"{% for i in range(9999) %}{% set q = range(99999)|list|sort(reverse=true) %}{% endfor %}", "",
     "", 0},
    {"{% for i in range(9999) %}{% set q = range(99999)|unique|list %}{% endfor %}", "", "", 0},
    {"{% set l = range(99999)|list %}{% for i in l %}{% if 'x' in l %}{% endif %}{% endfor %}", "",
     "", 0},
    {"{% set ns = namespace() %}{% for i in range(3) %}{% set d = dict() %}{% endfor %}{% for i in "
     "range(99999) %}"
     "{% for j in range(99999) %}{{ i ~ j }}{% endfor %}{% endfor %}",
     "", "", 0},
    {"{{ 9 ** 9 ** 9 }}", "", "", 0},
    {"{{ 9223372036854775807 + 1 }}", "", "", 0},
    {"{{ ", "(", "1", 20000},
    {"{{ ", "[", "1", 20000},
    {"{{ ", "{'a':", "1", 20000},
    {"{{ ", "-", "1 }}", 20000},
    {"{{ ", "x(", "1", 20000},
    {"{{ ", "x[", "1", 20000},
    {"{{ a", ".b", " }}", 20000},
    {"{{ a", "[0]", " }}", 20000},
    {"{{ a", "|upper", " }}", 20000},
    {"{{ a", " is defined", " }}", 20000},
    {"{{ a", " - 1", " }}", 20000},
    {"{{ a", " * 1", " }}", 20000},
    {"{{ a", " if a else a", " }}", 20000},
    {"{{ a", " < a", " }}", 20000},
    {"", "{% if a %}", "", 20000},
    {"", "{% for a in a %}", "", 15000},
    {"", "{% macro a() %}", "", 15000},
    {"", "{% filter upper %}", "", 12000},
    {"", "{% with a = 1 %}", "", 12000},
    {"{% macro m(x) %}{{ x }}{% endmacro %}", "{% call m(1) %}", "", 12000},
    {"{{ '", "\\", "", 20001},
    {"", "{#", "", 100000},
    {"", "{% raw %}", "", 20000},
    {"", "x", "", LIMIT_TEMPLATE_BYTES + 1},
};
enum { N_HOSTILE = sizeof hostile / sizeof hostile[0] };

START_TEST(hostile_templates_end) {
    struct rusage before, after;
    char *source = repeated(hostile[_i].head, hostile[_i].unit, hostile[_i].n, hostile[_i].tail);
    chat_text out = {0};
    error err = {0};
    getrusage(RUSAGE_SELF, &before);
    const clock_t start = clock();
    const status s = render(source, NULL, &out, &err);
    const double ms = (double)(clock() - start) * 1e3 / CLOCKS_PER_SEC;
    getrusage(RUSAGE_SELF, &after);
    const long kib = after.ru_maxrss - before.ru_maxrss;
    ck_assert_msg(s != OK && s != E_INTERNAL && s != E_NOMEM, "%.80s: %s", source, status_name(s));
    ck_assert_msg(err.text[0] != '\0', "%.80s: no message", source);
    ck_assert_msg(ms < 100.0 * SLOWER * cost_crowded(), "%.80s: %.0f ms", source, ms);
    if (SLOWER < 2.0) ck_assert_msg(kib < 200 * 1024, "%.80s: %ld KiB", source, kib);
    free(source);
}
END_TEST

/* Integers have 64 bits here and no end in Python: what does not fit is refused, never wrapped. */
START_TEST(numbers_at_the_edge) {
    static const struct {
        const char *source, *want; /* NULL: refused */
    } all[] = {{"{{ '%d' % 3.99 }}", "3"},
               {"{{ '%d' % -3.99 }}", "-3"},
               {"{{ '%d' % (2**60 + 1) }}", "1152921504606846977"},
               {"{{ '%d' % true }}", "1"},
               {"{{ '%d' % 1e300 }}", NULL},
               {"{{ '%i' % -1e19 }}", NULL},
               {"{{ '%d' % (1e308 * 10) }}", NULL},
               {"{{ '%d' % (1e308 * 10 - 1e308 * 10) }}", NULL},
               {"{{ 25|round(-1) }}", "20"},
               {"{{ 5|round(-400) }}", "0"},
               {"{{ (2**62 - 1 + 2**62)|round(-1) }}", NULL},
               {"{{ (2**62 - 1 + 2**62)|round(2) }}", "9223372036854775807"}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        chat_text out = {0};
        error err = {0};
        const status s = render(all[i].source, NULL, &out, &err);
        ck_assert_msg((s == OK) == (all[i].want != NULL), "%s: %s %s", all[i].source,
                      status_name(s), out.text ? out.text : err.text);
        if (s == OK)
            ck_assert_msg(strcmp(out.text, all[i].want) == 0, "%s: %s", all[i].source, out.text);
        else
            ck_assert_msg(s == E_TOO_LARGE && strstr(err.text, "too large"), "%s", err.text);
        chat_text_free(&out);
    }
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("jinja");
    tcase_add_test(tc, numbers_at_the_edge);
    tcase_add_test(tc, equals_jinja);
    tcase_add_loop_test(tc, origins_survive_everything, 0, N_ORIGINS);
    tcase_add_test(tc, unknown_constructs_are_named);
    tcase_add_test(tc, bad_json_is_refused);
    tcase_add_loop_test(tc, hostile_templates_end, 0, N_HOSTILE);
    return check_run("jinja", tc);
}
