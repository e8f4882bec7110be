#!/usr/bin/env python3
"""One tenant sends fifty times its share; the four others keep theirs.

    tenants.py [--seconds 30] [--times 50] [--hog-prompt 16] [--deadline S]

Capacity is measured first, with all five tenants in a closed loop; a fifth of it is a fair share. Then four tenants send their fair
share at even intervals and the fifth --times as much, open loop, without retries. Each tenant has a bearer token. The server has one
core (taskset), this client the other. --deadline: the greedy tenant gives its calls this deadline, which would put them first if
deadlines went before turns.

Passes when each of the four gets at least 80 % of a fair share of the tokens, in calls that ended OK.
"""
import argparse
import asyncio
import hashlib
import os
import pathlib
import random
import sys
import tempfile
import time

from fleet import channel, codes, core_of, percentile, run_stream, verdict

from harness import Server, ids_request, rpc

TENANTS = ("a", "b", "c", "d", "greedy")
SETS = {"engine.threads": 1, "engine.kv_blocks": 1024, "engine.context_length": 2048, "server.rpc_threads": 1}


def bearer(tenant):
    return (("authorization", f"Bearer token-of-{tenant}"),)


def request(r, prompt, o):
    return ids_request([r.randrange(100, 40000) for _ in range(prompt)], o.tokens)


async def capacity(stubs, seconds, o):
    done, end = [], time.monotonic() + seconds

    async def caller(i):
        r = random.Random(i)
        while time.monotonic() < end:
            tenant = TENANTS[i % 5]
            done.append(await run_stream(stubs[tenant], request(r, o.prompt, o), 120, bearer(tenant)))

    start = time.monotonic()
    await asyncio.gather(*(caller(i) for i in range(2 * o.sequences)))
    a, b = start + seconds * 0.3, start + seconds
    return sum(s.tokens for s in done if s.ok and a <= s.end <= b) / (b - a)


async def arrivals(tenant, stub, rate, poisson, seconds, prompt, o, done, tasks, deadline=None):
    r = random.Random(tenant)
    next_at = time.monotonic() + r.random() / rate

    async def one():
        done.append(await run_stream(stub, request(r, prompt, o), deadline, bearer(tenant)))

    end = time.monotonic() + seconds
    while next_at < end:
        delay = next_at - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        t = asyncio.create_task(one())
        tasks.add(t)
        t.add_done_callback(tasks.discard)
        next_at += r.expovariate(rate) if poisson else 1 / rate


async def run(o, s, failures):
    channels = {t: channel(s.address, retry=False) for t in TENANTS}
    stubs = {t: rpc.InferenceStub(c) for t, c in channels.items()}
    await capacity(stubs, 2, o)
    peak = await capacity(stubs, o.seconds / 2, o)
    fair = peak / 5
    rate = fair / o.tokens
    done, tasks, start = {t: [] for t in TENANTS}, set(), time.monotonic()
    await asyncio.gather(*(arrivals(t, stubs[t], rate * (o.times if t == "greedy" else 1), t == "greedy", o.seconds,
                                    o.hog_prompt if t == "greedy" else o.prompt, o, done[t], tasks,
                                    o.deadline if t == "greedy" else None) for t in TENANTS))
    end = time.monotonic()
    for t in list(tasks):
        t.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(f"core {core_of(s)}; {o.tokens} output tokens a call, prompts of {o.prompt} (greedy {o.hog_prompt}); {o.sequences} sequences, "
          f"queue of {o.queue}; capacity {peak:.0f} tokens/s, a fair share is {fair:.0f}")
    print("| tenant | offered, x fair share | tokens/s | of a fair share | OK | other ends | first token p50 s | p99 s |")
    print("|---|---|---|---|---|---|---|---|")
    a = start + (end - start) * 0.3
    for t in TENANTS:
        ok = [x for x in done[t] if x.ok]
        got = sum(x.tokens for x in ok if x.end >= a) / (end - a)
        first = [x.first - x.start for x in ok]
        rest = codes([x for x in done[t] if not x.ok])
        print(f"| {t} | {o.times if t == 'greedy' else 1} | {got:.1f} | {100 * got / fair:.0f} % | {len(ok)} | {rest or ''} | "
              f"{percentile(first, 50):.2f} | {percentile(first, 99):.2f} |")
        if t != "greedy" and got < 0.8 * fair:
            failures.append(f"{t} got {100 * got / fair:.0f} % of its fair share")
    for c in channels.values():
        await c.close()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--seconds", type=float, default=30)
    a.add_argument("--times", type=float, default=50)
    a.add_argument("--sequences", type=int, default=16)
    a.add_argument("--queue", type=int, default=64)
    a.add_argument("--prompt", type=int, default=16)
    a.add_argument("--hog-prompt", type=int, default=16)
    a.add_argument("--tokens", type=int, default=32)
    a.add_argument("--deadline", type=float)
    o = a.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    failures = []
    with tempfile.TemporaryDirectory(prefix="inferd-tenants-") as tmp:
        tokens = pathlib.Path(tmp) / "tokens"
        tokens.write_text("".join(f"sha256:{hashlib.sha256(f'token-of-{t}'.encode()).hexdigest()} {t}\n" for t in TENANTS))
        os.sched_setaffinity(0, cpus[:1])  # the server takes this over
        with Server({**SETS, "engine.max_sequences": o.sequences, "queue.max_requests": o.queue, "auth.tokens_file": tokens}) as s:
            os.sched_setaffinity(0, cpus[1:] or cpus)
            asyncio.run(run(o, s, failures))
    sys.exit(verdict(failures))


if __name__ == "__main__":
    main()
