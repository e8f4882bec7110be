#!/usr/bin/env python3
"""Makes cases.json: artificial SentencePiece vocabularies with texts, encoded by the sentencepiece library itself.

    pip install sentencepiece protobuf; python3 make_spm.py

Trained vocabularies hold every character that their pieces are made of, so they never show what happens without: here characters are
missing, pieces are built from such characters, scores tie, and pieces are unused. Deterministic.
"""
import json
import random
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
N_TEXTS = 60


def vocabulary(dice, letters, n_pieces, missing, unused, n_scores):
    """[[spelling, score, type]]: every letter is missing with probability `missing`, a longer piece is unused with `unused`."""
    pieces = []
    found = {c for c in letters if dice.random() >= missing}
    while len(found) < n_pieces:
        found.add("".join(dice.choice(letters) for _ in range(dice.choice((2, 2, 2, 3, 3, 4, 5, 6)))))
    for s in sorted(found):
        kind = UNUSED if len(s) > 1 and dice.random() < unused else NORMAL
        pieces.append([s, -float(dice.randrange(n_scores)), kind])
    return pieces


def processor(pieces, byte_fallback):
    """Ids: <unk>, <s>, </s>, the 256 bytes if any, the pieces."""
    m = proto.ModelProto()
    first = [["<unk>", 0.0, UNKNOWN], ["<s>", 0.0, CONTROL], ["</s>", 0.0, CONTROL]]
    if byte_fallback:
        first += [[f"<0x{b:02X}>", 0.0, BYTE] for b in range(256)]
    for s, score, kind in first + pieces:
        m.pieces.add(piece=s, score=score, type=kind)
    m.trainer_spec.model_type = proto.TrainerSpec.BPE
    m.trainer_spec.byte_fallback = byte_fallback
    m.normalizer_spec.name = "identity"
    m.normalizer_spec.add_dummy_prefix = True
    m.normalizer_spec.remove_extra_whitespaces = False
    m.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=m.SerializeToString())


def main():
    latin, mixed = "▁abcd", "▁aé漢🦙b"
    kinds = {  # letters, pieces, missing, bytes, unused, scores
        "all letters": (latin, 40, 0, True, 0, 1000),
        "letters missing": (latin, 40, 0.6, True, 0, 1000),
        "no letters": (latin, 60, 1, True, 0, 1000),
        "no letters, ties": (latin, 60, 1, True, 0, 3),
        "no letters, no bytes": (latin, 60, 1, False, 0, 1000),
        "letters missing, no bytes": (latin, 40, 0.6, False, 0, 20),
        "wide letters missing": (mixed, 60, 0.6, True, 0, 1000),
        "wide letters missing, no bytes": (mixed, 60, 0.6, False, 0, 50),
        "unused": (latin, 60, 0, True, 0.3, 1000),
        "unused, letters missing": (mixed, 60, 0.4, True, 0.3, 1000),
    }
    out = []
    for seed, (name, (letters, n, missing, bytes_too, unused, n_scores)) in enumerate(kinds.items()):
        dice = random.Random(seed)
        pieces = vocabulary(dice, letters, n, missing, unused, n_scores)
        sp = processor(pieces, bytes_too)
        cases = []
        for i in range(N_TEXTS):
            alphabet = letters.replace("▁", " ") + ("xß" if i % 3 == 0 else "")
            text = "".join(dice.choice(alphabet) for _ in range(dice.randrange(1, 24 if i % 10 else 120)))
            cases.append([text, sp.encode(text)])
        out.append({"name": name, "bytes": bytes_too, "pieces": pieces, "cases": cases})
    lines = ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in out)
    Path(__file__).with_name("cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


main()
