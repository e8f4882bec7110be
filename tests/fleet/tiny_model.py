"""A model as small as can be served: one layer, random weights, a vocabulary of bytes, a window of 64 tokens, so that a step costs the
same however long its sequences are. With it the server is measured, not the model. Deterministic; needs nothing but Python.

    tiny_model.py OUT.gguf [EMBEDDING]        EMBEDDING 256: a step of 128 sequences takes some milliseconds of one core
"""
import array
import math
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "data"))
import gguf_writer  # noqa: E402

CONTEXT, WINDOW, HEAD, VOCABULARY = 65536, 64, 32, 260


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
    tensors = {}
    for name, shape in shapes.items():
        n = math.prod(shape)
        values = array.array("f", [1.0] * n if "norm" in name else (rng.gauss(0, 0.05) for _ in range(n)))
        tensors[name] = (shape, gguf_writer.F32, values.tobytes())
    gguf_writer.write(path, keys, tensors)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 256)
