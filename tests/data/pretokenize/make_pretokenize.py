#!/usr/bin/env python3
"""How texts are split before BPE, by the regular expressions themselves: make_pretokenize.py COUNT SEED > cases.jsonl

Needs `tokenizers` (its regex engine is Oniguruma, which the models' own tokenizers use). One line a text:
{"text", "ends": {rule: [byte offset at which each piece ends]}}.
"""
import json
import random
import sys

from tokenizers import Regex, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FIRST, SUFFIX = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
RULES = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "llama-bpe": [LLAMA3],
    "tekken": [f"{FIRST}{UPPER}*{LOWER}+|{FIRST}{UPPER}+{LOWER}*|" + r"\p{N}" + TAIL],
    "gpt-4o": [f"{FIRST}{UPPER}*{LOWER}+{SUFFIX}|{FIRST}{UPPER}+{LOWER}*{SUFFIX}|" + r"\p{N}{1,3}" + TAIL],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
ALPHABETS = [
    "aB1 \n", "ab '\tsS", "aA'sSrReEvVlLtTmMdDſ ", "Aaあ\u0301ʰ\u0345 ", "AaǅʰあÉé\u0301\u0300", "12 ٣½Ⅷ3a", "  \t\n\r\x0b\x0c\x85\u00a0\u2028\u3000x",
    "!?/.,$+<=>^~|`#-_\r\n a1", "//\n\r.. a", "😀\u200d\ufe0f🏽 a", "漢字かなカナ한글\u1112\u1161\u11ab a1", "नमस्तेक्षि 1", "\x00\x01\x1c\x1f\x7f\ufeff\ufffd\ue000a ",
    "'\u2019sS t", "aßſKÅİıŉﬁ'sS", "٠١٢۳१२३１２３123", "\u0903\u20dd\u0488a A", "Ω\u1f80\u1f88ᾼa'S",
]


def texts(count, rng):
    everything = "".join(ALPHABETS)
    for i in range(count):
        alphabet = everything if i % 7 == 0 else ALPHABETS[i % len(ALPHABETS)]
        yield "".join(rng.choice(alphabet) * (rng.choice([1, 1, 1, 2, 3, 5]) if rng.random() < 0.3 else 1) for _ in range(rng.choice([1, 2, 3, 5, 8, 13, 24])))


def main():
    count, rng = int(sys.argv[1]), random.Random(sys.argv[2])
    split = {name: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r), "isolated") for r in rules]) for name, rules in RULES.items()}
    seen = set()
    for text in texts(count, rng):
        if text in seen:
            continue
        seen.add(text)
        ends = {}
        for name, p in split.items():
            at, ends[name] = 0, []
            for piece, _ in p.pre_tokenize_str(text):
                at += len(piece.encode())
                ends[name].append(at)
        print(json.dumps({"text": text, "ends": ends}, separators=(",", ":")))


main()
