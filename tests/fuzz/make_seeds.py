#!/usr/bin/env python3
"""Writes the fuzzers' seeds into corpus/: make_seeds.py BUILD_DIR (with the program make_seeds in it; needs protoc)."""
import json
import subprocess
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
root, corpus = here.parent.parent, here / "corpus"


def seed(target, name, data):
    path = corpus / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


for target in ("fuzz_gguf", "fuzz_load"):
    (corpus / target).mkdir(parents=True, exist_ok=True)
subprocess.run([str(Path(sys.argv[1]) / "make_seeds"), str(corpus)], check=True)

for path in (root / "tests/data/tokenizer").glob("*.gguf"):
    seed("fuzz_vocabulary", path.stem, path.read_bytes())

TEXTS = {"plain": "The quick brown fox, 12345 times.\n\n  don't", "unicode": "d\u00e9j\u00e0 \u4f60\u597d \U0001F468\u200d\U0001F469 \u0301",
         "special": "<s>a</s> <s>\u00ff\u00ff</s>", "spaces": " \t \n\r\n   "}
for name, text in TEXTS.items():
    for which in range(5):
        seed("fuzz_tokenizer", f"{name}-{which}", bytes([which]) + text.encode())
        seed("fuzz_tokenizer", f"{name}-{which}-mixed", bytes([0xC0 | which]) + text.encode().replace(b" ", b"\xff"))
    seed("fuzz_utf8", name, text)
seed("fuzz_utf8", "broken", b"a\xc3\xe2\x82\xf0\x9f\xa6\x80\xed\xa0\x80\xff\xc0\xaf")

chat = json.loads((root / "tests/data/chat/chat.json").read_text())
for name, t in chat["templates"].items():
    seed("fuzz_template", name, t["template"] + "\0user\0Hello {{ x }}\0assistant\0hi\0user\0bye")
MORE = ["{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index %}{{ m.content|trim|upper }}{% endfor %}{{ ns.n }}",
        "{% macro f(a, b='x') %}{{ a ~ b }}{% endmacro %}{{ f(messages[0]['content']) }}{{ messages|tojson(indent=2) }}",
        "{% for i in range(3) if i is odd %}{{ i ** 2 // 3 % 4 }}{% else %}none{% endfor %}{{ raise_exception('no') if messages|length > 1 }}",
        "{{ (messages | selectattr('role', 'equalto', 'user') | list | first).content.split(' ') | join('-') }}{# note #}{%- if x is defined -%} {%- endif %}"]
for i, source in enumerate(MORE):
    seed("fuzz_template", f"more-{i}", source + "\0user\0Hello there\0assistant\0hi")

REQUESTS = {
    "text": 'text: "hello" sampling { temperature: 0.7 top_p: 0.9 top_k: 40 } stopping { max_tokens: 16 }',
    "ids": 'token_ids { ids: [1, 2, 3] } choices: 2 priority: -5 cache_salt: "s" request_id: "a.b-c"',
    "chat": 'chat { messages { role: "user" content: "hi" } messages { role: "assistant" content: "yo" } }',
    "bad": 'text: "x" sampling { temperature: nan top_p: -1 min_p: 7 } choices: 99 request_id: "bad id"',
}
for name, text in REQUESTS.items():
    r = subprocess.run(["protoc", "-I", str(root / "proto"), "--encode=inferd.v1.GenerateRequest", "inferd/v1/inference.proto"],
                       input=text.encode(), capture_output=True)
    if r.returncode != 0:
        sys.exit(r.stderr.decode())
    seed("fuzz_request", name, r.stdout)

CONFIGS = {
    "small": "model:\n  path: /models/a.gguf\nengine:\n  threads: 2\n  kv_type: f16\nlisten: 127.0.0.1:0\n",
    "nested": "a: {b: [1, 2, {c: d}]}\n&x y: *x\n--- \n",
    "quoted": "model: {path: \"/m \\u00e9\", name: 'it''s'}\nlog: {level: debug, format: json}\nqueue: {max_requests: 10, max_tokens: 1MiB}\n",
}
for name, text in CONFIGS.items():
    seed("fuzz_config", name, text)
