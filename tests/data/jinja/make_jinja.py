#!/usr/bin/env python3
"""Expected results of test_jinja.c, by Jinja itself: make_jinja.py > cases.json

Needs `jinja2`. The environment is the one that chat templates are written for: sandboxed, immutable,
trim_blocks and lstrip_blocks, loop controls, tojson without HTML escapes. Each case is a template, its
variables, and the text or "error": true.
"""
import json
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {
    "s": "Hello, World", "empty": "", "u": "naïve 漢字 straße ǆ", "padded": "  \t two words \n ",
    "n": 7, "neg": -7, "f": 2.5, "yes": True, "no": False, "nil": None,
    "xs": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, [2]], []],
    "d": {"b": 1, "a": "x", "C": [1, 2]}, "html": "<a href=\"x\">it's & b</a>",
    "people": [{"name": "Ann", "age": 30, "tags": ["x", "y"], "who": {"id": 1}}, {"name": "bob", "age": 4, "tags": [], "who": {"id": 2}},
               {"name": "Cy", "age": 30, "tags": ["z"]}],
    "lines": "one\ntwo\r\n\nthree\n", "csv": "a,b,,c", "json": {"k": [1, 2.5, None, True, "é\"\\\n\x01\u2028😀"], "e": {}, "l": []},
    "tools": [{"type": "function", "function": {"name": "f", "description": "D \"q\" <b>", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}}}],
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": " hi "}, {"role": "assistant", "content": "<think>a</think>b"}],
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2 | 7 // 2 | -7 // 2 | 7 % 3 | -7 % 3 | 7 % -3 | 2 ** 10 | 2 ** -1 | 7.5 // 2 | -7.5 % 2 | 1 / 3 | 10 / 5 | 1e3 | 1.5e-7 | 123456789.125 | 0.1 + 0.2 | 1e16 | 1e22 | 12345678901234567.0 | 1_000
n / 0 | n % 0 | neg | -n | +n | - - n | not n | not not n | n == 7.0 | true == 1 | 1 < 2 < 3 | 1 < 3 < 2 | 1 == 1 == 1 | n > f | s < u | "a" < "B" | xs < [3, 2] | xs == [3, 1, 2] | d == d | 1 < "a"
"a" ~ 1 ~ none ~ true ~ 2.0 ~ [1] | "a" + "b" ~ "c" | 1 ~ 2 + 3 | "a" + 1 | [1] + [2] | (1, 2) + (3,) | [1] + (2,) | "ab" * 3 | 3 * "ab" | [0] * 3 | "x" * -1 | "a" "b" 'c'
s[0] | s[-1] | s[99] | s[1:4] | s[:-1] | s[::-1] | s[::2] | s[-3:] | s[5:1] | u[6:8] | u[::-1] | xs[0] | xs[-1] | xs[9] | xs[9].x | xs[1:] | xs[::-1] | xs[::-2] | xs[:0] | xs["a"] | d["a"] | d.a | d.zzz | d.zzz.y | d["zzz"] | d["items"]()|list | nil.x | nil[0] | missing | missing.x | missing[0]
"ell" in s | "z" not in s | 1 in xs | 9 in xs | "a" in d | "zzz" in d | 1 in "a" | "" in s | "x" in missing | nil in [none] | not 1 in xs
true and 1 | 0 or "x" | 0 and missing.x | "" or none | 1 if yes else 2 | 1 if no | 1 if no else 2 if no else 3 | (1 if yes) + 1 | yes and not no
n is defined | missing is defined | missing is undefined | nil is none | nil is not none | s is string | n is string | d is mapping | xs is mapping | xs is sequence | s is sequence | d is iterable | n is iterable | n is number | yes is number | f is float | n is integer | yes is boolean | yes is true | n is true | no is false | n is odd | n is even | n is divisibleby 7 | n is divisibleby(2) | s is lower | "abc" is lower | "ABC" is upper | n is eq 7 | n is equalto(8) | n is ne 7 | n is lt 8 | n is ge 7 | n is in xs | 1 is in [1] | range is callable | n is sameas 7 | d is sameas d | not n is defined
s|upper | s|lower | s|title | u|upper | u|title | "hELLO wORLD"|capitalize | "it's o'neil"|title | padded|trim | padded.strip() | padded.lstrip() | padded.rstrip() | "xxaxx".strip("x") | "abcba".strip("ab") | "éaé".strip("é") | s|length | u|length | xs|length | d|length | missing|length | n|length | nil|length
s.replace("l", "L") | s.replace("l", "L", 1) | "abc".replace("", "-") | s|replace("World", "X") | s|replace("o", 0) | csv.split(",") | csv.split(",", 1) | csv.rsplit(",", 1) | padded.split() | " a b  c ".split(none, 1) | "".split() | "".split(",") | "a".split("") | lines.splitlines() | lines.splitlines(true) | s.startswith("Hell") | s.endswith(("x", "ld")) | s.find("o") | s.rfind("o") | s.find("zz") | u.find("字") | s.index("zz") | s.count("l") | ",".join(["a", "b"]) | ",".join([1]) | "abc".isalpha() | "a1".isalnum() | "12".isdigit() | " \t".isspace() | "abc".removeprefix("a") | "abc".removesuffix("x")
xs|sort | xs|sort(reverse=true) | words|sort | words|sort(case_sensitive=true) | people|sort(attribute="age")|map(attribute="name")|join(",") | people|sort(attribute="name", reverse=true)|map(attribute="name")|list | d|dictsort | d|dictsort(true) | d|dictsort(false, "value") | {"b": 2, "a": 1}|dictsort(by="value") | xs|sum | people|sum(attribute="age") | xs|min | xs|max | []|max | words|min | xs|first | xs|last | []|first | s|first | xs|reverse|list | s|reverse | words|unique|list | [1, 1, 2]|unique|list | xs|join | xs|join("-") | people|join(",", attribute="name") | xs|list | "abc"|list | d|list | d|items|list | missing|items|list | d.keys()|list | d.values()|list | d.items()|list | d.get("a") | d.get("q") | d.get("q", 5)
people|map(attribute="name")|list | people|map(attribute="who.id")|list | people|map(attribute="who.id", default=0)|list | people|map(attribute="tags.0", default="-")|join(",") | words|map("upper")|list | words|map("replace", "a", "z")|list | people|selectattr("age", "equalto", 30)|map(attribute="name")|list | people|selectattr("tags")|map(attribute="name")|list | people|rejectattr("age", "gt", 10)|map(attribute="name")|list | people|selectattr("who", "defined")|list|length | xs|select("odd")|list | xs|reject("odd")|list | [0, 1, ""]|select|list | xs|reject("equalto", 1)|join(",") | nil|map("upper")|list | nil|selectattr("a")|list | 0|select|list | nil|list | xs|map("nope")|list | xs|select("nope")|list
missing|default("x") | missing|d | nil|default("x") | nil|default("x", true) | ""|default("x", boolean=true) | "12"|int | "x"|int | "x"|int(5) | 2.9|int | "1.5"|float | "x"|float | n|float | n|abs | neg|abs | 2.567|round(2) | 2.5|round | 3.5|round | 2.1|round(method="ceil") | n|string | d|string | xs|string | [none, true, 1.0, "a'b", 'q"', "a'\"b", "\n\t\\é\x00\u200b"]|string | (1,)|string | ()|string | u|string | html|e | html|escape | html|safe | "a b  c"|wordcount | lines|indent(2) | lines|indent(2, true) | lines|indent(2, first=true, blank=true) | "a\nb"|indent("> ")
json|tojson | json|tojson(indent=2) | tools|tojson(indent=4) | tools[0]|tojson | []|tojson(indent=2) | {}|tojson(indent=2) | d|tojson(sort_keys=true) | u|tojson(ensure_ascii=true) | "😀"|tojson(ensure_ascii=true) | html|tojson | 1.0|tojson | 1e100|tojson | none|tojson | d|tojson(separators=(",", ":")) | missing|tojson | (1, 2)|tojson | {1: 2, none: 3, true: 4}|tojson
range(5)|list | range(2, 8, 3)|list | range(5, 0, -2)|list | range(0)|list | range(100001)|list | range(1, 2, 0) | dict(a=1, b=2) | dict({"x": 1}, y=2) | namespace(a=1).a | {"a": 1, "b": [2]} | {"a": 1, "a": 2} | {} | [] | (1, 2) | 1, 2 | [1, 2,] | (1) | {"a": 1}.a | [[1, 2], [3]][0][1] | "%s-%d" % ("a", 3) | "%s" % "x" | "%s" % xs | "100%%" % () | "{} {}".format(1, "b") | "{1}{0}{x}".format(1, 2, x=3) | "{{}}".format() | "\x41\u00e9\101\q\'\"" | 'a\nb'
7|round | neg|round | yes|round | 1234|round(-2) | 7|round(1, "floor") | 3|round(1) | missing|int | missing|float | missing|int(-1) | "0x1f"|int(base=16) | "12"|int(0, 8) | "zz"|int(3, 16) | yes|abs | xs|sort(attribute="q") | people|sort(attribute="who.zz")|length | xs[missing] | s[missing] | xs[missing] is defined | csv|wordcount | u|wordcount | "a,b c_d"|wordcount
not messages|length == 1 | messages|length - 1 | "a" + padded|trim + "b" | n|string + "x" | -n|abs | (neg)|abs | s|upper|lower|length | messages[0]["role"] == "system" and messages[0].content is string | (messages[2].content.split("</think>")[-1]) | messages[2].content.split("</think>")[0].split("<think>")[-1] | messages|selectattr("role", "equalto", "user")|list|last | messages[1:]|map(attribute="content")|map("trim")|join("|") | (messages|last).role | messages[-1]["content"].split("<think>")|length | xs.0 | s.nope | xs.nope | n.nope
"""

TEMPLATES = [
    "a\n{% if yes %}\nb\n{% endif %}\nc\n", "  {% if yes %}  \n  b\n  {% endif %}\n c", "x {%- if yes -%}  y  {%- endif -%} z", "x {%+ if yes +%}\n y\n {%+ endif +%}\n z",
    "{{ s }}\n\n{{- s -}}\n  {{ s }}", "{# c #}\nA {#- c -#} B {# multi\nline #}\nC", "   {# c #}\nA", "a {% raw %}{{ x }} {% if %}{% endraw %} b", "{%- raw -%}  {{ x }}  {%- endraw -%} \n b", "  {% raw %}\n a\n  {% endraw %}\nb",
    "{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }};{% endfor %}",
    "{% for x in xs %}{{ loop.previtem }}-{{ loop.nextitem }},{{ loop.cycle('a', 'b') }},{{ loop.changed(x > 1) }};{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}", "{% for x in missing %}x{% else %}none{% endfor %}", "{% for x in nil %}x{% endfor %}", "{% for x in n %}x{% endfor %}", "{% for c in 'añb' %}[{{ c }}]{% endfor %}", "{% for k in d %}{{ k }},{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}", "{% for a, b in [[1, 2], [3]] %}{{ a }}{% endfor %}", "{% for x in xs if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }};{% endfor %}", "{% for x in xs if x > 9 %}x{% else %}no{% endfor %}",
    "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in xs %}{% for y in xs %}{{ loop.index }}{% if y == 1 %}{% break %}{% endif %}{% endfor %}|{{ loop.index }}{% endfor %}",
    "{% set x = 1 %}{% for y in xs %}{% set x = x + y %}{{ x }},{% endfor %}{{ x }}", "{% set ns = namespace(t=0) %}{% for y in xs %}{% set ns.t = ns.t + y %}{% endfor %}{{ ns.t }}", "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}", "{% set d.x = 1 %}", "{% set q = 1 %}{% set q.x = 1 %}",
    "{% if no %}{% set z = 1 %}{% else %}{% set z = 2 %}{% endif %}{{ z }}", "{% if no %}a{% elif n == 7 %}b{% elif missing.x %}c{% else %}d{% endif %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set x %}in {{ s }}\n{% endset %}[{{ x }}]", "{% set x | upper | trim %} in {{ s }} {% endset %}[{{ x }}]",
    "{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m(1, c=9) }}", "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% set g = 5 %}{% macro m() %}{{ g }}{% endmacro %}{{ m() }}{% set g = 6 %}{{ m() }}", "{% macro m() %}{% set q = 1 %}{{ q }}{% endmacro %}{{ m() }}{{ q }}", "{% macro m(x) %}{{ x }}{% endmacro %}{% set t = m('a') %}{{ t|upper }}{{ t|length }}",
    "{% macro w(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call w('b') %}in {{ s }}{% endcall %}", "{% macro w() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) w() %}{{ a + b }}{% endcall %}", "{% filter upper %}abc {{ s }}{% endfilter %}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}", "{{ {'a': {'b': {}}} }}", "{{ '}}' }}{{ '%}' }}", "{{ \"{{ x }}\" }}", "{{ 'a' if yes else 'b' }}", "{%if yes%}a{%endif%}", "{{s}}", "{{ messages[0].role }}{{ messages[0]['content'] }}{{ messages[-1].tool_calls is defined }}",
    "{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}{{ i }}{{ m.role }} {% endfor %}", "{% for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}{% endfor %}", "{{ raise_exception('msg ' + s) }}",
    "{% for t in tools %}{% set t = t.function %}{% for k, v in t.items() if k != 'parameters' %}{{ k }}={{ v|tojson }}{% if not loop.last %}, {% endif %}{% endfor %}{% endfor %}", "{{ missing }}{{ nil }}{{ d.q }}", "{{ missing + 'a' }}", "{{ 'a' + missing }}", "{{ missing() }}", "{{ s() }}", "{{ xs|join(',')|replace(',', '') }}",
    "\n\n{{ s }}\n\n", "\n{% if yes %}\n\n x\n\n{% endif %}\n\n", "a\r\nb\r\n{% if yes %}\r\nc{% endif %}\r\n", "\t{% if yes %}t{% endif %}\n \t {% if yes %}u{% endif %}", "{{ s }} {% if yes %}x{% endif %}\n  {{ s }}", "{% for x in xs -%}\n  {{ x }}\n{%- endfor %}", "{%- for x in xs %}\n  - {{ x }}\n{%- endfor %}\n",
    "{% if yes %}{% for x in xs %}{% if x == 1 %}{{ loop.index }}{% endif %}{% endfor %}{% endif %}", "{% set loop_messages = messages[1:] %}{% for m in loop_messages %}{{ m.role }}{% endfor %}", "{% set content = messages[0].content %}{% for m in messages %}{% set content = m.content|trim %}{{ content }}{% endfor %}{{ content }}",
    "{{ 1 if }}", "{{ }}", "{{ 1 + }}", "{% if %}{% endif %}", "{% for x %}{% endfor %}", "{% endfor %}", "{% if yes %}", "{{ 'abc }}", "{# abc", "{{ (1 }}", "{{ a b }}", "{% set = 1 %}", "{% break %}", "{{ 1.foo( }}", "{% else %}", "{{ x | }}", "{{ not }}", "{{ [1, }}", "{{ {1} }}", "{{ a.+ }}", "{{ a[ }}", "{{ a[1:2:3:4] }}", "{% macro %}{% endmacro %}",
    "{% set x = [] %}{{ x.append(1) }}", "{% if no %}{{ xs.append(1) }}{% endif %}a", "{{ xs.append is defined }}{{ d.pop is defined }}", "{% if yes %}{{ d.update({}) }}{% endif %}", "{{ xs|sort|last }}{{ xs.sort() }}", "{{ ''.__class__ }}", "{{ s.__class__.__mro__ }}", "{{ d.__init__ }}",
]


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)
    env.globals["raise_exception"] = refuse
    cases = [e.strip() for line in EXPRESSIONS.strip().split("\n") for e in line.split(" | ")]
    cases = ["{{ " + e + " }}" for e in cases] + TEMPLATES
    out = []
    for t in cases:
        try:
            out.append({"template": t, "expected": env.from_string(t).render(**VARIABLES)})
        except Exception as e:  # whatever stops the reference must stop us
            out.append({"template": t, "error": str(e)})
    json.dump({"variables": VARIABLES, "cases": out}, sys.stdout, ensure_ascii=False, indent=0)


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks what a model wrote; renders as its body."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


main()
