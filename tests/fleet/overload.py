#!/usr/bin/env python3
"""Ten times more than it can do: goodput, refusals, memory, recovery.

    overload.py [--seconds 20] [--factors 2,5,10] [--sequences 16]

Capacity first: closed loop with as many callers as the server runs sequences plus as many waiting. Then open loop: Poisson arrivals at
1x, 2x, 5x and 10x that rate, without retries. The server has one core (taskset), this client and everything else the
other. Goodput is output tokens a second of calls that ended OK, without the first 30 % of the time, in which the queue fills. The KV
pool is small, so that it is in memory (touched) before memory is watched.

Passes when goodput at each factor is at least 90 % of the best of all, refusals' p99 is at most 20 ms (client's clock, call to
trailers), memory grew by less than 64 MiB over the whole run, and within 10 s after the overload a call is
served within twice what it took before.
"""
import argparse
import asyncio
import os
import random
import sys
import time

from fleet import channel, codes, core_of, percentile, run_stream, verdict

from harness import Server, ids_request, rpc

SETS = {"engine.threads": 1, "engine.kv_blocks": 128, "engine.context_length": 2048, "server.rpc_threads": 1}


def request(r, o):
    return ids_request([r.randrange(100, 40000) for _ in range(o.prompt)], o.tokens)


async def closed_loop(stub, n, seconds, o):
    done, end = [], time.monotonic() + seconds

    async def caller(i):
        r = random.Random(i)
        while time.monotonic() < end:
            done.append(await run_stream(stub, request(r, o), 120))

    await asyncio.gather(*(caller(i) for i in range(n)))
    return done


async def open_loop(stubs, rate, seconds, o, server, memory):
    """Arrivals do not wait for answers; what is under way at the end is cancelled, and not counted."""
    r, done, tasks = random.Random(int(rate * 1000)), [], set()
    start = next_at = time.monotonic()

    async def one(i):
        done.append(await run_stream(stubs[i % len(stubs)], request(r, o), o.deadline))

    i = 0
    while next_at < start + seconds:
        delay = next_at - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        t = asyncio.create_task(one(i))
        tasks.add(t)
        t.add_done_callback(tasks.discard)
        next_at += r.expovariate(rate)
        i += 1
        if i % 50 == 0:
            memory.append(server.rss_bytes())
    end = time.monotonic()
    for t in list(tasks):
        t.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return done, i / (end - start), start, end


def goodput(done, start, end, o):
    """Tokens a second of calls that ended well within the middle of the time."""
    a, b = start + (end - start) * o.skip, end
    return sum(s.tokens for s in done if s.ok and a <= s.end <= b) / (b - a)


async def time_to_recover(stub, before_s, o, end):
    """Seconds after the overload until a call is served as fast as before (twice its time)."""
    r = random.Random(99)
    while time.monotonic() < end + 30:
        s = await run_stream(stub, request(r, o), 60)
        if s.ok and s.seconds < 2 * before_s:
            return s.end - end
        await asyncio.sleep(0.05)
    return 1e9


async def run(o, s, failures):
    channels = [channel(s.address, retry=False) for _ in range(4)]
    stubs = [rpc.InferenceStub(c) for c in channels]
    await closed_loop(stubs[0], 4, 2, o)
    r = random.Random(5)
    alone = sorted([(await run_stream(stubs[0], request(r, o), 60)).seconds for _ in range(7)])[3]
    t = time.monotonic()
    done = await closed_loop(stubs[1], 2 * o.sequences, o.seconds, o)
    peak = goodput(done, t, t + o.seconds, o)
    rate = peak / o.tokens
    rss = [s.rss_bytes()]
    print(f"core {core_of(s)}; {o.prompt} prompt and {o.tokens} output tokens, {o.sequences} sequences, queue of {o.queue}; "
          f"alone a call takes {alone * 1000:.0f} ms")
    print(f"capacity, closed loop with {2 * o.sequences} callers: {peak:.0f} tokens/s, {rate:.1f} calls/s")
    print("| offered | calls/s | OK | refused | goodput tokens/s | of the peak | refusal p50 ms | p99 ms | first token p50 s | RSS MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for factor in o.factors:
        memory = []
        done, offered, a, b = await open_loop(stubs, factor * rate, o.seconds, o, s, memory)
        recovery = await time_to_recover(stubs[0], alone, o, b)
        refused = [x for x in done if x.code == "RESOURCE_EXHAUSTED"]
        rows.append((factor, offered, done, refused, goodput(done, a, b, o), recovery))
        rss += memory or [s.rss_bytes()]
        ok = [x for x in done if x.ok]
        print(f"| {factor:g}x | {offered:.1f} | {len(ok)} | {len(refused)} | {rows[-1][4]:.0f} | {100 * rows[-1][4] / peak:.0f} % | "
              f"{1000 * percentile([x.seconds for x in refused], 50):.1f} | {1000 * percentile([x.seconds for x in refused], 99):.1f} | "
              f"{percentile([x.first - x.start for x in ok], 50):.2f} | {max(memory or rss[-1:]) / 2**20:.0f} |", flush=True)
        expired = [x for x in done if x.code == "DEADLINE_EXCEEDED"]
        if expired:
            print(f"  {len(expired)} deadlines passed, {sum(x.first is not None for x in expired)} of them after the first token")
        if len(ok) + len(refused) + (len(expired) if o.deadline else 0) != len(done):
            failures.append(f"{factor}x: other ends than OK and RESOURCE_EXHAUSTED: {codes(done)}")
    best = max([peak] + [x[4] for x in rows])
    for factor, _, _, refused, good, recovery in rows:
        if factor > 1 and good < 0.9 * best:
            failures.append(f"{factor}x: goodput {good:.0f} is {100 * good / best:.0f} % of {best:.0f}")
        if refused and percentile([x.seconds for x in refused], 99) > 0.020:
            failures.append(f"{factor}x: refusals take {1000 * percentile([x.seconds for x in refused], 99):.1f} ms at p99")
        if recovery > 10:
            failures.append(f"{factor}x: not recovered after {recovery:.1f} s")
    print("recovered after " + ", ".join(f"{x[5]:.1f} s ({x[0]:g}x)" for x in rows) +
          f"; memory {rss[0] / 2**20:.0f} -> {max(rss) / 2**20:.0f} MiB")
    if max(rss) > rss[0] + 64 * 2**20:
        failures.append("memory grew by more than 64 MiB")
    for c in channels:
        await c.close()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--seconds", type=float, default=20)
    a.add_argument("--factors", default="1,2,5,10", type=lambda t: [float(x) for x in t.split(",")])
    a.add_argument("--sequences", type=int, default=16)
    a.add_argument("--queue", type=int, default=32)
    a.add_argument("--prompt", type=int, default=16)
    a.add_argument("--tokens", type=int, default=32)
    a.add_argument("--deadline", type=float, help="of each call in the open loop, seconds; without it none")
    a.add_argument("--skip", type=float, default=0.3, help="part of the time that is not counted: the queue fills")
    o = a.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    failures = []
    os.sched_setaffinity(0, cpus[:1])  # the server takes this over
    with Server({**SETS, "engine.max_sequences": o.sequences, "queue.max_requests": o.queue}) as s:
        os.sched_setaffinity(0, cpus[1:] or cpus)
        asyncio.run(run(o, s, failures))
        s.assert_idle(10)
    sys.exit(verdict(failures))


if __name__ == "__main__":
    main()
