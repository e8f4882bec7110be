"""Overload is refused, fast and in a way that a stock client repeats; a slow reader harms only itself."""
import contextlib
import hashlib
import json
import signal
import subprocess

import grpc

import harness
from harness import PATIENCE_S, Answer, Server, generate, ids_request, occupied, pb, refused, rpc, unread, wait_for

LONG = [11] * 8
C = grpc.StatusCode


def full_server(**more):
    return Server({"engine.max_sequences": 1, "engine.kv_blocks": 256, "queue.max_requests": 2, **more})


def fill(server, n=2):
    """The queue is full of requests that wait; returns their calls (a call that nobody holds is cancelled)."""
    calls = []
    for i in range(n):
        calls.append(server.stub.Generate(ids_request(LONG, 4)))
        wait_for("waiting", lambda: server.status().waiting == i + 1)
    return calls


def test_queue_full_is_refused_at_once():
    """That is: while it is full. How fast is measured by tests/bench/serving_promises.py."""
    with full_server() as s, occupied(s):
        held = fill(s)  # noqa: F841
        for _ in range(30):
            call = s.stub.Generate(ids_request(LONG, 4))
            d = refused(lambda: call, C.RESOURCE_EXHAUSTED)
            assert d.reason == "QUEUE_FULL" and d.pushback_ms >= 0 and d.retry
            assert abs(d.retry.retry_delay.ToTimedelta().total_seconds() * 1000 - d.pushback_ms) < 1
            assert list(call.initial_metadata()) == [], "a refusal is trailers-only"
        s.wait_status(requests_rejected=30, waiting=2)


def test_queue_of_tokens_is_bounded_too():
    with full_server(**{"queue.max_requests": 100, "queue.max_tokens": 100}) as s, occupied(s):
        first = s.stub.Generate(ids_request([5] * 90, 1))
        wait_for("waiting", lambda: s.status().waiting_tokens == 90)
        d = refused(lambda: s.stub.Generate(ids_request([5] * 20, 1)), C.RESOURCE_EXHAUSTED)
        assert d.reason == "QUEUE_FULL"
        first.cancel()


def until_the_rate_is_known(server):
    """A server that has not yet measured its rate sends everybody away for half a minute. Returns how many it has sent away."""
    n = 0

    def knows():
        nonlocal n
        n += 1
        return refused(lambda: server.stub.Generate(ids_request(LONG, 4)), C.RESOURCE_EXHAUSTED).pushback_ms < 30000

    with contextlib.suppress(AssertionError):  # it may really be so slow
        wait_for("the rate is known", knows, 5)
    server.wait_status(requests_rejected=n)
    return n


def when_refused(server, n, *calls):
    """Cancels the calls as soon as n refusals are counted. Whoever was refused comes again after half of the queue's time, which is
    many steps; the cancelled are gone after one."""
    wait_for("it is refused", lambda: server.status().requests_rejected >= n)
    for c in calls:
        c.cancel()


def test_a_stock_client_with_a_retry_policy_succeeds():
    policy = {"methodConfig": [{"name": [{"service": "inferd.v1.Inference"}], "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}]}
    with full_server() as s:
        with occupied(s) as block:
            held, n = fill(s), until_the_rate_is_known(s)
            channel = s.new_channel([("grpc.service_config", json.dumps(policy)), ("grpc.enable_retries", 1)])
            call = rpc.InferenceStub(channel).Generate(ids_request(LONG, 4))
            when_refused(s, n + 1, block, *held)
            assert len(Answer(call).tokens) == 4
            channel.close()
        s.assert_idle()


def test_inferctl_retries_too():
    with full_server() as s, occupied(s) as block:
        held, n = fill(s), until_the_rate_is_known(s)
        plain = harness.inferctl(s, "generate", "--max-tokens", "2", "x")
        assert plain.returncode == 1 and b"RESOURCE_EXHAUSTED" in plain.stderr and b"try again in" in plain.stderr
        assert harness.inferctl(s, "--retries", "2", "generate", "--max-tokens", "2", "x").returncode == 1
        s.wait_status(requests_rejected=n + 1 + 3)
        p = subprocess.Popen([str(harness.INFERCTL), "--server", s.address, "--retries", "4", "generate", "--max-tokens", "2", "x"])
        when_refused(s, n + 1 + 3 + 1, block, *held)
        assert p.wait(PATIENCE_S) == 0


def test_too_large_for_the_pool():
    with Server({"engine.kv_blocks": 8, "engine.kv_block_tokens": 16}) as s:
        d = refused(lambda: s.stub.Generate(ids_request([5] * 100, 100)), C.RESOURCE_EXHAUSTED)
        assert d.reason == "REQUEST_TOO_LARGE" and d.pushback_ms == -1
        refused(lambda: s.stub.Generate(ids_request([5] * 128, 0)), C.RESOURCE_EXHAUSTED)
        assert len(generate(s, ids_request([5] * 100, 28)).tokens) == 28
        a = generate(s, ids_request([5] * 20, 0, sampling=pb.Sampling(seed=1)))
        assert a.reason == pb.FINISH_REASON_CONTEXT_FULL
        s.assert_idle()


def test_messages_over_the_limit():
    with Server({"server.max_message_bytes": 65536, "engine.kv_blocks": 64}) as s:
        refused(lambda: s.stub.Tokenize(pb.TokenizeRequest(text="x" * 70000)), C.RESOURCE_EXHAUSTED)
        assert len(s.stub.Tokenize(pb.TokenizeRequest(text="x " * 20000)).token_ids) > 1000


def ran_alone(server, n):
    """A stream of n tokens runs to its end. True: meanwhile nobody else made a token, though a step takes all who may run."""
    before = server.status().generated_tokens
    assert len(generate(server, ids_request([3] * 16, n)).tokens) == n
    return server.status().generated_tokens == before + n


def test_a_stalled_reader_harms_only_itself():
    """A client that stops reading with a 64 KiB window: its output piles up to 64 KiB, then it is paused, while another stream is served.
    What that one's pace suffers, and memory, are measured by tests/bench/serving_promises.py."""
    with Server({"engine.kv_blocks": 1024, "engine.max_sequences": 16}) as s:
        at_first = s.status().generated_tokens
        with unread(s) as (first, _):
            runs = []
            wait_for("the stalled stream is paused", lambda: runs.append(50) or ran_alone(s, 50))
            produced = s.status().generated_tokens - at_first - sum(runs)
            assert produced * first.ByteSize() < 2**20, "more than its 64 KiB, gRPC's own and the client's window piled up"
        s.assert_idle()


def test_a_stalled_reader_is_ended():
    with Server({"engine.kv_blocks": 256, "limits.slow_reader_s": 3}) as s:
        with unread(s) as (_, stalled):
            s.assert_idle()
            d = refused(lambda: stalled, C.RESOURCE_EXHAUSTED)
            assert d.message.startswith("SLOW_CONSUMER")
            s.wait_status(requests_failed=1)


def test_a_slow_reader_that_reads_again_gets_everything():
    with Server({"engine.kv_blocks": 1024, "engine.max_sequences": 16}) as s:
        n = 160
        whole = generate(s, ids_request(LONG, n, choices=8, output=pb.Output(logprobs=True, top_logprobs=20)))
        with unread(s, n, choices=8) as (first, call):
            wait_for("it is paused", lambda: ran_alone(s, 20))
            a = Answer([first, *call])
        assert a.ids == whole.ids and a.texts == whole.texts and a.logprobs == whole.logprobs
        s.assert_idle()


# ---- tenants

def bearer(token):
    return [("authorization", f"Bearer {token}")]


def tokens_file(path, **tenants):
    """One line a tenant; the token is the tenant's name, the value its options."""
    path.write_text("".join(f"sha256:{hashlib.sha256(t.encode()).hexdigest()} {t} {o}\n" for t, o in tenants.items()))
    return path


def test_a_tenant_has_its_share_of_the_blocks(tmp_path):
    """Tenant a may hold 128 of 512 blocks. Its requests wait for one another, b's
    pass them by; a request beyond the share is refused by name until SIGHUP has read another share."""
    file = tokens_file(tmp_path / "tokens", a="kv_percent=25", b="")
    with Server({"engine.kv_blocks": 512, "engine.kv_block_tokens": 16, "auth.tokens_file": file,
                 "engine.prefix_cache": "false"}) as s:
        def start(tenant, n_prompt, n):
            return s.stub.Generate(ids_request([5] * n_prompt, n), metadata=bearer(tenant), timeout=5 * PATIENCE_S)

        def n_waiting():
            return s.stub.EngineStatus(pb.EngineStatusRequest(), metadata=bearer("b"), timeout=PATIENCE_S).waiting

        d = refused(lambda: start("a", 2000, 100), C.RESOURCE_EXHAUSTED)
        assert d.reason == "REQUEST_TOO_LARGE" and "tenant" in d.message
        first = start("a", 1000, 1000)  # 63 blocks, 125 at its end
        next(first)
        second = start("a", 1050, 4)  # 66 blocks
        wait_for("a's second waits", lambda: n_waiting() == 1)
        other = Answer(start("b", 400, 4))  # 26 blocks: there is room, though a's second waits
        assert len(other.tokens) == 4
        long = start("b", 300, 1000)
        next(long)
        assert n_waiting() == 1 and first.is_active()
        first.cancel()
        rest = Answer(second)
        assert rest.usage.queue_ms > 0 and len(rest.tokens) == 4
        long.cancel()
        tokens_file(file, a="kv_percent=50", b="")
        s.signal(signal.SIGHUP)
        wait_for("SIGHUP", lambda: s.events("tokens_reloaded"))
        assert len(Answer(start("a", 2000, 100)).tokens) == 100
