"""Overload is refused, fast and in a way that a stock client repeats; a slow reader harms only itself."""
import hashlib
import json
import signal
import time

import grpc

import harness
from harness import (BRIEF, Answer, Server, SLOW, background, generate, ids_request, pb, refused, rpc, wait_for)

LONG = [11] * 8
C = grpc.StatusCode


def full_server(**more):
    return Server({"engine.max_sequences": 1, "engine.kv_blocks": 256, "queue.max_requests": 2, **more})


def fill(server, n=2):
    """The queue is full of requests that wait; returns their calls (a call that nobody holds is cancelled)."""
    calls = []
    for i in range(n):
        calls.append(server.stub.Generate(ids_request(LONG, 4)))
        wait_for("waiting", lambda: server.status().waiting == i + 1, 5 * SLOW)
    return calls


def test_queue_full_is_refused_at_once():
    with full_server() as s:
        with background(s, ids_request(LONG, 6000)):
            held = fill(s)  # noqa: F841
            times = []
            for _ in range(30):
                call = s.stub.Generate(ids_request(LONG, 4))
                start = time.monotonic()
                d = refused(lambda: call, C.RESOURCE_EXHAUSTED)
                times.append(time.monotonic() - start)
            assert d.reason == "QUEUE_FULL" and d.pushback_ms >= 0 and d.retry
            assert abs(d.retry.retry_delay.ToTimedelta().total_seconds() * 1000 - d.pushback_ms) < 1
            assert list(call.initial_metadata()) == [], "a refusal is trailers-only"
            assert sorted(times)[len(times) // 2] < 0.020 * SLOW, times
            assert s.status().requests_rejected == 30
            assert s.status().waiting == 2


def test_queue_of_tokens_is_bounded_too():
    with full_server(**{"queue.max_requests": 100, "queue.max_tokens": 100}) as s:
        with background(s, ids_request(LONG, 6000)):
            first = s.stub.Generate(ids_request([5] * 90, 1))
            wait_for("waiting", lambda: s.status().waiting_tokens == 90, 5 * SLOW)
            d = refused(lambda: s.stub.Generate(ids_request([5] * 20, 1)), C.RESOURCE_EXHAUSTED)
            assert d.reason == "QUEUE_FULL"
            first.cancel()


def test_a_stock_client_with_a_retry_policy_succeeds():
    policy = {"methodConfig": [{"name": [{"service": "inferd.v1.Inference"}], "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}]}
    with full_server() as s:
        with background(s, ids_request(LONG, 400 if BRIEF else 200)):
            held = fill(s)  # noqa: F841
            channel = s.new_channel([("grpc.service_config", json.dumps(policy)), ("grpc.enable_retries", 1)])
            a = Answer(rpc.InferenceStub(channel).Generate(ids_request(LONG, 4), timeout=60 * SLOW))
            assert len(a.tokens) == 4 and s.status().requests_rejected >= 1, "it was meant to be refused first"
            channel.close()
        s.assert_idle()


def test_inferctl_retries_too():
    with full_server() as s:
        with background(s, ids_request(LONG, 400 if BRIEF else 200)):
            held = fill(s)  # noqa: F841
            plain = harness.inferctl(s, "generate", "--max-tokens", "2", "x")
            assert plain.returncode == 1 and b"RESOURCE_EXHAUSTED" in plain.stderr and b"try again in" in plain.stderr
            assert harness.inferctl(s, "--retries", "4", "generate", "--max-tokens", "2", "x").returncode == 0


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


def gaps_of(server, n):
    """Gaps between messages of one stream of n tokens."""
    last, gaps = None, []
    for _ in server.stub.Generate(ids_request([3] * 16, n)):
        now = time.monotonic()
        if last is not None:
            gaps.append(now - last)
        last = now
    return sorted(gaps)


def test_a_stalled_reader_harms_only_itself():
    """A client that stops reading with a 64 KiB window: its output piles up to 64 KiB, then it is paused, then it ends with
    SLOW_CONSUMER; another stream keeps its pace and the server's memory stays bounded."""
    n = 40 if BRIEF else 150
    with Server({"engine.kv_blocks": 1024, "engine.max_sequences": 8, "limits.slow_reader_s": 3}) as s:
        alone = gaps_of(s, n)
        channel = s.new_channel([("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)])
        stalled = rpc.InferenceStub(channel).Generate(
            ids_request([3] * 16, 7000, output=pb.Output(logprobs=True, top_logprobs=20)))
        first = next(stalled)

        def paused():
            before = s.status().generated_tokens
            time.sleep(0.5 * SLOW)
            return s.status().generated_tokens == before

        wait_for("the stalled stream is paused", paused, 60 * SLOW)
        produced = s.status().generated_tokens
        rss = s.rss_bytes()
        beside = gaps_of(s, n)
        assert beside[len(beside) // 2] < 1.5 * alone[len(alone) // 2] + 0.002, "the neighbour's pace suffered"
        wait_for("only the neighbour's tokens came on top", lambda: s.status().generated_tokens == produced + n, 2 * SLOW)
        assert (produced - n) * first.ByteSize() < 2**20, "more than its 64 KiB, gRPC's own and the client's window piled up"
        assert s.rss_bytes() < rss + 32 * 2**20, "beyond the KV blocks that the neighbour touched for the first time"
        wait_for("the slow reader is ended", lambda: s.status().running == 0, 20 * SLOW)
        d = refused(lambda: stalled, C.RESOURCE_EXHAUSTED)
        assert d.message.startswith("SLOW_CONSUMER")
        channel.close()
        s.assert_idle()
        assert s.status().requests_failed == 1


def test_a_slow_reader_that_reads_again_gets_everything():
    with Server({"engine.kv_blocks": 1024, "engine.max_sequences": 8}) as s:
        n = 200 if BRIEF else 700
        request = ids_request([3] * 16, n, output=pb.Output(logprobs=True, top_logprobs=20))
        whole = generate(s, request)
        channel = s.new_channel([("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)])
        call = rpc.InferenceStub(channel).Generate(request)
        messages = [next(call)]
        time.sleep(4)
        messages += call
        a = Answer(messages)
        assert a.tokens == whole.tokens and a.text == whole.text and a.logprobs == whole.logprobs
        channel.close()
        s.assert_idle()


# ---- tenants

def bearer(token):
    return [("authorization", f"Bearer {token}")]


def tokens_file(path, **tenants):
    """One line a tenant; the token is the tenant's name, the value its options."""
    path.write_text("".join(f"sha256:{hashlib.sha256(t.encode()).hexdigest()} {t} {o}\n" for t, o in tenants.items()))
    return path


def test_a_tenant_has_its_share_of_the_blocks(tmp_path):
    """Tenant a may hold 16 of 64 blocks. Its requests wait for one another, b's
    pass them by; a request beyond the share is refused by name until SIGHUP has read another share."""
    file = tokens_file(tmp_path / "tokens", a="kv_percent=25", b="")
    with Server({"engine.kv_blocks": 64, "engine.kv_block_tokens": 16, "auth.tokens_file": file,
                 "engine.prefix_cache": "false"}) as s:
        def start(tenant, n_prompt, n):
            return s.stub.Generate(ids_request([5] * n_prompt, n), metadata=bearer(tenant), timeout=120 * SLOW)

        d = refused(lambda: start("a", 250, 100), C.RESOURCE_EXHAUSTED)
        assert d.reason == "REQUEST_TOO_LARGE" and "tenant" in d.message
        first = start("a", 160, 90)  # 10 blocks, 16 at its end
        next(first)
        second = start("a", 160, 4)
        other = Answer(start("b", 400, 4))  # 26 blocks: there is room, though a's second waits
        assert len(other.tokens) == 4
        long = start("b", 300, 300)
        next(long)
        rest = Answer(second)
        assert rest.usage.queue_ms > 0
        assert len(list(first)) > 0
        long.cancel()
        tokens_file(file, a="kv_percent=50", b="")
        s.signal(signal.SIGHUP)
        wait_for("SIGHUP", lambda: s.events("tokens_reloaded"), 5 * SLOW)
        assert len(Answer(start("a", 250, 100)).tokens) == 100
