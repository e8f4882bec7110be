"""Starts a real inferd with the real model on the CPU, speaks to it with a stock gRPC client, and checks that it
comes back to its zero state: no request, every KV block free, file descriptors and threads as before.

Environment: INFERD_BUILD (folder with inferd and inferctl), INFERD_MODEL, INFERD_GOLDENS.
"""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import grpc
from google.rpc import error_details_pb2, status_pb2

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = pathlib.Path(os.environ.get("INFERD_BUILD", ROOT / "build/release")).resolve()
CACHE = pathlib.Path(os.environ.get("INFERD_CACHE", pathlib.Path.home() / ".cache/inferd"))
MODEL = pathlib.Path(os.environ.get("INFERD_MODEL", CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"))
GOLDENS = pathlib.Path(os.environ.get("INFERD_GOLDENS", ROOT.parent / "shared/goldens")).resolve()
INFERD, INFERCTL = BUILD / "inferd", BUILD / "inferctl"


def _option(name):
    cache = BUILD / "CMakeCache.txt"
    found = re.search(rf"^{name}:\w+=(.*)$", cache.read_text(), re.M) if cache.exists() else None
    return found.group(1) if found else ""


SANITIZER, FAULTS = _option("INFERD_SANITIZE"), _option("INFERD_FAULTS") == "ON"
SLOW = {"": 1, "thread": 12}.get(SANITIZER, 6)  # what sanitizers cost
BRIEF = SLOW > 1  # fewer rounds
# How long the tests wait for anything that must come. It finds what hangs, not what is slow: nothing here measures time, which a
# crowded machine has none of. Figures are taken by tests/bench and tests/fleet.
PATIENCE_S = 300 if BRIEF else 120


def _make_stubs():
    out = tempfile.mkdtemp(prefix="inferd-stubs-")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}",
                    f"--grpc_python_out={out}", "inferd/v1/inference.proto"], check=True)
    sys.path.insert(0, out)


_make_stubs()
from inferd.v1 import inference_pb2 as pb  # noqa: E402
from inferd.v1 import inference_pb2_grpc as rpc  # noqa: E402

GENERATE = "/inferd.v1.Inference/Generate"


def goldens(name):
    """Parsed JSON of the shared goldens; without it a test fails, it does not pass."""
    return json.loads((GOLDENS / name).read_text())


def wait_for(what, condition, timeout_s=PATIENCE_S):
    """Polls until condition() is true; fails naming `what`."""
    end, pause_s = time.monotonic() + timeout_s, 0.002
    while True:
        late = time.monotonic() > end  # it has one more look: this process may have slept
        if condition():
            return
        if late:
            raise AssertionError(f"not within {timeout_s:.1f} s: {what}")
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.05)


class Server:
    """One inferd process. `sets`: configuration keys. Use as a context manager: on leaving it is stopped by SIGTERM and
    must exit 0 with an empty stderr (where sanitizers would report too)."""

    defaults = {"engine.threads": 2, "server.drain_s": 5}  # of `sets`

    def __init__(self, sets=None, model=MODEL, flags=(), unix=False, admin=False, wait=True, options=(), stderr_empty=True,
                 credentials=None):
        self.dir = tempfile.TemporaryDirectory(prefix="inferd-e2e-")
        self.sets = {**self.defaults, **(sets or {})}
        listen = f"unix:{self.dir.name}/s" if unix else "127.0.0.1:0"
        self.argv = [str(INFERD), "--model", str(model), "--listen", listen, "--admin", "127.0.0.1:0" if admin else "off"]
        for key, value in self.sets.items():
            self.argv += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
        self.argv += list(flags)
        self.options, self.stderr_empty, self.credentials = list(options), stderr_empty, credentials
        self.lines, self.address, self.admin_address = [], None, None
        self.exit_code = None
        self._stderr = open(f"{self.dir.name}/stderr", "w+")
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, stderr=self._stderr, text=True, bufsize=1)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._ready = threading.Event()
        self._reader.start()
        if wait:
            self.wait_ready()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "event=ready" in line or '"event":"ready"' in line:
                found = re.search(r'\baddr"?[=:]"?([^\s",]+)', line)
                self.address = found.group(1)
                found = re.search(r'\badmin"?[=:]"?([^\s",]+)', line)
                self.admin_address = found.group(1) if found else None
                self._ready.set()
        self._ready.set()

    def wait_ready(self):
        self._ready.wait(PATIENCE_S)
        if self.address is None:
            code = self.process.poll()
            self.kill()
            raise AssertionError(f"inferd did not get ready (exit {code}): {self.stderr()}\n" + "\n".join(self.lines[-20:]))
        self.channel = self.new_channel()
        self.stub = rpc.InferenceStub(self.channel)

    def new_channel(self, options=()):
        """A connection of its own."""
        all_options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1),
                       ("grpc.max_metadata_size", 65536),
                       ("grpc.min_reconnect_backoff_ms", 1000 * PATIENCE_S)] + self.options + list(options)
        if self.credentials:
            return grpc.secure_channel(self.address, self.credentials, all_options)
        return grpc.insecure_channel(self.address, all_options)

    # ---- state

    def status(self):
        return self.stub.EngineStatus(pb.EngineStatusRequest(), timeout=PATIENCE_S)

    def assert_idle(self, timeout_s=PATIENCE_S):
        """Zero state: nothing runs or waits, every KV block is free."""
        def idle():
            s = self.status()
            return s.running == 0 and s.waiting == 0 and s.waiting_tokens == 0 and s.kv_blocks_free == s.kv_blocks_total
        try:
            wait_for("idle", idle, timeout_s)
        except AssertionError:
            raise AssertionError(f"not idle: {self.status()}")

    def wait_status(self, **want):
        """Fields of EngineStatus become `want`: what a call has done is counted a moment after its end."""
        def reached():
            seen.update({name: getattr(status, name) for status in [self.status()] for name in want})
            return seen == want
        seen = {}
        try:
            wait_for("", reached)
        except AssertionError:
            raise AssertionError(f"status: {seen}, and not {want}")

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def rss_bytes(self):
        return int(open(f"/proc/{self.process.pid}/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def stderr(self):
        self._stderr.flush()
        return pathlib.Path(self._stderr.name).read_text()

    def events(self, name):
        return [line for line in self.lines if f"event={name}" in line or f" {name} " in line]

    # ---- ending

    def signal(self, number):
        self.process.send_signal(number)

    def wait_exit(self, timeout_s=PATIENCE_S):
        self.exit_code = self.process.wait(timeout_s)
        self._reader.join(PATIENCE_S)
        return self.exit_code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self):
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait_exit(self.sets["server.drain_s"] + PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError("inferd did not end after SIGTERM")
        elif self.exit_code is None:
            self.exit_code = self.process.returncode
        return self.exit_code

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            if getattr(self, "channel", None):
                self.channel.close()
            code = self.stop()
            if kind is None:
                assert code == 0, f"exit code {code}: {self.stderr()[:4000]}"
                assert not self.stderr_empty or self.stderr() == "", self.stderr()[:4000]
            elif self.stderr():
                print("inferd's stderr:", self.stderr()[:4000])
        finally:
            self.kill()
            self._stderr.close()
            self.dir.cleanup()


# ---- requests and answers

def text_request(text, max_tokens=16, **kw):
    stopping = kw.pop("stopping", pb.Stopping())
    stopping.max_tokens = max_tokens
    return pb.GenerateRequest(text=text, stopping=stopping, **kw)


def ids_request(ids, max_tokens=16, ignore_eos=True, **kw):
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids),
                              stopping=pb.Stopping(max_tokens=max_tokens, ignore_eos=ignore_eos), **kw)


def chat_request(*turns, max_tokens=16, **kw):
    messages = [pb.Message(role=role, content=content) for role, content in turns]
    return pb.GenerateRequest(chat=pb.Chat(messages=messages), stopping=pb.Stopping(max_tokens=max_tokens), **kw)


class Answer:
    """A whole stream, held against the rules that every stream obeys."""

    def __init__(self, messages):
        self.messages = list(messages)
        assert self.messages, "a stream that ends OK has messages"
        first, last = self.messages[0], self.messages[-1]
        assert first.HasField("prompt") and first.request_id
        assert all(not m.HasField("prompt") and not m.request_id for m in self.messages[1:])
        assert last.HasField("usage") and all(not m.HasField("usage") for m in self.messages[:-1])
        self.prompt, self.usage, self.request_id = first.prompt, last.usage, first.request_id
        self.ids, self.texts, self.finish, self.logprobs = {}, {}, {}, {}
        for m in self.messages:
            assert m.index not in self.finish or m is last, "a message after a choice's Finish"
            self.ids.setdefault(m.index, []).extend(m.token_ids)
            self.texts[m.index] = self.texts.get(m.index, "") + m.text
            self.logprobs.setdefault(m.index, []).extend(m.logprobs)
            if m.logprobs:
                assert [p.token_id for p in m.logprobs] == list(m.token_ids)
            if m.HasField("finish"):
                self.finish[m.index] = m.finish
        assert set(self.finish) == set(self.ids), "each choice ends with a Finish"
        assert self.usage.completion_tokens == sum(map(len, self.ids.values()))
        assert self.usage.prompt_tokens == self.prompt.tokens

    @property
    def text(self):
        return self.texts[0]

    @property
    def tokens(self):
        return self.ids[0]

    @property
    def reason(self):
        return self.finish[0].reason


def generate(server, request, **kw):
    kw.setdefault("timeout", 5 * PATIENCE_S)
    return Answer(server.stub.Generate(request, **kw))


def run_all(server, requests, n_channels=8):
    """All at once, one thread each; answers in order."""
    channels = [server.new_channel() for _ in range(min(n_channels, len(requests)))]
    out = [None] * len(requests)

    def one(i):
        try:
            stub = rpc.InferenceStub(channels[i % len(channels)])
            out[i] = Answer(stub.Generate(requests[i], timeout=5 * PATIENCE_S))
        except BaseException as e:  # noqa: BLE001 - carried to the test's thread
            out[i] = e

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(requests))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for c in channels:
        c.close()
    for i, a in enumerate(out):
        if isinstance(a, BaseException):
            raise AssertionError(f"request {i}: {a!r}") from a
    return out


# ---- errors

class Details:
    """google.rpc.Status of a failed call."""

    def __init__(self, error):
        self.code, self.message = error.code(), error.details()
        self.trailers = {k: v for k, v in error.trailing_metadata() or ()}
        self.status, self.bad, self.info, self.retry = None, None, None, None
        if "grpc-status-details-bin" in self.trailers:
            self.status = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
            assert self.status.code == self.code.value[0]
        for any_ in self.status.details if self.status else ():
            for name, kind in (("bad", error_details_pb2.BadRequest), ("info", error_details_pb2.ErrorInfo),
                               ("retry", error_details_pb2.RetryInfo)):
                if any_.Is(kind.DESCRIPTOR):
                    setattr(self, name, kind.FromString(any_.value))
        if self.info:
            assert self.info.domain == "inferd"

    @property
    def fields(self):
        return [v.field for v in self.bad.field_violations] if self.bad else []

    @property
    def reason(self):
        return self.info.reason if self.info else None

    @property
    def pushback_ms(self):
        value = self.trailers.get("grpc-retry-pushback-ms")
        return None if value is None else int(value)


def refused(call, code):
    """The call must fail with `code`; returns its Details."""
    try:
        result = call()
        if hasattr(result, "__next__"):
            list(result)
    except grpc.RpcError as e:
        assert e.code() == code, f"{e.code()}: {e.details()}"
        return Details(e)
    raise AssertionError("the call was not refused")


@contextlib.contextmanager
def background(server, request, n_messages=1):
    """A stream that has begun (n_messages were read) and goes on; cancelled on leaving."""
    stub = rpc.InferenceStub(server.channel)
    call = stub.Generate(request)
    for _ in range(n_messages):
        next(call)
    try:
        yield call
    finally:
        call.cancel()


@contextlib.contextmanager
def occupied(server, prompt=(11,) * 8, max_tokens=8000, **kw):
    """A sequence that decodes all the while; its call, cancelled on leaving or before. It has thousands of steps to go, and one costs
    the server more than a call costs anybody; its output is gathered (final_only), so that no slow reader pauses it."""
    before = server.status().generated_tokens
    call = server.stub.Generate(ids_request(prompt, max_tokens, output=pb.Output(final_only=True), **kw))
    wait_for("it decodes", lambda: server.status().generated_tokens > before)
    try:
        yield call
        assert call.is_active() or call.cancelled(), "it was meant to outlast the test"
    finally:
        call.cancel()


SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]


@contextlib.contextmanager
def unread(server, max_tokens=7000, metadata=(), choices=1, **kw):
    """(first message, call) of a stream that nobody reads on: what it says is more than its window of 64 KiB, the outbox's 64 KiB and a
    message hold, so that the engine pauses it. It lives until it is read or cancelled, however fast the machine is."""
    channel = server.new_channel(SMALL_WINDOW)
    call = rpc.InferenceStub(channel).Generate(
        ids_request([11] * 8, max_tokens, output=pb.Output(logprobs=True, top_logprobs=20), choices=choices, **kw),
        metadata=metadata)
    try:
        first = next(call)
        assert len(first.logprobs) > 0 and first.logprobs[0].ByteSize() * max_tokens * choices > 200_000
        yield first, call
    finally:
        call.cancel()
        channel.close()


def inferctl(server_or_address, *args, stdin=None, timeout_s=5 * PATIENCE_S, env=None):
    address = server_or_address.address if isinstance(server_or_address, Server) else server_or_address
    return subprocess.run([str(INFERCTL), "--server", address, *args], input=stdin, capture_output=True, timeout=timeout_s,
                          env={**os.environ, **(env or {})})
