#!/usr/bin/env python3
"""Makes dequant.txt: random blocks of every quantised weight type with their values as the `gguf`
Python package dequantises them (an implementation independent of ours). One line a block:

    TYPE  block bytes in hex  float32 values in hex (little-endian)

Scales are drawn so that they are finite. Run: python3 make_dequant.py > dequant.txt
"""
import numpy as np
import gguf

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
         "IQ4_XS", "MXFP4"]
# byte offsets of the half-precision numbers in a block
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
          "IQ4_XS": [0], "MXFP4": []}

rng = np.random.default_rng(20261)
for name in TYPES:
    t = gguf.GGMLQuantizationType[name]
    elems, size = gguf.GGML_QUANT_SIZES[t]
    for i in range(3 if elems == 256 else 6):
        block = rng.integers(0, 256, size, dtype=np.uint8)
        for at in HALVES[name]:
            h = np.float16(rng.normal() * (1e-6 if i == 1 else 1.0))  # one denormal scale each
            block[at:at + 2] = np.frombuffer(h.tobytes(), dtype=np.uint8)
        if name == "MXFP4":
            block[0] = [0, 1, 2, 120, 127, 140][i]
        values = gguf.dequantize(block.reshape(1, -1), t).astype("<f4").reshape(-1)
        assert values.size == elems and np.isfinite(values).all()
        print(name, block.tobytes().hex(), values.tobytes().hex())
