"""Writes GGUF files (version 3) for tests: the one writer in Python. Shares no code with inferd; needs nothing but Python."""
import pathlib
import struct

ALIGNMENT = 32
F32 = 0  # a tensor's type; others: make_tiny.py
KEY_U32, KEY_I32, KEY_F32, KEY_BOOL, KEY_STRING, KEY_ARRAY = 4, 5, 6, 7, 8, 9


def string(s):
    """s: str or bytes."""
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def value(v):
    """A key's type and value. v: bool, int (u32), float (f32), str or bytes, or a list of strings, ints (i32) or floats."""
    if isinstance(v, bool):
        return struct.pack("<I?", KEY_BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", KEY_U32, v)
    if isinstance(v, float):
        return struct.pack("<If", KEY_F32, v)
    if isinstance(v, (str, bytes)):
        return struct.pack("<I", KEY_STRING) + string(v)
    if isinstance(v[0], (str, bytes)):
        kind, items = KEY_STRING, map(string, v)
    elif isinstance(v[0], int):
        kind, items = KEY_I32, (struct.pack("<i", x) for x in v)
    else:
        kind, items = KEY_F32, (struct.pack("<f", x) for x in v)
    return struct.pack("<IIQ", KEY_ARRAY, kind, len(v)) + b"".join(items)


def pairs(keys):
    """keys: name -> value."""
    return b"".join(string(k) + value(v) for k, v in keys.items())


def padded(raw):
    return raw + bytes(-len(raw) % ALIGNMENT)


def write(path, keys, tensors):
    """keys: name -> value; tensors: name -> (shape, fastest dimension first, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + pairs(keys)
    data, at = [], 0
    for name, (shape, kind, raw) in tensors.items():
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        data.append(padded(raw))
        at += len(data[-1])
    pathlib.Path(path).write_bytes(padded(head) + b"".join(data))
