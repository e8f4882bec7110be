#!/usr/bin/env python3
"""Figures that a server promises its callers, on a quiet machine, with a stock client: start to READY, memory, refusals,
and what stalled readers cost the others. Prints one line a promise; exit code 1 if one is broken.

    INFERD_BUILD=build/release serving_promises.py [--rounds 5]

The client runs on the same cores. A tail is compared within one server, with and without stalled readers in turn.
"""
import argparse
import json
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import grpc  # noqa: E402
from harness import (MODEL, Server, background, generate, ids_request, pb, refused, rpc, wait_for)  # noqa: E402

failed = 0


def promise(what, value, limit, unit, more=""):
    global failed
    good = value <= limit
    failed += not good
    print(f"{'kept  ' if good else 'BROKEN'} {what:<52} {value:8.2f} <= {limit:g} {unit}  {more}", flush=True)


def start_and_memory():
    """From fork to the ready line, the file in the page cache; and resident memory after an answer."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        with Server() as s:
            times.append(time.monotonic() - began)
    promise("start to READY, worst of 5", max(times), 0.5, "s")
    with Server({"engine.kv_memory_bytes": 256 * 2**20}) as s:
        generate(s, ids_request([3] * 500, 16))
        promise("resident memory", s.rss_bytes() / 2**20, MODEL.stat().st_size / 2**20 + 256 + 40, "MiB",
                "model + KV pool + 40 MiB")


def refusals():
    """The queue is full, the engine busy: from the call to its status, one after the other on a warm connection."""
    with Server({"engine.max_sequences": 1, "engine.kv_blocks": 256, "queue.max_requests": 2}) as s:
        with background(s, ids_request([11] * 8, 6000)):
            held = []
            for i in range(2):
                held.append(s.stub.Generate(ids_request([11] * 8, 4)))
                wait_for("waiting", lambda: s.status().waiting == i + 1, 5)
            times = []
            for _ in range(500):
                began = time.monotonic()
                refused(lambda: s.stub.Generate(ids_request([11] * 8, 4)), grpc.StatusCode.RESOURCE_EXHAUSTED)
                times.append(1e3 * (time.monotonic() - began))
            times.sort()
            promise("a refusal beside a busy engine, worst of 500", times[-1], 20, "ms", f"median {times[250]:.2f}")


def gaps_of(s, n_tokens):
    """Milliseconds between the messages of one stream."""
    gaps, last = [], None
    for _ in s.stub.Generate(ids_request([3] * 16, n_tokens)):
        now = time.monotonic()
        if last is not None:
            gaps.append(1e3 * (now - last))
        last = now
    return gaps


def stall(s, n):
    """n streams whose client stops reading with a small window; returns when the engine has paused all of them."""
    calls = []
    for _ in range(n):
        channel = s.new_channel([("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)])
        call = rpc.InferenceStub(channel).Generate(
            ids_request([5] * 16, 7000, output=pb.Output(logprobs=True, top_logprobs=20)))
        next(call)
        calls.append((channel, call))

    def paused():
        before = s.status().generated_tokens
        time.sleep(0.5)
        return s.status().generated_tokens == before

    wait_for("all stalled streams are paused", paused, 120)
    return calls


def held_bytes(s):
    """Resident memory less the KV blocks in use: touched for the first time, they count as growth too."""
    memory = s.events("memory")[0]
    block_bytes = int(re.search(r"kv_bytes=(\d+)", memory)[1]) // int(re.search(r"kv_blocks=(\d+)", memory)[1])
    status = s.status()
    return s.rss_bytes() - (status.kv_blocks_total - status.kv_blocks_free) * block_bytes


def stalled_readers(rounds):
    alone, beside, growth = [], [], []
    with Server({"engine.kv_blocks": 2048, "engine.max_sequences": 16, "limits.slow_reader_s": 600}) as s:
        gaps_of(s, 200)  # warm
        for _ in range(rounds):
            alone += gaps_of(s, 400)
            before = held_bytes(s)
            calls = stall(s, 8)
            growth.append((held_bytes(s) - before) / 2**20)
            beside += gaps_of(s, 400)
            for channel, call in calls:
                call.cancel()
                channel.close()
            s.assert_idle()
    alone.sort()
    beside.sort()
    at = int(0.99 * len(alone))
    promise("p99 between tokens beside 8 stalled readers / alone", beside[at] / alone[at], 1.10, "",
            f"p99 {beside[at]:.2f} and {alone[at]:.2f} ms, p50 {beside[len(beside) // 2]:.2f} and {alone[len(alone) // 2]:.2f}")
    promise("memory that 8 stalled readers hold besides their KV", growth[0], 16, "MiB", "the first time")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    start_and_memory()
    refusals()
    stalled_readers(rounds)
    print(json.dumps({"broken": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
