"""The HTTP port: the status page, a unix socket, scrapers that never read; and the one log line that is always there."""
import html.parser
import http.client
import re
import socket
import urllib.request

import pytest

import harness
from harness import PATIENCE_S, Server, ids_request, pb, refused, generate, wait_for


class Page(html.parser.HTMLParser):
    """Text, and everything that a browser would fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.text, self.fetches, self.open = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag in ("script", "link", "img", "iframe", "object", "embed") or "src" in values or any(k.startswith("on") for k in values):
            self.fetches.append((tag, attributes))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + " "


def get(server, path):
    return urllib.request.urlopen(f"http://{server.admin_address}{path}", timeout=PATIENCE_S)


def test_the_status_page(server):
    """What runs is on it, it is whole in itself, it renews itself, and nothing in it can be run."""
    generate(server, ids_request([5] * 40, 20))
    shown = []

    def complete():
        answer = get(server, "/statusz")
        shown[:] = answer, answer.read().decode()
        return "<polyline" in shown[1] and f"{server.status().generated_tokens:,}" in Page(shown[1]).text

    wait_for("history, and the tokens that were generated", complete)
    answer, text = shown
    page = Page(text)
    assert page.fetches == [] and "http-equiv=refresh" in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"] and answer.headers["Cache-Control"] == "no-store"
    for word in ("serving", "Smollm2", "output tokens/s", "KV cache", "p99", "finished", "cached prompts", "Last errors", "MiB"):
        assert word in page.text, word
    s = server.status()
    assert f"{s.kv_blocks_total:,} of 32 tokens" in page.text
    assert len(text) < 64 * 1024


def test_the_page_escapes_what_it_shows():
    with Server({"model.name": "<script>alert(1)</script>&\"", "engine.kv_blocks": 64}, admin=True) as s:
        text = get(s, "/statusz").read().decode()
        assert "<script" not in text and "&lt;script&gt;" in text and Page(text).fetches == []
        assert 'model="<script>alert(1)</script>&\\""' in get(s, "/metrics").read().decode()


def test_admin_on_a_unix_socket(tmp_path):
    path = tmp_path / "admin.sock"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))  # by a process that was killed
    left_behind.close()
    with Server({"engine.kv_blocks": 64}, flags=["--admin", f"unix:{path}"]) as s:
        assert s.admin_address == f"unix:{path}"
        c = http.client.HTTPConnection("x")
        c.sock = socket.socket(socket.AF_UNIX)
        c.sock.connect(str(path))
        c.request("GET", "/readyz")
        assert c.getresponse().read() == b"ok\n"
        c.close()
        with pytest.raises(AssertionError, match="is in use"):  # a second server leaves it alone
            Server({"engine.kv_blocks": 64}, flags=["--admin", f"unix:{path}"])
        assert path.exists()
    assert not path.exists()
    path.write_text("not a socket")
    with pytest.raises(AssertionError, match="cannot listen on unix:"):
        Server({"engine.kv_blocks": 64}, flags=["--admin", f"unix:{path}"])
    assert path.read_text() == "not a socket"


def stalled_scrapers(server, n):
    """Connections that take nothing: every other one asks and reads no answer, which the kernel may take in its place; every other
    one does not come to the end of its question."""
    host, port = server.admin_address.rsplit(":", 1)
    stalled = []
    for i in range(n):
        c = socket.socket()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        c.connect((host, int(port)))
        c.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + (b"" if i % 2 else b"\r\n"))
        stalled.append(c)
    return stalled


def test_scrapers_that_never_read(server):
    """A stream and a healthy scraper beside them are served while half of them hang, and they are cut off."""
    fds = server.fds()

    def served_beside_them():
        stalled = stalled_scrapers(server, 28)
        assert len(generate(server, ids_request([3] * 16, 20)).tokens) == 20
        healthy = b"inferd_steps_total" in get(server, "/metrics").read() and get(server, "/livez").read() == b"ok\n"
        held = server.fds() >= fds + 10
        if held:
            wait_for("they are cut off", lambda: server.fds() <= fds + 1)
        [c.close() for c in stalled]
        wait_for("their places are free", lambda: server.fds() <= fds + 1)
        return healthy and held

    # A machine may be so slow that they were cut off, after ten seconds, before the healthy one came. Then it is tried again.
    assert any(served_beside_them() for _ in range(10)), "whoever reads was served only when those who do not were gone"


def test_one_peer_cannot_take_every_connection(server):
    """Idle connections from one address are bounded, so that others (here: another loopback address) still get through."""
    host, port = server.admin_address.rsplit(":", 1)
    idle = []
    for _ in range(100):
        idle.append(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
    other = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S, source_address=("127.0.0.2", 0))
    other.request("GET", "/livez")
    assert other.getresponse().read() == b"ok\n"
    other.close()
    [c.close() for c in idle]

    def served():
        try:
            return get(server, "/readyz").read() == b"ok\n"
        except OSError:  # closed at once: the others are not yet gone
            return False

    wait_for("its own again", served)


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
def test_ready_is_logged_at_every_level(level):
    """Supervisors wait for it; the rest of the log keeps to its level."""
    with Server({"log.level": level, "engine.kv_blocks": 64}) as s:
        assert s.address and len(s.events("ready")) == 1
        refused(lambda: s.stub.Generate(pb.GenerateRequest()), harness.grpc.StatusCode.INVALID_ARGUMENT)
        generate(s, ids_request([5], 1))
    quiet = level in ("warn", "error")
    assert bool(s.events("request")) != quiet and bool(s.events("stopped")) != quiet
    if level == "error":
        assert len(s.lines) == 1, s.lines
    assert re.search(r" info event=ready addr=127\.0\.0\.1:\d+ admin=off ", s.events("ready")[0])
