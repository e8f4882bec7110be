#!/usr/bin/env python3
"""What a drain does to callers who neither watch the health service nor retry.

    goaway.py [--drains 20] [--callers 32]

Each drain: a server, --callers that send one-token calls without pause over eight connections, SIGTERM. Counted are the calls' ends from
the signal on. OK and UNAVAILABLE are right: the one was served, the other can be repeated elsewhere. CANCELLED, which no retry
policy repeats, is what gRPC core makes of a call that reaches a server which has been shut.

Passes when there is nothing else, and no CANCELLED with the bundled core.
"""
import argparse
import asyncio
import collections
import signal
import sys

from fleet import Server, channel, core_of, ids_request, rpc, verdict

import grpc
import harness

CHANNELS = 8
SETS = {"engine.threads": 1, "engine.kv_blocks": 256, "engine.context_length": 512, "server.rpc_threads": 1}


async def caller(stub, state, ends):
    """Until the server is gone: two connections in a row that were refused."""
    gone = 0
    while gone < 2:
        try:
            async for _ in stub.Generate(ids_request([5, 6, 7], 1)):
                pass
            code, text = "OK", ""
        except grpc.aio.AioRpcError as e:
            code, text = e.code().name, e.details() or ""
        if state["draining"]:
            ends[code] += 1
        refused = "onnect" in text and code == "UNAVAILABLE"
        gone = gone + 1 if refused else 0


async def drain(o, ends):
    with Server(SETS) as s:
        channels = [channel(s.address, retry=False) for _ in range(CHANNELS)]
        state = {"draining": False}
        tasks = [asyncio.create_task(caller(rpc.InferenceStub(channels[i % CHANNELS]), state, ends)) for i in range(o.callers)]
        await asyncio.sleep(1)
        state["draining"] = True
        s.signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        code = await asyncio.to_thread(s.wait_exit, 20)
        for c in channels:
            await c.close()
        return core_of(s), code


async def run(o):
    failures, total = [], collections.Counter()
    print("| drain | ends from the signal on | exit code |\n|---|---|---|")
    for i in range(o.drains):
        ends = collections.Counter()
        core, code = await drain(o, ends)
        total += ends
        print(f"| {i + 1} | {dict(sorted(ends.items()))} | {code} |", flush=True)
        if code != 0:
            failures.append(f"drain {i + 1}: exit code {code}")
    print(f"core {core}; {o.callers} callers; in all {dict(sorted(total.items()))}")
    bundled = harness._option("INFERD_GRPC") == "bundled"
    for code in set(total) - {"OK", "UNAVAILABLE"} - (set() if bundled else {"CANCELLED"}):
        failures.append(f"{total[code]} calls ended {code}")
    return verdict(failures)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--drains", type=int, default=20)
    a.add_argument("--callers", type=int, default=32)
    sys.exit(asyncio.run(run(a.parse_args())))


if __name__ == "__main__":
    main()
