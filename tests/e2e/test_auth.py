"""Bearer tokens: default deny on every method, tenants kept apart, tokens replaced without a restart."""
import os
import signal
import time
import urllib.request

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import identity
from harness import PATIENCE_S, Answer, Details, Server, ids_request, pb, refused, unread, wait_for
from identity import GENERATE, METHODS, Tenant, bearer, call, line

C = grpc.StatusCode
PROMPT = list(range(100, 228))  # four blocks


def metric(server, name, labels=""):
    page = urllib.request.urlopen(f"http://{server.admin_address}/metrics", timeout=PATIENCE_S).read().decode()
    rows = [row for row in page.splitlines() if row.startswith(name + "{") and labels in row]
    assert len(rows) == 1, (name, rows)
    return float(rows[0].split()[-1])


def denied(channel, path, metadata):
    """UNAUTHENTICATED, constant text, trailers only, a reason, and nothing about why."""
    try:
        got = call(channel, path, metadata)
    except grpc.RpcError as e:
        assert e.code() == C.UNAUTHENTICATED, (path, metadata, e.code(), e.details())
        d = Details(e)
        assert d.message == "a valid credential is needed" and d.reason == "UNAUTHENTICATED" and d.pushback_ms is None
        assert not list(e.initial_metadata() or ()), "trailers only"
        return
    raise AssertionError(f"{path} with {metadata} was answered: {got}")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A server with two tenants; the file may be rewritten by a test, which then puts it back."""
    path = tmp_path_factory.mktemp("auth") / "tokens"
    text = ("# two tenants\n" + line("alice-secret", "alice") + line("bob-secret", "bob") +
            line("old-secret", "alice", "expires=2020-01-01"))
    path.write_text(text)
    with Server({"auth.tokens_file": path, "server.health_listen": "127.0.0.1:0", "engine.kv_blocks": 256}, admin=True) as s:
        s.tokens_path, s.tokens_text = path, text
        s.alice, s.bob = Tenant(s.channel, "alice-secret"), Tenant(s.channel, "bob-secret")
        yield s


def replace_tokens(server, text, seen=True):
    """At once. Not seen: with the time of the old file, so that the server, which looks once a second, finds no change by itself."""
    path = server.tokens_path
    beside, old = path.with_suffix(".new"), path.stat()
    beside.write_text(text)
    os.utime(beside, ns=(old.st_atime_ns, old.st_mtime_ns + (10**9 if seen else 0)))
    os.replace(beside, path)


def reload(server, text, event):
    """By SIGHUP alone, so that there is one event, and it is of this text."""
    n = len(server.events(event))
    replace_tokens(server, text, seen=False)
    server.signal(signal.SIGHUP)
    wait_for(f"event {event}", lambda: len(server.events(event)) == n + 1)


def test_the_table_here_names_every_method(server):
    """What reflection lists, and reflection itself: a new method that this file forgets fails here."""
    db = ProtoReflectionDescriptorDatabase(server.channel)
    pool = descriptor_pool.DescriptorPool(db)
    found = {f"/{name}/{m.name}" for name in db.get_services() for m in pool.FindServiceByName(name).methods}
    assert found | {p for p in METHODS if "reflection" in p} == set(METHODS)


@pytest.mark.parametrize("path", METHODS)
def test_without_credentials_all_are_served(server, path):
    assert call(server.channel, path)


@pytest.mark.parametrize("path", METHODS)
def test_default_deny(tokens, path):
    """Each method x {no, wrong, malformed, expired} credential; a valid one is served by the same call."""
    digest = line("alice-secret", "").split()[0]
    wrong = [(), bearer("wrong"), bearer("alice-secre"), bearer("alice-secrett"), bearer("ALICE-SECRET"), bearer(""),
             bearer(digest), bearer(digest[7:]), bearer("old-secret"), (("authorization", "alice-secret"),),
             (("authorization", "Basic alice-secret"),), (("x-authorization", "Bearer alice-secret"),),
             (("authorization", "Bearer"),), (("authorization", "Bearer alice-secret bob-secret"),), bearer("x" * 4000)]
    before = metric(tokens, "inferd_auth_denied_total")
    for metadata in wrong:
        denied(tokens.channel, path, metadata)
    wait_for("all counted", lambda: metric(tokens, "inferd_auth_denied_total") == before + len(wrong))
    for good in ("alice-secret", "bob-secret"):
        assert call(tokens.channel, path, bearer(good))


def test_unknown_methods_are_no_oracle(tokens):
    """Who may not call does not learn what there is to call."""
    for path in ("/inferd.v1.Inference/Nope", "/no.such.Service/Call", "/"):
        wrong = tokens.channel.unary_unary(path)
        d = refused(lambda: wrong(b"", metadata=bearer("wrong"), timeout=PATIENCE_S), C.UNAUTHENTICATED)
        assert d.message == "a valid credential is needed"
        refused(lambda: wrong(b"", metadata=bearer("bob-secret"), timeout=PATIENCE_S), C.UNIMPLEMENTED)


def test_another_tenant_cannot_end_or_touch_a_request(tokens):
    alice, bob = tokens.alice, tokens.bob
    with unread(tokens, metadata=alice.metadata, request_id="r1") as (_, stream):
        assert bob.abort("r1") == [], "a stranger's request is as unknown as one that does not exist"
        same_id = Answer(bob.generate(ids_request([12] * 8, 4, request_id="r1")))
        assert same_id.request_id == "r1", "ids are each tenant's own"
        refused(lambda: alice.generate(ids_request([11] * 8, 4, request_id="r1")), C.ALREADY_EXISTS)
        for _ in range(3):
            assert not next(stream).HasField("finish"), "alice's stream goes on"
        assert alice.abort("r1") == ["r1"]
        *_, last = stream
        assert last.finish.reason == pb.FINISH_REASON_ABORTED


def test_prompt_cache_is_not_shared_between_tenants(tokens):
    """Neither the answer nor its usage tells a tenant what another one has asked."""
    first, again = (Answer(tokens.alice.generate(ids_request(PROMPT, 2))) for _ in range(2))
    assert first.usage.cached_tokens == 0 and again.usage.cached_tokens > 0, "the cache is at work"
    other = Answer(tokens.bob.generate(ids_request(PROMPT, 2)))
    assert other.usage.cached_tokens == 0 and other.tokens == first.tokens
    salted = Answer(tokens.alice.generate(ids_request(PROMPT, 2, cache_salt="s")))
    assert salted.usage.cached_tokens == 0


def test_health_port_needs_no_token_and_has_nothing_else(tokens):
    address = next(w for w in tokens.events("ready")[0].split() if w.startswith("health=")).split("=")[1]
    with grpc.insecure_channel(address) as channel:
        for path in METHODS:
            if "Health" in path:
                assert call(channel, path)
            else:
                refused(lambda: call(channel, path), C.UNIMPLEMENTED)
                refused(lambda: call(channel, path, bearer("alice-secret")), C.UNIMPLEMENTED)


def test_tokens_reload(tokens):
    """Removed: new calls are refused, a stream that runs ends as it would. Added: served. Bad file: all stays, counted."""
    with unread(tokens, 160, choices=8, metadata=tokens.bob.metadata) as (_, stream):
        reload(tokens, line("alice-secret", "alice", "streams=1") + line("carol-secret", "carol"), "tokens_reloaded")
        denied(tokens.channel, GENERATE, bearer("bob-secret"))
        assert call(tokens.channel, GENERATE, bearer("carol-secret"))
        *_, last = stream
        assert last.finish.reason == pb.FINISH_REASON_MAX_TOKENS, "a running stream was authenticated when it began"

    with unread(tokens, metadata=tokens.alice.metadata):
        d = refused(lambda: tokens.alice.generate(ids_request([22] * 8, 1)), C.RESOURCE_EXHAUSTED)
        assert d.reason == "QUOTA" and d.pushback_ms > 0
        failures = metric(tokens, "inferd_token_reload_failures_total")
        for bad in ("", "no token\n", line("alice-secret", "alice") + "sha256:12 x\n"):
            reload(tokens, bad, "tokens_reload_failed")
            assert call(tokens.channel, "/inferd.v1.Inference/ModelInfo", bearer("carol-secret"))
            denied(tokens.channel, GENERATE, bearer("bob-secret"))
            refused(lambda: tokens.alice.generate(ids_request([22] * 8, 1)), C.RESOURCE_EXHAUSTED)
        assert metric(tokens, "inferd_token_reload_failures_total") == failures + 3
    reload(tokens, tokens.tokens_text, "tokens_reloaded")
    wait_for("idle", lambda: tokens.alice.status().running == 0)


def test_tokens_replaced_without_a_signal(tokens):
    """A container has nobody who could send one; a bad file is tried once, not every second."""
    replaced = len(tokens.events("tokens_reloaded"))
    replace_tokens(tokens, tokens.tokens_text + line("dave-secret", "dave"))
    wait_for("taken", lambda: len(tokens.events("tokens_reloaded")) == replaced + 1)
    assert call(tokens.channel, GENERATE, bearer("dave-secret"))
    failures = metric(tokens, "inferd_token_reload_failures_total")
    replace_tokens(tokens, "bad\n")
    wait_for("tried", lambda: metric(tokens, "inferd_token_reload_failures_total") == failures + 1)
    time.sleep(2.5)  # two more looks; on a slow machine fewer, which finds less but nothing wrong
    assert metric(tokens, "inferd_token_reload_failures_total") == failures + 1
    assert call(tokens.channel, GENERATE, bearer("dave-secret"))
    reload(tokens, tokens.tokens_text, "tokens_reloaded")
    denied(tokens.channel, GENERATE, bearer("dave-secret"))


def test_log_says_who_and_never_the_token(tokens):
    Answer(tokens.bob.generate(ids_request([31] * 8, 2, request_id="who-was-it")))
    wait_for("the request's line", lambda: any("req=who-was-it" in row for row in tokens.events("request")))
    row = next(row for row in tokens.events("request") if "req=who-was-it" in row)
    assert "tenant=bob" in row
    for secret in ("alice-secret", "bob-secret", "old-secret", line("bob-secret", "").split()[0][7:]):
        assert not any(secret in row for row in tokens.lines), secret
