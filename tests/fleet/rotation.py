#!/usr/bin/env python3
"""Certificates replaced under load: ROUNDS new pairs while STREAMS callers stream on connections of their own and KEPT streams run through
all of it. Each round must be seen by new handshakes; no stream may fail. Every fourth round a bad pair is put first: it must be
counted and the old one stay.

    rotation.py [--rounds 50] [--streams 16] [--mtls]        INFERD_BUILD, INFERD_MODEL as for the end-to-end tests

Exit 1 if a stream failed, a certificate was not taken, or a bad one was not counted.
"""
import argparse
import pathlib
import signal
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import grpc  # noqa: E402
from harness import BUILD, Answer, Server, ids_request, rpc, wait_for  # noqa: E402
from identity import Authority, secure_channel, serial_in, serial_of  # noqa: E402
from test_auth import metric  # noqa: E402
from test_tls import Files, Load  # noqa: E402


class Kept:
    """Streams on one old connection that are read to their end, again and again; the connection is never made anew."""

    def __init__(self, channel, n):
        self.stop, self.done, self.messages, self.failures = False, 0, 0, []
        self.stub = rpc.InferenceStub(channel)
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(n)]
        [t.start() for t in self.threads]

    def _run(self, i):
        while not self.stop:
            try:
                messages = list(self.stub.Generate(ids_request([60 + i] * 8, 100)))
                Answer(messages)
                self.messages += len(messages)
                self.done += 1
            except Exception as e:  # noqa: BLE001 - counted
                self.failures.append(repr(e))

    def join(self):
        self.stop = True
        [t.join() for t in self.threads]


def rotate(server, authority, i, seen_ms):
    """One round; a bad pair first in every fourth."""
    if i % 4 == 3:
        before, shown = metric(server, "inferd_tls_reload_failures_total"), serial_of(server.address)
        server.files.put((authority.issue("server")[0], authority.issue("server")[1]))
        server.signal(signal.SIGHUP)
        wait_for("the bad pair is counted", lambda: metric(server, "inferd_tls_reload_failures_total") == before + 1, 30)
        assert serial_of(server.address) == shown, "the old one stays"
    pair = authority.issue("server")
    server.files.put(pair)
    start = time.monotonic()
    if i % 2 == 0:
        server.signal(signal.SIGHUP)
    wait_for("the new certificate is shown", lambda: serial_of(server.address) == serial_in(pair[0]), 30)
    seen_ms[i % 2].append((time.monotonic() - start) * 1000)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--rounds", type=int, default=50)
    a.add_argument("--streams", type=int, default=16)
    a.add_argument("--mtls", action="store_true")
    o = a.parse_args()
    with tempfile.TemporaryDirectory(prefix="inferd-rotation-") as tmp:
        folder = pathlib.Path(tmp)
        authority = Authority(folder, "authority")
        files, roots, client = Files(folder, authority), authority.cert.read_bytes(), authority.issue("client")
        sets = {"server.tls.cert": files.cert, "server.tls.key": files.key, "engine.kv_blocks": 1024}
        if o.mtls:
            sets["server.tls.client_ca"] = files.ca
        credentials = grpc.ssl_channel_credentials(roots, *(reversed(client) if o.mtls else ()))
        with Server(sets, admin=True, credentials=credentials) as s:
            s.files = files
            kept, seen_ms, start = Kept(s.channel, 4), ([], []), time.monotonic()
            with Load(lambda: secure_channel(s.address, roots, client if o.mtls else None), o.streams, 12) as load:
                for i in range(o.rounds):
                    rotate(s, authority, i, seen_ms)
                    done = sum(load.done)
                    wait_for("streams on the new certificate", lambda: load.failures or sum(load.done) >= done + o.streams, 60)
            kept.join()
            seconds = time.monotonic() - start
            bad = metric(s, "inferd_tls_reload_failures_total")
            version = next(w for w in s.events("start")[0].split() if w.startswith("grpc="))
    failures = load.failures + kept.failures
    print(f"{BUILD.name}, core {version[5:]}, {'mTLS' if o.mtls else 'TLS'}: {o.rounds} rotations in {seconds:.0f} s under "
          f"{o.streams} + 4 callers")
    print(f"  streams on connections of their own: {sum(load.done)} OK; on one connection kept through all: {kept.done} OK "
          f"({kept.messages} messages)")
    print(f"  failed streams: {len(failures)}; bad pairs counted and not taken: {bad:.0f} of {o.rounds // 4}")
    for name, ms in zip(("with SIGHUP", "without a signal"), seen_ms):
        if ms:
            print(f"  shown to new handshakes, {name}: median {sorted(ms)[len(ms) // 2]:.0f} ms, slowest {max(ms):.0f} ms")
    for f in failures[:5]:
        print("  ", f)
    return 1 if failures or bad != o.rounds // 4 else 0


if __name__ == "__main__":
    sys.exit(main())
