#!/usr/bin/env python3
"""Thousands of waiting streams beside those that run: memory a stream, and what they take from the pace of the others.

    streams.py [--active 128] [--idle 4096] [--connections 16] [--seconds 5] [--rounds 3] [--embedding 512]

Two servers with the smallest of models: one where a single stream runs, for the memory (nothing else grows then); one where --active
run, for the gaps between their tokens, alone and beside --idle waiting ones in turn. The client (bench_streams, in INFERD_BUILD) uses
one thread of the same machine. Exit 1 above 32 KiB a stream or 1.2 times the p99 alone.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
sys.path.insert(0, str(HERE))

import tiny_model  # noqa: E402
from harness import BUILD, Server  # noqa: E402


def run(model, active, o, seconds, rounds):
    sets = {"engine.threads": 1, "engine.max_sequences": active, "engine.kv_blocks": 80000, "server.max_streams": 4096,
            "queue.max_requests": o.idle + active, "queue.max_tokens": 1 << 20, "log.level": "error", "engine.max_step_tokens": 256,
            "server.drain_s": 0}
    with Server(sets, model=model) as s:
        out = subprocess.run([BUILD / "bench_streams", s.address, str(s.process.pid), str(active), str(o.idle), str(o.connections),
                              str(seconds), str(rounds)], capture_output=True, text=True)
    print(out.stdout + out.stderr, flush=True)
    if out.returncode != 0:
        sys.exit(f"bench_streams: exit {out.returncode}")
    return out.stdout


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--active", type=int, default=128)
    a.add_argument("--idle", type=int, default=4096)
    a.add_argument("--connections", type=int, default=16)
    a.add_argument("--seconds", type=int, default=5)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--embedding", type=int, default=512)
    o = a.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferd-streams-") as tmp:
        model = pathlib.Path(tmp) / "tiny.gguf"
        tiny_model.write(model, o.embedding)
        print(f"{BUILD.name}: memory, 1 running and {o.idle} waiting on {o.connections} connections")
        kib = float(re.search(r"memory: ([-\d.]+) KiB", run(model, 1, o, 1, 1))[1])
        print(f"{BUILD.name}: pace, {o.active} running, {o.idle} waiting on {o.connections} connections")
        ratio = float(re.search(r"beside / alone: ([\d.]+)", run(model, o.active, o, o.seconds, o.rounds))[1])
    good = kib <= 32 and ratio <= 1.2
    print(f"{BUILD.name}: {kib:.1f} KiB a waiting stream (limit 32), p99 {ratio:.2f} times that alone (limit 1.2): "
          f"{'kept' if good else 'BROKEN'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
