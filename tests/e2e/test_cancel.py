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
from harness import BRIEF, PATIENCE_S, SLOW, Answer, Server, generate, ids_request, occupied, pb, refused, rpc, wait_for

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


def test_cancel_while_decoding():
    """Each of them would go on for 8,000 tokens: all end much earlier, as cancelled."""
    n = 3 if BRIEF else 15
    with Server({"engine.kv_blocks": 256}) as s:
        for i in range(n):
            call = s.stub.Generate(ids_request(LONG, 8000))
            for _ in range(3):
                next(call)
            call.cancel()
            s.assert_idle()
        s.wait_status(requests_cancelled=n)
        status = s.status()
        assert status.requests_finished == status.requests_failed == 0 and status.generated_tokens < n * 4000


def test_cancel_in_prefill():
    """8,000 prompt tokens in chunks of 64 are many seconds of work: cancelled before the first token."""
    with Server({"engine.kv_blocks": 256, "engine.max_step_tokens": 64}) as s:
        before = s.status()
        call = s.stub.Generate(ids_request([i + 100 for i in range(8000)], 10))
        wait_for("it is computed", lambda: s.status().steps > before.steps)
        call.cancel()
        s.assert_idle()
        s.wait_status(requests_cancelled=1)
        assert s.status().generated_tokens == before.generated_tokens


def test_cancel_while_waiting():
    with Server({"engine.max_sequences": 1, "engine.kv_blocks": 256}) as s:
        with occupied(s):
            waiting = s.stub.Generate(ids_request(LONG, 10))
            wait_for("waiting", lambda: s.status().waiting == 1)
            waiting.cancel()
            wait_for("the queue is empty", lambda: s.status().waiting == 0)
            assert s.status().running == 1
            one_more = s.stub.Generate(ids_request(LONG, 10, request_id="w"))
            wait_for("waiting", lambda: s.status().waiting == 1)
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
    """What would take seconds, or not begin at all, ends at its deadline."""
    d = refused(lambda: tight.stub.Generate(ids_request(LONG, 1500), timeout=0.4), C.DEADLINE_EXCEEDED)
    assert d.code == C.DEADLINE_EXCEEDED
    tight.assert_idle()
    refused(lambda: tight.stub.Generate(ids_request([i + 100 for i in range(1500)], 30), timeout=0.05), C.DEADLINE_EXCEEDED)
    tight.assert_idle()
    with Server({"engine.max_sequences": 1, "engine.kv_blocks": 256}) as s:
        with occupied(s):
            refused(lambda: s.stub.Generate(ids_request(LONG, 10), timeout=0.3), C.DEADLINE_EXCEEDED)
            wait_for("the queue is empty", lambda: s.status().waiting == 0)
            assert s.status().running == 1, "the queue did not move"
        s.assert_idle()


def assert_no_growth(server, burst):
    """A leak makes memory grow in every burst; what pieces a crowded machine leaves between others makes it grow in some. Two bursts
    after each other must leave the peak as it was, or nearly: 8 KiB a request."""
    peaks, calm = [server.rss_bytes()], 0
    while calm < 2:
        assert len(peaks) < 40, f"memory after each burst: {peaks}"
        burst()
        rss = server.rss_bytes()
        calm = calm + 1 if rss < max(peaks) + 2**20 and len(peaks) > 5 else 0
        peaks.append(rss)


def test_many_random_cancels_leak_nothing(tight):
    """ROUNDS requests of mixed lengths, each cancelled at a random moment (or left to end), 16 at a time."""
    channels = [tight.new_channel() for _ in range(4)]
    for c in channels:
        rpc.InferenceStub(c).EngineStatus(pb.EngineStatusRequest(), timeout=PATIENCE_S)

    def rounds(seed, n):
        rng = random.Random(seed)
        stub = rpc.InferenceStub(channels[seed % 4])
        for _ in range(n):
            ids = [rng.randrange(100, 40000)] * rng.choice((1, 1, 20, 90))
            how = rng.randrange(4)
            call = stub.Generate(ids_request(ids, rng.choice((1, 5, 400)), choices=rng.choice((1, 1, 1, 3))),
                                 timeout=rng.uniform(0.001, 0.08) * SLOW if how == 0 else 5 * PATIENCE_S)
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
        tight.assert_idle()

    generate(tight, ids_request([i + 100 for i in range(1500)], 5))  # the whole pool is touched
    burst(1 if BRIEF else 8)  # buffers have grown
    fds, threads_before = tight.fds(), tight.threads()
    if harness.SANITIZER:  # LeakSanitizer sees more than a sum
        burst(ROUNDS // 16)
    else:
        assert_no_growth(tight, lambda: burst(ROUNDS // 128))
    wait_for("descriptors are back", lambda: tight.fds() <= fds)
    # gRPC has a few more threads when it is busy: not one for every third request.
    wait_for("threads are back", lambda: tight.threads() < threads_before + 16)
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
    fds, before, n = tight.fds(), tight.status().requests_cancelled, 2 if BRIEF else 5
    for _ in range(n):
        request = ids_request(LONG, 1500).SerializeToString().hex()
        p = subprocess.Popen([sys.executable, "-c", CLIENT, tight.address, request], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "GRPC_VERBOSITY": "NONE"})
        assert p.stdout.readline().strip() == "streaming"
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        tight.assert_idle()
    wait_for("descriptors are back", lambda: tight.fds() <= fds)
    wait_for("they count as cancelled", lambda: tight.status().requests_cancelled >= before + 4 * n)
