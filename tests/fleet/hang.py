#!/usr/bin/env python3
"""The watchdog tells the truth: a hung engine is noticed, a busy one is not suspected.

    hang.py hung [--runs 20] [--together 5]      needs a build with -DINFERD_FAULTS=ON (INFERD_BUILD)
    hang.py busy [--minutes 30] [--streams 1]    any build

hung: each run starts a server whose backend hangs in the middle of a step (INFERD_FAULT=OP:N:hang; op and step differ by run) under
four streams, with the default limits (not ready after 5 s, exit after 30 s). Time counts from the last token that came. It passes
when in every run readiness fell within 5 s, liveness too, callers got
UNAVAILABLE STALLED, and the process ended with code 7 within 30 s.

busy: streams at a low rate with pauses, a burst of 16 now and then. It passes when readiness and liveness were SERVING at every look
and the server logged no engine_not_moving.
"""
import argparse
import asyncio
import os
import pathlib
import random
import sys
import threading
import time

from fleet import Load, channel, codes, core_of, percentile, verdict

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import BUILD, Server, ids_request, pb, rpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
OPS = ("begin_step", "qkv", "attention", "attn_output", "gate_up", "down", "head", "sample", "end_step", "wait_step")
LAYERS = 30
STARTING = threading.Lock()  # the environment is the process's: one server starts at a time


class Watcher(threading.Thread):
    """When a health service's state changed."""

    def __init__(self, server, service):
        super().__init__(daemon=True)
        self.changes, self.service = [], service
        self.stub = health_pb2_grpc.HealthStub(server.new_channel())
        self.start()

    def run(self):
        try:
            for m in self.stub.Watch(health_pb2.HealthCheckRequest(service=self.service)):
                self.changes.append((time.monotonic(), m.status))
        except grpc.RpcError:
            pass

    def fell(self):
        return next((t for t, s in self.changes if s == NOT_SERVING), None)


class Caller(threading.Thread):
    def __init__(self, server, i):
        super().__init__(daemon=True)
        self.stub, self.i, self.last, self.end, self.ended = rpc.InferenceStub(server.new_channel()), i, 0.0, None, None
        self.start()

    def run(self):
        try:
            for _ in self.stub.Generate(ids_request([50 + self.i] * 8, 1000)):
                self.last = time.monotonic()
        except grpc.RpcError as e:
            self.end = (e.code().name, next((v for k, v in e.trailing_metadata() or () if k == "grpc-status-details-bin"), b""))
        self.ended = time.monotonic()


def hung_run(i, row):
    op = OPS[i % len(OPS)]
    step = 40 + 7 * i  # later than the known-answer test at the start
    n = step * LAYERS if op in ("qkv", "attention", "attn_output", "gate_up", "down") else step
    with STARTING:
        os.environ["INFERD_FAULT"] = f"{op}:{n}:hang"
        s = Server({"engine.threads": 1, "engine.kv_blocks": 256, "engine.context_length": 2048}, stderr_empty=False)
        del os.environ["INFERD_FAULT"]
    try:
        ready, live = Watcher(s, "readiness"), Watcher(s, "liveness")
        callers = [Caller(s, k) for k in range(4)]
        code = s.process.wait(120)
        ended = time.monotonic()
        for c in callers:
            c.join(10)
        last = max(c.last for c in callers)
        late = [c.end[0] if c.end else "OK" for c in callers if not (c.end and c.end[0] == "UNAVAILABLE")]
        named = sum(b"STALLED" in c.end[1] for c in callers if c.end)
        row.update(op=op, n=n, code=code, exit_s=ended - last, ready_s=(ready.fell() or 1e9) - last,
                   live_s=(live.fell() or 1e9) - last, streams=late, named=named, core=core_of(s))
    finally:
        s.kill()


def hung(o):
    rows, failures = [], []
    for first in range(0, o.runs, o.together):
        batch = [{} for _ in range(first, min(first + o.together, o.runs))]
        threads = []
        for k, row in enumerate(batch):
            threads.append(threading.Thread(target=hung_run, args=(first + k, row)))
            threads[-1].start()
        for t in threads:
            t.join()
        rows += batch
    print(f"inferd with INFERD_FAULTS, core {rows[0].get('core')}; seconds since the last token")
    print("| run | hangs in | readiness fell | liveness fell | exit | code |\n|---|---|---|---|---|---|")
    for i, r in enumerate(rows):
        if not r:
            failures.append(f"run {i + 1} came to nothing")
            continue
        print(f"| {i + 1} | {r['op']} call {r['n']} | {r['ready_s']:.2f} | {r['live_s']:.2f} | {r['exit_s']:.2f} | {r['code']} |")
        if r["code"] != 7 or r["exit_s"] > 30:
            failures.append(f"run {i + 1}: exit code {r['code']} after {r['exit_s']:.1f} s")
        if not 0 < r["ready_s"] <= 5 or not 0 < r["live_s"] <= 5:
            failures.append(f"run {i + 1}: readiness fell after {r['ready_s']:.2f} s, liveness after {r['live_s']:.2f} s")
        if r["streams"]:
            failures.append(f"run {i + 1}: streams ended with {r['streams']}, not UNAVAILABLE")
    good = [r for r in rows if r]
    print(f"{len(good)} runs: readiness fell after at most {max(r['ready_s'] for r in good):.2f} s, exit after at most "
          f"{max(r['exit_s'] for r in good):.2f} s; all {4 * len(good)} streams ended UNAVAILABLE")
    return verdict(failures)


async def busy_load(s, o, looks):
    c = channel(s.address)
    health = health_pb2_grpc.HealthStub(s.channel)
    load = Load([c], o.streams, 24, 32, pause_s=1.0)
    load.start()
    bursts, end, next_burst = [], time.monotonic() + 60 * o.minutes, time.monotonic() + 30
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        for service in ("readiness", "liveness"):
            try:
                looks.append((await asyncio.to_thread(health.Check, health_pb2.HealthCheckRequest(service=service), timeout=5)).status)
            except grpc.RpcError as e:
                looks.append(e.code().name)
        if time.monotonic() > next_burst:
            burst = Load([c], 16, random.choice((16, 400)), 24)
            burst.start()
            bursts.append(burst)
            await asyncio.sleep(2)
            await burst.stop()
            next_burst = time.monotonic() + 120
    await load.stop()
    await c.close()
    return load.done, [s for b in bursts for s in b.done]


def busy(o):
    looks = []
    with Server({"engine.threads": 1, "engine.kv_blocks": 1024, "engine.context_length": 2048}) as s:
        start = time.monotonic()
        done, burst = asyncio.run(busy_load(s, o, looks))
        minutes = (time.monotonic() - start) / 60
        alarms, steps = s.events("engine_not_moving"), s.status().generated_tokens
        tasks = pathlib.Path(f"/proc/{s.process.pid}/task").glob("*/schedstat")
        ran, waited = (sum(v) / 1e9 for v in zip(*(map(int, t.read_text().split()[:2]) for t in tasks)))
        core = core_of(s)
    wrong = [x for x in looks if x != SERVING]
    print(f"core {core}; {minutes:.1f} minutes: {len(done)} streams one after another, {len(burst)} in bursts, {steps} tokens, "
          f"{codes(done + burst)}")
    print(f"{len(looks)} looks at readiness and liveness: {len(wrong)} not SERVING; engine_not_moving logged: {len(alarms)}")
    print(f"the server's threads ran for {ran:.0f} s and waited for a core for {waited:.0f} s", *alarms, sep="\n")
    print(f"first token p99 {percentile([x.first - x.start for x in done + burst if x.first], 99):.2f} s")
    failures = [] if not wrong else [f"{len(wrong)} looks were not SERVING: {wrong[:5]}"]
    if alarms:
        failures.append(f"{len(alarms)} false alarms")
    if any(not x.ok for x in done + burst):
        failures.append("streams failed")
    return verdict(failures)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = a.add_subparsers(dest="what", required=True)
    h = sub.add_parser("hung")
    h.add_argument("--runs", type=int, default=20)
    h.add_argument("--together", type=int, default=5)
    b = sub.add_parser("busy")
    b.add_argument("--minutes", type=float, default=30)
    b.add_argument("--streams", type=int, default=1)
    o = a.parse_args()
    sys.exit(hung(o) if o.what == "hung" else busy(o))


if __name__ == "__main__":
    main()
