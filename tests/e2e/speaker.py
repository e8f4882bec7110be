"""A model that says one given row of logits, whatever it reads: every matrix is zero, so the row is the head's bias, bit for bit."""
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "data"))
import gguf_writer  # noqa: E402

EMBED, CONTEXT = 64, 2048


def write_speaker(path, logits, name="speaker"):
    n = len(logits)
    keys = {"general.architecture": "llama", "general.name": name, "llama.block_count": 1, "llama.context_length": CONTEXT,
            "llama.embedding_length": EMBED, "llama.feed_forward_length": EMBED, "llama.attention.head_count": 1,
            "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [f"t{i}" for i in range(n)], "tokenizer.ggml.scores": [float(-i) for i in range(n)],
            "tokenizer.ggml.token_type": [1] * n}
    zeros, ones = (lambda *shape: (shape, gguf_writer.F32, bytes(4 * shape[0] * shape[1]))), (
        (EMBED,), gguf_writer.F32, struct.pack("<f", 1) * EMBED)
    tensors = {"token_embd.weight": zeros(EMBED, n), "output_norm.weight": ones, "output.weight": zeros(EMBED, n),
               "output.bias": ((n,), gguf_writer.F32, struct.pack(f"<{n}f", *logits)), "blk.0.attn_norm.weight": ones, "blk.0.ffn_norm.weight": ones}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = zeros(EMBED, EMBED)
    gguf_writer.write(path, keys, tensors)


def write_with_tokenizer(path, source, n_vocab):
    """A copy of model `source`, which has no tokenizer, with one whose pieces are t0, t1, ...: its keys go before the others, filled up
    to the alignment, so that nothing behind them changes."""
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [f"t{i}" for i in range(n_vocab)],
            "tokenizer.ggml.scores": [float(-i) for i in range(n_vocab)], "tokenizer.ggml.token_type": [1] * n_vocab}
    added, filler = gguf_writer.pairs(keys), "test.filler"
    added += gguf_writer.pairs({filler: "." * (-len(added + gguf_writer.pairs({filler: ""})) % gguf_writer.ALIGNMENT)})
    raw = source.read_bytes()
    magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", raw)
    path.write_bytes(struct.pack("<4sIQQ", magic, version, n_tensors, n_keys + len(keys) + 1) + added + raw[24:])
