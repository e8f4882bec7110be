"""Clients that go away, in every state, many times: blocks, calls, descriptors and threads come back."""
import os
import random
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

import harness
from harness import (BRIEF, Answer, Server, SLOW, background, generate, ids_request, pb, refused, rpc, wait_for)

ROUNDS = 48 if BRIEF else 1000
LONG = [11] * 8
C = grpc.StatusCode


@pytest.fixture(scope="module")
def tight():
    """Small pool, one sequence fewer than the load needs: waiting, prefill, decode and preempted all occur."""
    with Server({"engine.kv_blocks": 96, "engine.kv_block_tokens": 16, "engine.max_sequences": 4, "engine.max_step_tokens": 64,
                 "queue.max_requests": 64, "engine.context_length": 2048}) as s:
        generate(s, ids_request(LONG, 4))
        yield s


def gone(server):
    wait_for("the sequence has left", lambda: server.status().running == 0, 1.0 * SLOW)
    server.assert_idle(1.0)


def test_cancel_while_decoding(tight):
    before = tight.status()
    call = tight.stub.Generate(ids_request(LONG, 1000))
    for _ in range(3):
        next(call)
    call.cancel()
    gone(tight)
    assert tight.status().requests_cancelled == before.requests_cancelled + 1


def test_cancel_in_prefill(tight):
    """1,400 prompt tokens in chunks of 64: cancelled before the first token."""
    call = tight.stub.Generate(ids_request([i + 100 for i in range(1400)], 10))
    wait_for("running", lambda: tight.status().running == 1, 5 * SLOW)
    call.cancel()
    gone(tight)


def test_cancel_while_waiting():
    with Server({"engine.max_sequences": 1, "engine.kv_blocks": 128}) as s:
        with background(s, ids_request(LONG, 3000)):
            waiting = s.stub.Generate(ids_request(LONG, 10))
            wait_for("waiting", lambda: s.status().waiting == 1, 5 * SLOW)
            waiting.cancel()
            wait_for("the queue is empty", lambda: s.status().waiting == 0, 1 * SLOW)
            assert s.status().running == 1
            one_more = s.stub.Generate(ids_request(LONG, 10, request_id="w"))
            wait_for("waiting", lambda: s.status().waiting == 1, 5 * SLOW)
            assert list(s.stub.Abort(pb.AbortRequest(request_ids=["w"])).aborted) == ["w"]
            a = Answer(one_more)
            assert len(a.messages) == 1 and a.reason == pb.FINISH_REASON_ABORTED and a.usage.completion_tokens == 0
        s.assert_idle()


def test_cancel_after_the_end_is_nothing(tight):
    call = tight.stub.Generate(ids_request(LONG, 2))
    list(call)
    call.cancel()
    assert call.code() == C.OK
    tight.assert_idle()


def test_deadline_in_each_state(tight):
    d = refused(lambda: tight.stub.Generate(ids_request(LONG, 1000), timeout=0.4), C.DEADLINE_EXCEEDED)
    assert d.code == C.DEADLINE_EXCEEDED
    gone(tight)
    refused(lambda: tight.stub.Generate(ids_request([i + 100 for i in range(1500)], 10), timeout=0.05), C.DEADLINE_EXCEEDED)
    gone(tight)
    with Server({"engine.max_sequences": 1, "engine.kv_blocks": 128}) as s:
        with background(s, ids_request(LONG, 3000)):
            start = time.monotonic()
            refused(lambda: s.stub.Generate(ids_request(LONG, 10), timeout=0.3), C.DEADLINE_EXCEEDED)
            assert time.monotonic() - start < 0.3 + 0.3 * SLOW
            wait_for("the queue is empty", lambda: s.status().waiting == 0, 1 * SLOW)
        s.assert_idle()


def test_many_random_cancels_leak_nothing(tight):
    """ROUNDS requests of mixed lengths, each cancelled at a random moment (or left to end), 16 at a time."""
    channels = [tight.new_channel() for _ in range(4)]
    for c in channels:
        rpc.InferenceStub(c).EngineStatus(pb.EngineStatusRequest(), timeout=10 * SLOW)

    def rounds(seed, n):
        rng = random.Random(seed)
        stub = rpc.InferenceStub(channels[seed % 4])
        for _ in range(n):
            ids = [rng.randrange(100, 40000)] * rng.choice((1, 1, 20, 90))
            how = rng.randrange(4)
            call = stub.Generate(ids_request(ids, rng.choice((1, 5, 400)), choices=rng.choice((1, 1, 1, 3))),
                                 timeout=rng.uniform(0.001, 0.08) * SLOW if how == 0 else 60 * SLOW)
            try:
                if how == 1:
                    next(call)
                elif how == 2:
                    time.sleep(rng.uniform(0, 0.05) * SLOW)
                elif how == 3:
                    for i, _m in enumerate(call):
                        if i == 3:
                            break
            except grpc.RpcError as e:
                assert e.code() in (C.DEADLINE_EXCEEDED, C.RESOURCE_EXHAUSTED), e
            call.cancel()

    def burst(n):
        threads = [threading.Thread(target=rounds, args=(seed, n)) for seed in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        tight.assert_idle(5)

    burst(1 if BRIEF else 8)  # the pool is touched, buffers have grown
    fds, threads_before, rss = tight.fds(), tight.threads(), tight.rss_bytes()
    burst(ROUNDS // 16)
    assert tight.fds() <= fds and tight.threads() <= threads_before
    if not harness.SANITIZER:
        growth = tight.rss_bytes() - rss
        assert growth < 16 * 2**20, f"{growth} bytes more"
    for c in channels:
        c.close()
    s = tight.status()
    assert s.requests_failed == 0 and s.kv_blocks_free == s.kv_blocks_total
    assert len(generate(tight, ids_request(LONG, 5)).tokens) == 5


CLIENT = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
request = bytes.fromhex(sys.argv[2])
calls = [channel.unary_stream("/inferd.v1.Inference/Generate")(request) for _ in range(4)]
for c in calls: next(c)
print("streaming", flush=True)
for c in calls:
    for m in c: pass
"""


def test_client_is_killed(tight):
    fds = tight.fds()
    for _ in range(2 if BRIEF else 5):
        request = ids_request(LONG, 300).SerializeToString().hex()
        p = subprocess.Popen([sys.executable, "-c", CLIENT, tight.address, request], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "GRPC_VERBOSITY": "NONE"})
        assert p.stdout.readline().strip() == "streaming"
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        tight.assert_idle()
    wait_for("descriptors are back", lambda: tight.fds() <= fds, 5 * SLOW)


def test_time_of_release_is_one_step(tight):
    """The median time from cancel to free blocks, seen over the API, stays in the order of a step."""
    times = []
    for _ in range(3 if BRIEF else 15):
        call = tight.stub.Generate(ids_request(LONG, 1000))
        next(call)
        start = time.monotonic()
        call.cancel()
        wait_for("free", lambda: tight.status().kv_blocks_free == tight.status().kv_blocks_total, 2 * SLOW)
        times.append(time.monotonic() - start)
    assert sorted(times)[len(times) // 2] < 0.1 * SLOW, times
