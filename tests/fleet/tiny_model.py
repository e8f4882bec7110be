"""A model as small as can be served: one layer, random weights, a vocabulary of bytes, a window of 64 tokens, so that a step costs the
same however long its sequences are. With it the server is measured, not the model. Deterministic; needs nothing but Python.

    tiny_model.py OUT.gguf [EMBEDDING]        EMBEDDING 256: a step of 128 sequences takes some milliseconds of one core
"""
import array
import pathlib
import random
import struct
import sys

CONTEXT, WINDOW, HEAD, VOCABULARY = 65536, 64, 32, 260
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5


def _string(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def _value(v):
    if isinstance(v, bool):
        return struct.pack("<I?", BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + _string(v)
    kind = STRING if isinstance(v[0], str) else I32
    return struct.pack("<IIQ", ARRAY, kind, len(v)) + b"".join(_string(x) if kind == STRING else struct.pack("<i", x) for x in v)


def _byte_letters():
    """The letter that byte-level BPE writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, n = {b: chr(b) for b in plain}, 0
    for b in range(256):
        if b not in letters:
            letters[b] = chr(256 + n)
            n += 1
    return [letters[b] for b in range(256)]


def write(path, embedding=256):
    rng = random.Random(7)
    letters = _byte_letters()
    tokens = letters + [letters[ord("a")] + letters[ord("b")], "<s>", "</s>", "<pad>"]
    heads, ffn = embedding // HEAD, 4 * embedding
    keys = {
        "general.architecture": "llama", "general.name": "tiny", "llama.context_length": CONTEXT,
        "llama.embedding_length": embedding, "llama.block_count": 1, "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": 1, "llama.attention.sliding_window": WINDOW,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": HEAD, "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3] * 3, "tokenizer.ggml.merges": [f"{letters[97]} {letters[98]}"],
        "tokenizer.ggml.bos_token_id": 257, "tokenizer.ggml.eos_token_id": 258, "tokenizer.ggml.add_bos_token": False,
    }
    shapes = {
        "token_embd.weight": (embedding, VOCABULARY), "output_norm.weight": (embedding,), "output.weight": (embedding, VOCABULARY),
        "blk.0.attn_norm.weight": (embedding,), "blk.0.attn_q.weight": (embedding, embedding),
        "blk.0.attn_k.weight": (embedding, HEAD), "blk.0.attn_v.weight": (embedding, HEAD),
        "blk.0.attn_output.weight": (embedding, embedding), "blk.0.ffn_norm.weight": (embedding,),
        "blk.0.ffn_gate.weight": (embedding, ffn), "blk.0.ffn_up.weight": (embedding, ffn), "blk.0.ffn_down.weight": (ffn, embedding),
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(_string(k) + _value(v) for k, v in keys.items())
    data = []
    at = 0
    for name, shape in shapes.items():
        n = 1
        for d in shape:
            n *= d
        values = array.array("f", [1.0] * n if "norm" in name else (rng.gauss(0, 0.05) for _ in range(n)))
        raw = values.tobytes() + bytes(-4 * n % 32)
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, at)
        data.append(raw)
        at += len(raw)
    pathlib.Path(path).write_bytes(head + bytes(-len(head) % 32) + b"".join(data))


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 256)
