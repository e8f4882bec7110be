"""TLS and mTLS: who gets in, certificates replaced under load without a restart, bad files that change nothing."""
import os
import signal
import subprocess
import threading
import time
import urllib.request

import grpc
import pytest

import identity
from harness import BRIEF, INFERD, MODEL, PATIENCE_S, Answer, Server, ids_request, pb, refused, rpc, unread, wait_for
from identity import METHODS, Authority, bearer, call, line, secure_channel, serial_in, serial_of
from test_auth import denied, metric

C = grpc.StatusCode


class Files:
    """server.crt, server.key and clients.pem of a server, replaced as an operator would: write beside, rename. put() replaces a pair at
    once, as Kubernetes does: a link to the folder that has both."""

    def __init__(self, folder, authority):
        self.folder, self.n = folder, 0
        self.cert, self.key, self.ca = folder / "now/server.crt", folder / "now/server.key", folder / "clients.pem"
        self.put(authority.issue("server"))
        self.ca.write_bytes(authority.cert.read_bytes())

    @staticmethod
    def replace(path, content):
        beside = path.with_suffix(".new")
        beside.write_bytes(content)
        os.replace(beside, path)

    def put(self, pair, seen=True):
        """Not seen: with the times of the old pair, so that the server, which looks once a second, finds no change by itself."""
        self.n += 1
        new, link = self.folder / f"pair{self.n}", self.folder / "link"
        new.mkdir()
        (new / "server.crt").write_bytes(pair[0])
        (new / "server.key").write_bytes(pair[1])
        for path in () if seen else (self.cert, self.key):
            os.utime(new / path.name, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        link.symlink_to(new.name)
        os.replace(link, self.folder / "now")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def tls(tmp_path_factory, authority):
    files = Files(tmp_path_factory.mktemp("tls"), authority)
    roots = authority.cert.read_bytes()
    with Server({"server.tls.cert": files.cert, "server.tls.key": files.key, "engine.kv_blocks": 256}, admin=True,
                credentials=grpc.ssl_channel_credentials(roots)) as s:
        s.files, s.roots = files, roots
        yield s


@pytest.fixture(scope="module")
def mtls(tmp_path_factory, authority):
    files = Files(tmp_path_factory.mktemp("mtls"), authority)
    cert, key = authority.issue("alice")
    roots = authority.cert.read_bytes()
    with Server({"server.tls.cert": files.cert, "server.tls.key": files.key, "server.tls.client_ca": files.ca,
                 "server.health_listen": "127.0.0.1:0", "engine.kv_blocks": 256}, admin=True,
                credentials=grpc.ssl_channel_credentials(roots, key, cert)) as s:
        s.files, s.roots, s.alice = files, roots, (cert, key)
        yield s


def no_handshake(channel):
    """The connection never comes up."""
    with channel:
        refused(lambda: channel.unary_unary("/inferd.v1.Inference/ModelInfo")(b"", timeout=PATIENCE_S), C.UNAVAILABLE)


def reloaded(server, event, do):
    n = len(server.events(event))
    do()
    wait_for(f"event {event}", lambda: len(server.events(event)) > n)


def test_only_tls_from_a_known_authority(tls, tmp_path):
    assert call(tls.channel, identity.GENERATE)
    no_handshake(grpc.insecure_channel(tls.address))
    no_handshake(secure_channel(tls.address, Authority(tmp_path, "stranger").cert.read_bytes()))
    for old in ("-tls1", "-tls1_1"):
        r = subprocess.run(["openssl", "s_client", "-connect", tls.address, old, "-cipher", "ALL:@SECLEVEL=0"], input=b"",
                           capture_output=True)
        assert r.returncode != 0, f"{old} was accepted"


def test_tokens_over_tls(tmp_path, authority):
    files = Files(tmp_path, authority)
    (tmp_path / "tokens").write_text(line("alice-secret", "alice"))
    with Server({"server.tls.cert": files.cert, "server.tls.key": files.key, "auth.tokens_file": tmp_path / "tokens",
                 "engine.kv_blocks": 64}, credentials=grpc.ssl_channel_credentials(authority.cert.read_bytes())) as s:
        for path in METHODS:
            denied(s.channel, path, ())
            denied(s.channel, path, bearer("wrong"))
            assert call(s.channel, path, bearer("alice-secret"))
        both = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(authority.cert.read_bytes()),
                                                  grpc.access_token_call_credentials("alice-secret"))
        with grpc.secure_channel(s.address, both) as channel:  # the way a stock client carries a token
            assert call(channel, identity.GENERATE)


def test_mtls_needs_a_certificate_of_its_authority(mtls, authority, tmp_path):
    assert call(mtls.channel, identity.GENERATE)
    no_handshake(secure_channel(mtls.address, mtls.roots))
    no_handshake(secure_channel(mtls.address, mtls.roots, Authority(tmp_path, "stranger").issue("alice")))
    no_handshake(secure_channel(mtls.address, mtls.roots, authority.issue("alice", days=-1)))
    health = next(w for w in mtls.events("ready")[0].split() if w.startswith("health=")).split("=")[1]
    with grpc.insecure_channel(health) as channel:
        assert call(channel, "/grpc.health.v1.Health/Check")


def test_the_certificate_names_the_tenant(mtls, authority):
    with unread(mtls, request_id="mine") as (_, stream):
        with secure_channel(mtls.address, mtls.roots, authority.issue("bob")) as channel:
            bob = rpc.InferenceStub(channel)
            assert not bob.Abort(pb.AbortRequest(request_ids=["mine"])).aborted
            Answer(bob.Generate(ids_request([12] * 8, 1, request_id="mine")))
        assert list(mtls.stub.Abort(pb.AbortRequest(request_ids=["mine"])).aborted) == ["mine"]
        list(stream)
    wait_for("two lines", lambda: len([r for r in mtls.events("request") if "req=mine" in r]) == 2)
    assert {w for r in mtls.events("request") if "req=mine" in r for w in r.split() if w.startswith("tenant=")} == {
        "tenant=alice", "tenant=bob"}


def test_a_certificate_without_a_common_name_is_somebody(mtls, authority):
    """Its URI, its DNS name, its digest, in this order; never nobody, who would share a cache with all such."""
    digest = "tenant=sha256:"
    for san, tenant in (("URI:spiffe://example.org/a,DNS:a.example", "tenant=spiffe://example.org/a"),
                        ("DNS:b.example", "tenant=dns:b.example"), ("IP:127.0.0.1", digest), ("IP:127.0.0.1", digest)):
        with secure_channel(mtls.address, mtls.roots, authority.issue("", san=san, subject="/O=none")) as channel:
            answer = Answer(rpc.InferenceStub(channel).Generate(ids_request([13] * 100, 1)))
            assert answer.prompt.cached_tokens == 0, "a cache of its own"
            lines = lambda: [r for r in mtls.events("request") if f"req={answer.request_id}" in r]
            wait_for("the line", lines)
            assert tenant in lines()[0], lines()


class Load:
    """Callers that open a connection for each stream, and count what fails."""

    def __init__(self, make_channel, n=4, tokens=6):
        self.make_channel, self.tokens, self.stop, self.done, self.failures = make_channel, tokens, False, [0] * n, []
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(n)]

    def _run(self, i):
        while not self.stop:
            with self.make_channel() as channel:
                try:
                    Answer(rpc.InferenceStub(channel).Generate(ids_request([40 + i] * 8, self.tokens), timeout=5 * PATIENCE_S))
                    self.done[i] += 1
                except Exception as e:  # noqa: BLE001 - counted
                    self.failures.append(repr(e))

    def __enter__(self):
        [t.start() for t in self.threads]
        return self

    def __exit__(self, *_):
        self.stop = True
        [t.join() for t in self.threads]


@pytest.mark.parametrize("kind", ["tls", "mtls"])
def test_rotation_under_load(kind, request, authority):
    """New certificates, some with a signal and some without: no stream fails, old connections stay, new ones see them."""
    s = request.getfixturevalue(kind)
    client = s.alice if kind == "mtls" else None
    with unread(s) as (_, long_one), Load(lambda: secure_channel(s.address, s.roots, client)) as load:
        for i in range(2 if BRIEF else 3):
            pair = authority.issue("server")
            s.files.put(pair)
            if i % 2 == 0:
                s.signal(signal.SIGHUP)
            wait_for("the new certificate is shown", lambda: serial_of(s.address) == serial_in(pair[0]))
            seen = sum(load.done)
            wait_for("streams on it", lambda: load.failures or sum(load.done) >= seen + 4)
            assert not next(long_one).HasField("finish")
    assert not load.failures, load.failures[:3]
    assert metric(s, "inferd_tls_reload_failures_total") == 0


def test_client_authority_is_replaced_too(mtls, tmp_path):
    """Those whom the new authority does not know stay out; who is in stays in."""
    def reload_authority(pem):
        reloaded(mtls, "tls_reloaded", lambda: (Files.replace(mtls.files.ca, pem), mtls.signal(signal.SIGHUP)))

    new = Authority(tmp_path, "new")
    before = mtls.files.ca.read_bytes()
    with unread(mtls) as (_, stream):
        reload_authority(new.cert.read_bytes())
        no_handshake(secure_channel(mtls.address, mtls.roots, mtls.alice))
        with secure_channel(mtls.address, mtls.roots, new.issue("carol")) as channel:
            assert call(channel, identity.GENERATE)
        assert not next(stream).HasField("finish")
    reload_authority(before)
    with secure_channel(mtls.address, mtls.roots, mtls.alice) as channel:
        assert call(channel, identity.GENERATE)


def bad_pairs(authority, folder):
    good, other = authority.issue("server"), authority.issue("server")
    key = folder / "k"
    key.write_bytes(good[1])
    locked = subprocess.run(["openssl", "pkey", "-aes128", "-passout", "pass:x", "-in", key], capture_output=True, check=True).stdout
    return {
        "empty": (b"", b""),
        "no PEM": (b"hello\n", good[1]),
        "cut": (good[0][:300], good[1]),
        "broken chain": (good[0] + other[0][:200], good[1]),
        "key of another": (good[0], other[1]),
        "no key": (good[0], b"no key\n"),
        "passphrase": (good[0], locked),
        "expired": authority.issue("server", days=-1),
        "not yet valid": authority.issue("server", start=86400),
        "weak key": authority.issue("server", key=("rsa:1024",)),
        "too large": (good[0] + b"#" * 2**20, good[1]),
        "a NUL": (good[0] + b"\0", good[1]),
    }


def test_bad_certificates_change_nothing(tls, authority, tmp_path):
    """Every kind: the old one is shown on, the counter rises, the log and the page say so; a good one is then taken."""
    shown = serial_of(tls.address)
    expiry = metric(tls, "inferd_tls_certificate_not_after_seconds")
    assert 29 * 86400 < expiry - time.time() < 31 * 86400
    for name, pair in bad_pairs(authority, tmp_path).items():
        failures = metric(tls, "inferd_tls_reload_failures_total")
        tls.files.put(pair, seen=False)
        reloaded(tls, "tls_reload_failed", lambda: tls.signal(signal.SIGHUP))
        assert metric(tls, "inferd_tls_reload_failures_total") == failures + 1, name
        with secure_channel(tls.address, tls.roots) as channel:
            assert call(channel, identity.GENERATE), name
    assert serial_of(tls.address) == shown and metric(tls, "inferd_tls_certificate_not_after_seconds") == expiry
    page = urllib.request.urlopen(f"http://{tls.admin_address}/statusz").read().decode()
    assert "certificate files are not usable" in page

    failures = metric(tls, "inferd_tls_reload_failures_total")
    Files.replace(tls.files.cert, b"hello\n")  # without a signal
    wait_for("seen without a signal", lambda: metric(tls, "inferd_tls_reload_failures_total") == failures + 1)
    tls.files.put(pair := authority.issue("server"))
    wait_for("the good one is taken", lambda: serial_of(tls.address) == serial_in(pair[0]))


def test_a_pair_replaced_one_by_one_is_no_failure(tls, authority):
    """For a moment certificate and key do not match: that is not reported, wherever the cut falls between two looks. They are a second
    apart: a machine that takes longer for the two is given another try."""
    for pause_s in (0.3, 0.6):
        in_time, tries = False, 0
        while not in_time:
            assert (tries := tries + 1) < 50
            failures = metric(tls, "inferd_tls_reload_failures_total")
            cert, key = authority.issue("server")
            start = time.monotonic()
            Files.replace(tls.files.cert, cert)
            time.sleep(pause_s)
            Files.replace(tls.files.key, key)
            in_time = time.monotonic() - start < 0.95
            wait_for("shown", lambda: serial_of(tls.address) == serial_in(cert))
            assert metric(tls, "inferd_tls_reload_failures_total") == failures or not in_time


def test_bad_files_at_start_are_refused(tmp_path, authority):
    for name, pair in bad_pairs(authority, tmp_path).items():
        cert, key = tmp_path / "c", tmp_path / "k"
        cert.write_bytes(pair[0])
        key.write_bytes(pair[1])
        flags = [f"--set=server.tls.cert={cert}", f"--set=server.tls.key={key}", "--listen=127.0.0.1:0", "--admin=off"]
        r = subprocess.run([INFERD, "--model", MODEL, *flags], capture_output=True, text=True, timeout=PATIENCE_S)
        assert r.returncode == 5 and r.stderr.startswith("inferd: server.tls") and r.stderr.count("\n") == 1, (name, r.stderr)
