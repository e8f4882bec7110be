"""Continuous batching never changes tokens: 64 concurrent streams of mixed lengths equal their solo runs bit for bit, greedy
and seeded, with chunked prefill, with a pool so small that sequences are preempted, with and without prefix reuse."""
import contextlib
import random
import threading

import grpc
import pytest

from harness import BRIEF, Server, generate, ids_request, occupied, pb, run_all, wait_for

N = 8 if BRIEF else 64
SMALL_POOL = 12 if BRIEF else 24  # blocks of 16: the longest request needs 12, and together they need far more


def requests():
    rng = random.Random(11)
    common = [rng.randrange(100, 40000) for _ in range(40)]
    out = []
    for i in range(N):
        ids = (common if i % 3 == 0 else []) + [rng.randrange(100, 40000) for _ in range(rng.choice((1, 3, 15, 16, 17, 31, 50, 90)))]
        sampling = pb.Sampling() if i % 2 == 0 else pb.Sampling(temperature=1.0, seed=1000 + i, top_p=0.95, repetition_penalty=1.1)
        out.append(ids_request(ids, rng.choice((1, 6, 16, 33, 50)), sampling=sampling,
                               output=pb.Output(logprobs=i % 8 == 0, top_logprobs=2 * (i % 8 == 0))))
    return out


@pytest.fixture(scope="module")
def solo():
    """One after the other, alone in the engine, nothing reused, whole prompts."""
    with Server({"engine.kv_blocks": 256, "engine.prefix_cache": False, "engine.max_step_tokens": 512}) as s:
        answers = [generate(s, r) for r in requests()]
        s.assert_idle()
        assert s.status().preemptions == 0
    return answers


def check_equal(got, want):
    for i, (a, b) in enumerate(zip(got, want)):
        assert a.tokens == b.tokens, f"stream {i}"
        assert a.text == b.text, f"stream {i}"
        assert a.logprobs == b.logprobs, f"stream {i}: log-probabilities differ"
        assert a.reason == b.reason


CONFIGURATIONS = {
    "batched": {"engine.kv_blocks": 1024, "engine.prefix_cache": False},
    "chunked": {"engine.kv_blocks": 1024, "engine.max_step_tokens": 64, "engine.prefix_cache": False},
    "preempted": {"engine.kv_blocks": SMALL_POOL, "engine.kv_block_tokens": 16, "engine.prefix_cache": False},
    "preempted, chunked, prefix reuse": {"engine.kv_blocks": SMALL_POOL, "engine.kv_block_tokens": 16, "engine.max_step_tokens": 64},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_concurrent_streams_equal_solo_runs(name, solo):
    sets = {"engine.max_sequences": 64, "engine.max_step_tokens": 512, **CONFIGURATIONS[name]}
    with Server(sets) as s:
        check_equal(run_all(s, requests()), solo)
        s.assert_idle()
        if name.startswith("preempted"):
            assert s.status().preemptions > 0, "the pool was meant to be too small"
        if "reuse" in name:
            again = run_all(s, requests())
            check_equal(again, solo)
            assert sum(a.usage.cached_tokens for a in again) > 0, "nothing was reused"
            s.assert_idle()


def test_priorities_go_first():
    """One sequence at a time: of those that wait, the highest priority runs first, then arrival. Each runs until it is cancelled."""
    with Server({"engine.max_sequences": 1, "engine.kv_blocks": 256}) as s:
        calls, begun, threads = {}, [], []

        def read(priority):
            with contextlib.suppress(grpc.RpcError):  # its cancellation
                next(calls[priority])
                begun.append(priority)

        with occupied(s) as block:
            for i, priority in enumerate((0, -5, 10, 100, -100)):
                calls[priority] = s.stub.Generate(ids_request([7, 8, 9], 8000, priority=priority))
                threads.append(threading.Thread(target=read, args=(priority,)))
                threads[-1].start()
                wait_for("it waits", lambda: s.status().waiting == i + 1)
            block.cancel()
            for i, priority in enumerate((100, 10, 0, -5, -100)):
                wait_for("one more runs", lambda: len(begun) > i)
                assert begun[i:] == [priority]
                calls[priority].cancel()
        for t in threads:
            t.join()
        s.assert_idle()
