"""A model that says one given row of logits, whatever it reads: every matrix is zero, so the row is the head's bias, bit for bit."""
import struct

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
EMBED, CONTEXT = 64, 2048


def _string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def _value(v):
    if isinstance(v, list):
        kind = STRING if isinstance(v[0], str) else F32 if isinstance(v[0], float) else I32
        items = (_string(x) if kind == STRING else struct.pack("<f" if kind == F32 else "<i", x) for x in v)
        return struct.pack("<IIQ", ARRAY, kind, len(v)) + b"".join(items)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + _string(v)
    return struct.pack("<If", F32, v) if isinstance(v, float) else struct.pack("<II", U32, v)


def write_gguf(path, keys, tensors):
    """keys: name -> int (u32), float (f32), str, or a list of these; tensors: name -> (shape, float32 bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(_string(k) + _value(v) for k, v in keys.items())
    data = b""
    for name, (shape, raw) in tensors.items():
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def write_speaker(path, logits):
    n = len(logits)
    keys = {"general.architecture": "llama", "general.name": "speaker", "llama.block_count": 1, "llama.context_length": CONTEXT,
            "llama.embedding_length": EMBED, "llama.feed_forward_length": EMBED, "llama.attention.head_count": 1,
            "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [f"t{i}" for i in range(n)], "tokenizer.ggml.scores": [float(-i) for i in range(n)],
            "tokenizer.ggml.token_type": [1] * n}
    zeros, ones = (lambda *shape: (shape, bytes(4 * shape[0] * shape[1]))), ((EMBED,), struct.pack("<f", 1) * EMBED)
    tensors = {"token_embd.weight": zeros(EMBED, n), "output_norm.weight": ones, "output.weight": zeros(EMBED, n),
               "output.bias": ((n,), struct.pack(f"<{n}f", *logits)), "blk.0.attn_norm.weight": ones, "blk.0.ffn_norm.weight": ones}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = zeros(EMBED, EMBED)
    write_gguf(path, keys, tensors)


def write_with_tokenizer(path, source, n_vocab):
    """A copy of model `source`, which has no tokenizer, with one whose pieces are t0, t1, ...: its keys go before the others, filled up
    to the alignment, so that nothing behind them changes."""
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [f"t{i}" for i in range(n_vocab)],
            "tokenizer.ggml.scores": [float(-i) for i in range(n_vocab)], "tokenizer.ggml.token_type": [1] * n_vocab}
    added = b"".join(_string(k) + _value(v) for k, v in keys.items())
    filler = _string("test.filler")
    added += filler + _value("." * (-(len(added) + len(filler) + 12) % 32))
    raw = source.read_bytes()
    magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", raw)
    path.write_bytes(struct.pack("<4sIQQ", magic, version, n_tensors, n_keys + len(keys) + 1) + added + raw[24:])
