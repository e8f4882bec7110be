#!/usr/bin/env python3
"""Texts and their NFC: make_nfc.py COUNT SEED > cases.jsonl, or make_nfc.py compositions > compositions.txt. Needs `tokenizers`, whose normalizer the Qwen tokenizers use."""
import json
import random
import sys
import unicodedata

from tokenizers import normalizers

NFC = normalizers.NFC()
# Marks that the normalizer's own Unicode version knows: they move behind a mark of class 1.
MARKS = [c for c in map(chr, range(0x300, 0x1E950)) if unicodedata.combining(c) > 1 and NFC.normalize_str("a" + c + "\u0334") == NFC.normalize_str("a\u0334" + c)]
SECONDS = [chr(c) for c in (0x9BE, 0x9D7, 0xB3E, 0xBBE, 0xCC2, 0xCD5, 0xD3E, 0xDCF, 0x102E, 0x1B35, 0x3099, 0x309A, 0x1133E, 0x114B0, 0x115AF)]
BASES = list("aeioucAEKZ \n1") + [chr(c) for c in (0xC5, 0x212B, 0x2126, 0x1E9B, 0xFB01, 0x3B1, 0x1F00, 0x9C7, 0xB47, 0xBC6, 0xCC6, 0xD46, 0xDD9, 0x1025, 0x304B, 0x30CF, 0x1100, 0x1161, 0x11A8,
                                                0xAC00, 0xAC01, 0x1112, 0x11C2, 0xF900, 0x2F800, 0x1D15E, 0x11131, 0x11127, 0x114B9, 0x1F600, 0x344, 0x340, 0xF73, 0xF71, 0xF72, 0x958, 0x2ADC, 0xFB1D)]


def compositions():
    """Every character that NFC composes (Hangul: some), as: its NFD in hex, its code point."""
    for c in [*range(0xC0, 0xAC00), *range(0xAC00, 0xD7A4, 97), *range(0xE000, 0x30000)]:
        nfd = normalizers.NFD().normalize_str(chr(c))
        if nfd != chr(c) and NFC.normalize_str(nfd) == chr(c):
            print(nfd.encode().hex(), f"{c:x}")


def main():
    if sys.argv[1] == "compositions":
        return compositions()
    rng = random.Random(sys.argv[2])
    for _ in range(int(sys.argv[1])):
        text = ""
        for _ in range(rng.choice([1, 2, 3, 6])):
            text += rng.choice(BASES)
            text += "".join(rng.choice(MARKS[:70] if rng.random() < 0.8 else MARKS) for _ in range(rng.choice([0, 0, 1, 1, 2, 3, 25 if rng.random() < 0.1 else 4])))
            if rng.random() < 0.3:
                text += rng.choice(SECONDS)
        print(json.dumps({"text": text, "nfc": NFC.normalize_str(text)}, separators=(",", ":")))


main()
