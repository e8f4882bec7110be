"""Start, health, reflection, admin pages, drain, exit codes."""
import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import abuse
import harness
from harness import (FAULTS, INFERD, MODEL, PATIENCE_S, Server, background, generate, ids_request, pb, refused, rpc, text_request,
                     unread, wait_for)

C = grpc.StatusCode
SERVICES = ("", "liveness", "readiness", "startup", "inferd.v1.Inference")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
LONG = [11] * 8
DRAIN_S = 20 * PATIENCE_S  # so long that it plays no part; whoever waits for it does not succeed


def check(stub, service):
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status


# ---- health

def test_health_check_watch_list(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    for service in SERVICES:
        assert check(stub, service) == SERVING, service
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        assert next(watch).status == SERVING
        watch.cancel()
    refused(lambda: check(stub, "no.such.Service"), C.NOT_FOUND)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
    every = stub.List(health_pb2.HealthListRequest()).statuses
    assert set(every) >= set(SERVICES) and all(v.status == SERVING for v in every.values())


# ---- reflection

def test_reflection_without_stubs(server):
    """v1alpha by grpcio's own client: list, resolve, build messages, call."""
    db = ProtoReflectionDescriptorDatabase(server.channel)
    assert {"inferd.v1.Inference", "grpc.health.v1.Health"} <= set(db.get_services())
    pool = descriptor_pool.DescriptorPool(db)
    service = pool.FindServiceByName("inferd.v1.Inference")
    assert {m.name for m in service.methods} == {"Generate", "Tokenize", "Detokenize", "ModelInfo", "EngineStatus", "Abort"}
    make = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))  # noqa: E731
    request, response = make("inferd.v1.GenerateRequest"), make("inferd.v1.GenerateResponse")
    call = server.channel.unary_stream(harness.GENERATE, request_serializer=request.SerializeToString,
                                       response_deserializer=response.FromString)
    r = request(text="The capital of France is")
    r.stopping.max_tokens = 3
    assert sum(len(m.token_ids) for m in call(r)) == 3


def test_reflection_v1_says_the_same(server):
    def ask(version, request):
        call = server.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                                            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                                            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
        return next(call(iter([request]), timeout=PATIENCE_S))

    Q = reflection_pb2.ServerReflectionRequest
    for q in (Q(list_services=""), Q(file_containing_symbol="inferd.v1.Sampling"), Q(file_by_filename="inferd/v1/inference.proto"),
              Q(file_containing_symbol="no.Such"), Q(file_by_filename="none.proto"), Q(file_containing_symbol="grpc.health.v1.Health")):
        a, b = ask("v1", q), ask("v1alpha", q)
        assert a.WhichOneof("message_response") == b.WhichOneof("message_response")
        a.ClearField("original_request"), b.ClearField("original_request")
        assert a == b
    assert ask("v1", Q(file_containing_symbol="no.Such")).error_response.error_code == C.NOT_FOUND.value[0]


# ---- admin pages

def fetch(server, path):
    try:
        with urllib.request.urlopen(f"http://{server.admin_address}{path}", timeout=PATIENCE_S) as r:
            return r.status, r.read().decode(), r.headers.get("Content-Type", "")
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode(), e.headers.get("Content-Type", "")


METRICS = """inferd_requests_running inferd_requests_waiting inferd_waiting_tokens inferd_kv_cache_usage_ratio inferd_kv_blocks
inferd_memory_bytes inferd_build_info inferd_model_info inferd_last_step_age_seconds inferd_requests_total inferd_finish_total
inferd_prompt_tokens_total inferd_cached_prompt_tokens_total inferd_generated_tokens_total inferd_preemptions_total
inferd_steps_total inferd_time_to_first_token_seconds inferd_inter_token_seconds inferd_queue_seconds inferd_request_seconds
inferd_prompt_tokens inferd_output_tokens inferd_batch_size inferd_step_seconds""".split()


def test_admin_pages(server):
    generate(server, text_request("metrics", 3))
    for path in ("/livez", "/readyz"):
        assert fetch(server, path)[0] == 200
    code, text, kind = fetch(server, "/metrics")
    assert code == 200 and "text/plain" in kind
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    # A counter may be declared with or without its _total suffix, as text formats differ.
    missing = [m for m in METRICS if m not in typed and m.removesuffix("_total") not in typed]
    assert not missing, missing
    code, page, kind = fetch(server, "/statusz")
    assert code == 200 and "text/html" in kind and "http://" not in page.replace("http://www.w3.org", "")
    assert fetch(server, "/nothing")[0] == 404


# ---- drain

def test_drain_lets_streams_finish():
    with Server({"server.drain_s": DRAIN_S, "engine.kv_blocks": 256}) as s:
        stub = health_pb2_grpc.HealthStub(s.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert next(watch).status == SERVING
        with unread(s, 160, choices=8) as (first, call):
            s.signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            a = harness.Answer([first, *call])
            assert a.reason == pb.FINISH_REASON_MAX_TOKENS
        assert s.wait_exit() == 0


def test_drain_delay_still_admits():
    with Server({"server.drain_delay_s": 3600, "server.drain_s": 2 * DRAIN_S, "engine.kv_blocks": 256}, admin=True) as s:
        health = health_pb2_grpc.HealthStub(s.channel)
        s.signal(signal.SIGTERM)
        wait_for("readiness has fallen", lambda: check(health, "readiness") == NOT_SERVING)
        assert check(health, "") == NOT_SERVING and check(health, "inferd.v1.Inference") == NOT_SERVING
        assert check(health, "liveness") == SERVING
        assert fetch(s, "/readyz")[0] == 503 and fetch(s, "/livez")[0] == 200
        assert s.status().state == pb.ENGINE_STATE_DRAINING
        assert len(generate(s, text_request("still admitted", 2)).tokens) == 2
        s.signal(signal.SIGTERM)  # a second one ends the delay
        assert s.wait_exit() == 0


def test_drain_delay_ends():
    with Server({"server.drain_delay_s": 1, "server.drain_s": DRAIN_S, "engine.kv_blocks": 256}) as s, unread(s):
        s.signal(signal.SIGTERM)
        refusals = []

        def too_late():
            try:
                generate(s, text_request("x", 2))
            except grpc.RpcError as e:
                assert e.code() in (C.UNAVAILABLE, C.CANCELLED), e  # CANCELLED: the distribution's core, as its port is shut
                refusals.append(harness.Details(e))
            return bool(refusals)

        wait_for("calls are refused", too_late)
        assert refusals[0].reason in ("DRAINING", None)  # None: the listener has closed and the channel is new
        s.signal(signal.SIGTERM)


def test_drain_limit_and_second_signal():
    """A stream that would last much longer is cut, and the process ends."""
    for second in (False, True):
        with Server({"server.drain_s": DRAIN_S if second else 1, "engine.kv_blocks": 256}) as s, unread(s) as (_, call):
            s.signal(signal.SIGTERM)
            if second:
                wait_for("the first has come", lambda: s.events("drain"))
                s.signal(signal.SIGTERM)
            d = refused(lambda: call, C.UNAVAILABLE)
            assert d.reason == "DRAINING", d.message
            assert s.wait_exit() == 0


def test_the_port_closes_while_streams_finish():
    """A balancer must not find the one that drains: it would count few calls there, and send it all others."""
    sets = {"server.drain_s": DRAIN_S, "engine.kv_blocks": 256, "server.health_listen": "127.0.0.1:0"}
    with Server(sets) as s, unread(s, 160, choices=8) as (first, call):
        health_address = next(w[7:] for w in s.events("ready")[0].split() if w.startswith("health="))
        health = health_pb2_grpc.HealthStub(grpc.insecure_channel(health_address))
        s.signal(signal.SIGTERM)
        host, port = s.address.rsplit(":", 1)

        def refuses_connections():
            try:
                socket.create_connection((host, int(port)), PATIENCE_S).close()
                return False
            except OSError as e:
                return isinstance(e, ConnectionRefusedError)

        wait_for("the port is closed", refuses_connections)
        assert check(health, "readiness") == NOT_SERVING and check(health, "liveness") == SERVING
        assert s.process.poll() is None, "the stream still runs"
        assert harness.Answer([first, *call]).reason == pb.FINISH_REASON_MAX_TOKENS
        assert s.wait_exit() == 0


def read_frame(sock):
    """(kind, stream, payload) of the next HTTP/2 frame."""
    def exactly(n):
        data = b""
        while len(data) < n:
            more = sock.recv(n - len(data))
            assert more, "the connection is closed"
            data += more
        return data
    head = exactly(9)
    return head[3], int.from_bytes(head[5:], "big"), exactly(int.from_bytes(head[:3], "big"))


def test_a_call_that_crosses_the_goaway():
    """It was sent before its client could know. The bundled core lets us refuse it so that it can be repeated elsewhere; the
    distribution's cancels it."""
    with Server({"server.drain_s": DRAIN_S, "engine.kv_blocks": 256}) as s, unread(s) as (_, call):  # keeps the drain going
        host, port = s.address.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(abuse.PREFACE + abuse.frame(abuse.SETTINGS, 0, 0) + abuse.frame(abuse.SETTINGS, abuse.ACK, 0))
            assert read_frame(sock)[0] == abuse.SETTINGS
            s.signal(signal.SIGTERM)
            goaway = 7
            while read_frame(sock)[0] != goaway:
                pass
            sock.sendall(abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, abuse.request_headers(harness.GENERATE.encode())) +
                         abuse.frame(abuse.DATA, abuse.END_STREAM, 1, bytes(5)))
            kind = stream = None
            while (kind, stream) != (abuse.HEADERS, 1):
                kind, stream, payload = read_frame(sock)
        bundled = harness._option("INFERD_GRPC") == "bundled"
        status = C.UNAVAILABLE if bundled else C.CANCELLED
        text = str(status.value[0]).encode()
        assert b"grpc-status" + bytes([len(text)]) + text in payload, payload
        assert (b"grpc-retry-pushback-ms" in payload) == bundled
        call.cancel()
        assert s.wait_exit() == 0


def test_sigint_ends_it_too():
    with Server({"engine.kv_blocks": 64}) as s:
        s.signal(signal.SIGINT)
        assert s.wait_exit() == 0


# ---- exit codes

def run_inferd(*args, env=None, timeout_s=PATIENCE_S):
    return subprocess.run([str(INFERD), *map(str, args)], capture_output=True, text=True, timeout=timeout_s,
                          env={**os.environ, **(env or {})})


def check_refusal(p, code, *words):
    assert p.returncode == code, (p.returncode, p.stderr, p.stdout[-500:])
    lines = p.stderr.strip().splitlines()
    assert len(lines) == 1, f"one clear line is expected: {p.stderr!r}"
    for w in words:
        assert w in lines[0], (w, lines[0])


@pytest.mark.skipif(not FAULTS, reason="needs a build with -DINFERD_FAULTS=ON")
def test_a_hung_engine_does_not_keep_a_stopped_process():
    """Asked twice to stop while a step hangs: exit 7 soon, not after watchdog.exit_s."""
    os.environ["INFERD_FAULT"] = "wait_step:30:hang"
    try:
        s = Server({"engine.kv_blocks": 256, "watchdog.not_ready_s": 5, "server.drain_s": DRAIN_S}, stderr_empty=False)
    finally:
        del os.environ["INFERD_FAULT"]
    try:
        call = s.stub.Generate(ids_request([3] * 16, 1000))
        # Not moving for five seconds, for good: then it hangs; a slow machine's engine moves again.
        wait_for("it hangs", lambda: len(s.events("engine_not_moving")) > len(s.events("engine_moves_again")) and
                 s.status().last_step_age_s > 10)
        s.signal(signal.SIGTERM)
        wait_for("the first has come", lambda: s.events("drain"))
        s.signal(signal.SIGTERM)
        refused(lambda: call, C.UNAVAILABLE)
        assert s.wait_exit() == 7
    finally:
        s.kill()


def test_exit_2_bad_usage_or_configuration(tmp_path):
    good = ("--model", MODEL, "--admin", "off", "--listen", "127.0.0.1:0")
    check_refusal(run_inferd("--bogus"), 2, "--bogus")
    check_refusal(run_inferd(), 2, "--model")
    check_refusal(run_inferd(*good, "--threads", "many"), 2, "engine.threads")
    check_refusal(run_inferd(*good, "--set", "engine.thread=1"), 2, "engine.threads")
    check_refusal(run_inferd(*good, env={"INFERD_QUEUE_MAX_REQUESTS": "0"}), 2, "INFERD_QUEUE_MAX_REQUESTS")
    check_refusal(run_inferd(*good, "--config", "/nonexistent.yaml"), 2, "/nonexistent.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("server:\n  listen: 127.0.0.1:0\n  lisen: x\n")
    check_refusal(run_inferd("--model", MODEL, "--config", bad), 2, f"{bad}:3", "server.lisen")
    check_refusal(run_inferd("--check-config", "--config", bad), 2, f"{bad}:3")


def test_questions_about_the_configuration(tmp_path):
    p = run_inferd("--version")
    assert p.returncode == 0 and "inferd" in p.stdout and not p.stderr
    p = run_inferd("--help")
    assert p.returncode == 0 and "--model" in p.stdout
    p = run_inferd("--print-config", "--set", "engine.threads=3", "--model", "some.gguf")
    assert p.returncode == 0 and "threads: 3" in p.stdout
    again = tmp_path / "again.yaml"
    again.write_text(p.stdout)
    assert run_inferd("--print-config", "--config", again).stdout == p.stdout
    assert run_inferd("--check-config", "--config", again).returncode == 0


def test_exit_3_model_refused(tmp_path):
    rest = ("--admin", "off", "--listen", "127.0.0.1:0")
    check_refusal(run_inferd("--model", tmp_path / "none.gguf", *rest), 3, "none.gguf")
    whole = MODEL.read_bytes()
    for size in (0, 3, 23, 1000, 100000, 50_000_000):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:size])
        check_refusal(run_inferd("--model", cut, *rest), 3, "cut.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("This is no model.\n" * 100)
    check_refusal(run_inferd("--model", text, *rest), 3, "text.gguf")
    check_refusal(run_inferd("--model", tmp_path, *rest), 3)
    check_refusal(run_inferd("--model", MODEL, *rest, "--set", f"model.sha256={'0' * 64}"), 3)
    check_refusal(run_inferd("--model", MODEL, *rest, "--set", "engine.context_length=100000"), 3)


def test_exit_4_device_or_memory():
    rest = ("--model", MODEL, "--admin", "off", "--listen", "127.0.0.1:0")
    check_refusal(run_inferd(*rest, "--backend", "cuda", env={"CUDA_VISIBLE_DEVICES": ""}), 4)
    check_refusal(run_inferd(*rest, "--set", "engine.kv_blocks=2000000"), 4)


def test_exit_5_port_or_tls(tmp_path):
    rest = ("--model", MODEL)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        check_refusal(run_inferd(*rest, "--admin", "off", "--listen", f"127.0.0.1:{port}"), 5, str(port))
        check_refusal(run_inferd(*rest, "--listen", "127.0.0.1:0", "--admin", f"127.0.0.1:{port}"), 5, str(port))
    nonsense = tmp_path / "x.pem"
    nonsense.write_text("no certificate")
    check_refusal(run_inferd(*rest, "--admin", "off", "--listen", "127.0.0.1:0", "--set", f"server.tls.cert={nonsense}",
                             "--set", f"server.tls.key={nonsense}"), 5)


def test_log_formats():
    with Server({"log.format": "json", "engine.kv_blocks": 64}) as s:
        generate(s, text_request("x", 2, request_id="logged-1"))
    events = [json.loads(line) for line in s.lines]
    assert any(e.get("event") == "ready" and e.get("addr") == s.address for e in events)
    assert any("logged-1" in json.dumps(e) for e in events), "one line about each request"


# ---- TLS

@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    d = tmp_path_factory.mktemp("tls")

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=d, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-keyout", "ca.key",
            "-out", "ca.pem", "-subj", "/CN=ca")
    for name, san in (("server", "DNS:localhost,IP:127.0.0.1"), ("client", "DNS:client")):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
                "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (d / "ext").write_text(f"subjectAltName={san}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", "ext", "-out", f"{name}.pem")
    return d


def test_tls_and_mtls(pems):
    ca, cert, key = ((pems / f).read_bytes() for f in ("ca.pem", "client.pem", "client.key"))
    sets = {"server.tls.cert": pems / "server.pem", "server.tls.key": pems / "server.key", "engine.kv_blocks": 64}
    with Server(sets, credentials=grpc.ssl_channel_credentials(ca)) as s:
        assert len(generate(s, text_request("x", 2)).tokens) == 2
        plain = rpc.InferenceStub(grpc.insecure_channel(s.address))
        refused(lambda: plain.EngineStatus(pb.EngineStatusRequest(), timeout=PATIENCE_S), C.UNAVAILABLE)
        p = harness.inferctl(s, "--ca", str(pems / "ca.pem"), "generate", "--max-tokens", "2", "x")
        assert p.returncode == 0, p.stderr
        assert harness.inferctl(s, "generate", "--max-tokens", "2", "x").returncode == 3
    sets.update({"server.tls.client_ca": pems / "ca.pem", "server.health_listen": "127.0.0.1:0"})
    with Server(sets, credentials=grpc.ssl_channel_credentials(ca, key, cert)) as s:
        assert len(generate(s, text_request("x", 2)).tokens) == 2
        anonymous = rpc.InferenceStub(grpc.secure_channel(s.address, grpc.ssl_channel_credentials(ca)))
        refused(lambda: anonymous.EngineStatus(pb.EngineStatusRequest(), timeout=PATIENCE_S), C.UNAVAILABLE)
        p = harness.inferctl(s, "--ca", str(pems / "ca.pem"), "--cert", str(pems / "client.pem"), "--key",
                             str(pems / "client.key"), "info")
        assert p.returncode == 0, p.stderr


def test_state_returns_to_the_start():
    """Descriptors and threads after a load equal those after the first requests."""
    with Server({"engine.kv_blocks": 256, "engine.max_sequences": 16}) as s:
        harness.run_all(s, [ids_request(LONG, 3)] * 16)
        with background(s, ids_request(LONG, 100)):
            pass
        s.assert_idle()
        fds, threads = s.fds(), s.threads()
        harness.run_all(s, [ids_request(LONG, 3)] * 64)
        s.assert_idle()
        wait_for("descriptors are back", lambda: s.fds() <= fds)
        # gRPC starts a few of its own when it is busy; not one a request.
        wait_for("threads are back", lambda: s.threads() <= threads + 16)
