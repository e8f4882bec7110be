#!/usr/bin/env python3
"""A fleet of three is restarted one by one under load, then one is killed.

    rolling.py [--front nginx|envoy|stock] [--streams 60] [--rounds 1] [--kills 3] [--delay 0]

Three inferd processes (CPU, one thread each) serve on fixed ports. Callers reach them through a real nginx or Envoy with
its file from deploy/, or as stock gRPC clients with static addresses, round_robin, health checks and a retry policy. Each round
restarts every process: SIGTERM, wait for the end, start anew, READY, next. Then --kills times one is killed with SIGKILL and
started anew.

Passes when no call failed during the restarts, each restarted process ended with code 0 within its drain limit, every call that was
refused was served elsewhere (servers count refusals, callers see none), and after a kill at least 99 % of the streams that were not
on the killed process ended well.
"""
import argparse
import asyncio
import sys
import time

import fleet
from fleet import Load, Member, channel, codes, core_of, free_ports, percentile, verdict

SETS = {"engine.threads": 1, "engine.kv_blocks": 1024, "engine.max_sequences": 32, "engine.context_length": 2048,
        "server.drain_s": 30, "server.rpc_threads": 1}


async def restart_all(members, rounds, rows):
    for r in range(rounds):
        for i, m in enumerate(members):
            await asyncio.sleep(2)
            code, seconds = await asyncio.to_thread(m.terminate)
            down = time.monotonic()
            await asyncio.to_thread(m.start)
            rows.append((r, i, code, seconds, time.monotonic() - down))


async def kill_one(m, load, rows):
    """Streams that are on it may break; all others may not."""
    await asyncio.sleep(3)
    running = m.server.status().running
    known, at = len(load.done), time.monotonic()
    await asyncio.to_thread(m.kill)
    await asyncio.sleep(8)
    await asyncio.to_thread(m.start)
    await asyncio.sleep(2)
    rows.append((at, known, len(load.done), running))


def judge_kill(members, killed, load, row):
    """Lost: in flight at the kill, and no survivor says that it was there."""
    at, first, last, _ = row
    lost = others = failed = 0
    ended_by_survivors = {w[4:] for k, m in enumerate(members) if k != killed for line in m.events("request")
                          for w in line.split() if w.startswith("req=")}
    for s in load.done[first:last]:
        on_killed = not s.ok and s.start <= at and s.id not in ended_by_survivors
        lost += on_killed
        others += not on_killed
        failed += not on_killed and not s.ok
    return lost, others, failed


async def run(o):
    members = [Member(port, {**SETS, "server.drain_delay_s": o.delay}) for port in free_ports(3)]
    front = None if o.front == "stock" else getattr(fleet, o.front)([m.port for m in members])
    try:
        stock = "ipv4:" + ",".join(f"127.0.0.1:{m.port}" for m in members)
        channels = [channel(f"127.0.0.1:{front.port}" if front else stock, balanced=not front, retry=not o.no_retry) for _ in range(6)]
        load = Load(channels, o.streams, 12, o.tokens)
        load.start()
        restarts, kills = [], []
        await restart_all(members, o.rounds, restarts)
        await asyncio.sleep(2)
        n_restart = len(load.done)
        for k in range(o.kills):
            await kill_one(members[k % 3], load, kills)
        await load.stop()
        for c in channels:
            await c.close()
        return report(o, members, load, restarts, n_restart, kills)
    finally:
        if front:
            if o.verbose:
                print(front.errors()[-3000:])
            front.close()
        for m in members:
            m.kill()


def report(o, members, load, restarts, n_restart, kills):
    failures, part = [], load.done[:n_restart]
    front = "stock clients: round_robin, health checks" if o.front == "stock" else f"{o.front} with its file from deploy/"
    front += ", callers without retries" if o.no_retry else ", callers with a retry policy"
    print(f"3 x inferd (core {core_of(members[0].server)}), {o.streams} streams of {o.tokens // 2}..{o.tokens} tokens; {front}")
    print("| round | process | exit code | drained in s | READY again in s |\n|---|---|---|---|---|")
    for r, i, code, seconds, up in restarts:
        print(f"| {r + 1} | {i} | {code} | {seconds:.2f} | {up:.2f} |")
        if code != 0 or seconds > SETS["server.drain_s"] + 2:
            failures.append(f"process {i} ended with {code} after {seconds:.1f} s")
    refused = sum(len(m.events("refused")) for m in members)
    bad = [s for s in part if not s.ok]
    print(f"rolling restart: {len(part)} calls, {codes(part)}; broken after they began: {sum(s.broken for s in part)}; refusals by "
          f"the servers: {refused}; slowest first token {max(s.first - s.start for s in part if s.first):.2f} s, "
          f"p99 {percentile([s.first - s.start for s in part if s.first], 99):.2f} s")
    if bad:
        failures.append(f"{len(bad)} calls failed during the restarts, e.g. {bad[0].code} {bad[0].details!r}")
    print("| kill | ran there | lost with the process | other streams | of them failed | success of the others |\n|---|---|---|---|---|---|")
    for k, row in enumerate(kills):
        lost, others, failed = judge_kill(members, k % 3, load, row)
        print(f"| {k + 1} | {row[3]} | {lost} | {others} | {failed} | {100 * (1 - failed / others):.2f} % |")
        if failed > 0.01 * others:
            failures.append(f"kill {k + 1}: {failed} of {others} other streams failed")
    if o.verbose:
        for s in load.done:
            if not s.ok:
                print("  ", s.id, s.code, s.details, s.reason, f"began {s.first is not None}", f"{s.seconds:.2f} s")
    return verdict(failures)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--front", choices=("nginx", "envoy", "stock"), default="stock")
    a.add_argument("--streams", type=int, default=60)
    a.add_argument("--tokens", type=int, default=40)
    a.add_argument("--rounds", type=int, default=1)
    a.add_argument("--kills", type=int, default=3)
    a.add_argument("--delay", type=int, default=0, help="server.drain_delay_s")
    a.add_argument("--no-retry", action="store_true", help="callers without a retry policy")
    a.add_argument("--verbose", action="store_true")
    sys.exit(asyncio.run(asyncio.wait_for(run(a.parse_args()), 600)))


if __name__ == "__main__":
    main()
