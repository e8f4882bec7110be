"""Content privacy: strings planted in every field that carries content, over success, refusal, cancellation and abuse, at every log
level; afterwards no log line, metric, page, error text or trailer has any of them. Each canary is also proven to have arrived."""
import base64
import contextlib
import socket
import struct
import urllib.error
import urllib.request

import grpc
import pytest

import abuse
import identity
from harness import PATIENCE_S, Answer, Server, chat_request, ids_request, pb, refused, rpc, text_request, wait_for
from identity import line

C = grpc.StatusCode


class Canaries:
    """New words, one a place; found again in any of the shapes in which a text may turn up."""

    def __init__(self):
        self.words = {}

    def __call__(self, place):
        word = f"zqCanary{len(self.words):03d}x{place.title().replace('_', '')}Qz"
        self.words[word] = place
        return word

    def found_in(self, text):
        """Places whose word is in text: as it is, in another case, as hex, or base64 at any offset."""
        low = text.lower()
        hits = []
        for word, place in self.words.items():
            shapes = {word.lower(), word.encode().hex()}
            for pad in range(3):
                coded = base64.b64encode(b"\0" * pad + word.encode()).decode()
                shapes.add(coded[4:-4].lower())
            if any(s in low for s in shapes):
                hits.append(place)
        return hits


def test_the_detector_detects():
    canaries = Canaries()
    word = canaries("prompt")
    for text in (f"event=x text={word}", word.upper(), f"x{word.encode().hex()}y",
                 base64.b64encode(b"padding " + word.encode() + b" more").decode()):
        assert canaries.found_in(text) == ["prompt"], text
    assert canaries.found_in("event=ready addr=127.0.0.1") == []


def pages(server):
    out = []
    for path in ("/metrics", "/statusz", "/livez", "/readyz", "/nothing"):
        try:
            out.append(urllib.request.urlopen(f"http://{server.admin_address}{path}", timeout=PATIENCE_S).read().decode())
        except urllib.error.HTTPError as e:
            out.append(e.read().decode())
    return out


def said_by(error):
    """Everything that an error says: message, trailers, headers."""
    parts = [str(error.code()), error.details() or "", error.debug_error_string() or ""]
    for metadata in (error.trailing_metadata() or (), error.initial_metadata() or ()):
        parts += [f"{k} {v if isinstance(v, str) else v.hex() + ' ' + v.decode('latin-1')}" for k, v in metadata]
    return "\n".join(parts)


class Session:
    def __init__(self, server, canaries):
        self.server, self.canaries, self.errors = server, canaries, []
        self.md = identity.bearer("alice-secret")

    def ok(self, request):
        return Answer(self.server.stub.Generate(request, metadata=self.md, timeout=5 * PATIENCE_S))

    def fails(self, code, request, method="Generate", **kw):
        call = getattr(self.server.stub, method)
        try:
            result = call(request, metadata=kw.pop("metadata", self.md), timeout=kw.pop("timeout", PATIENCE_S))
            if method == "Generate":
                list(result)
        except grpc.RpcError as e:
            assert e.code() == code, (e.code(), e.details())
            self.errors.append(said_by(e))
            return e
        raise AssertionError("was not refused")


def succeed(s):
    """Success: canaries in every content field, and out of the model's mouth again."""
    word = s.canaries("prompt_text")
    s.ok(text_request(f"{word} once", 3, stopping=pb.Stopping(stop=[s.canaries("stop_string")])))
    s.ok(chat_request(("system", s.canaries("chat_system")), ("user", s.canaries("chat_user")), max_tokens=3))
    s.ok(pb.GenerateRequest(text="x", cache_salt=s.canaries("cache_salt"), stopping=pb.Stopping(max_tokens=2)))
    s.ok(pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role=s.canaries("role"), content="x", name=s.canaries("name"))]),
                            stopping=pb.Stopping(max_tokens=2)))
    spoken = s.canaries("output")  # repeated so often that a greedy model goes on with it
    a = s.ok(text_request(" ".join([spoken] * 12), 40, output=pb.Output(logprobs=True, top_logprobs=3, prompt_logprobs=True)))
    assert spoken in a.text, f"the model was meant to repeat it: {a.text!r}"
    a = s.ok(text_request(" ".join([spoken] * 12), 40, stopping=pb.Stopping(stop=[spoken])))
    assert a.reason == pb.FINISH_REASON_STOP_STRING and a.finish[0].stop == spoken
    ids = s.server.stub.Tokenize(pb.TokenizeRequest(text=s.canaries("tokenize"), pieces=True), metadata=s.md).token_ids
    text = s.server.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids), metadata=s.md).text
    assert s.canaries.found_in(text) == ["tokenize"]
    s.ok(ids_request(ids, 2))


def be_refused(s):
    """Every refusal that looks at content."""
    bad, gen = C.INVALID_ARGUMENT, pb.GenerateRequest
    w = s.canaries
    s.fails(bad, gen(text=w("bad_sampling"), sampling=pb.Sampling(temperature=9)))
    s.fails(bad, gen(text=w("bad_stop"), stopping=pb.Stopping(stop=[w("stop_too_long") * 20])))
    s.fails(bad, gen(text=w("too_long") + " word" * 9000))
    s.fails(bad, gen(text=w("bad_id"), request_id=w("id_with_space") + " x"))
    s.fails(bad, gen(text="x"), metadata=(*s.md, ("x-request-id", w("metadata_id") + "/")))
    s.fails(bad, gen(chat=pb.Chat(messages=[pb.Message(role="user", content=w("tools_user"))],
                                  tools_json=f'[{{"{w("tools_json")}": 1]')))
    s.fails(C.NOT_FOUND, gen(model=w("model"), text=w("with_model")))
    for kind in ("json_schema", "regex", "grammar"):
        s.fails(C.UNIMPLEMENTED, gen(text=w("constrained"), constraint=pb.Constraint(**{kind: w(kind)})))
    s.fails(bad, pb.TokenizeRequest(plain=True, chat=pb.Chat(messages=[pb.Message(role="user", content=w("tokenize_plain"))])),
            "Tokenize")
    s.fails(C.NOT_FOUND, pb.TokenizeRequest(model=w("tokenize_model"), text="x"), "Tokenize")
    s.fails(bad, pb.AbortRequest(request_ids=[w("abort_id") + " "]), "Abort")
    s.fails(C.UNAUTHENTICATED, gen(text=w("unauthenticated")), metadata=identity.bearer(w("token")))
    s.fails(C.RESOURCE_EXHAUSTED, gen(token_ids=pb.TokenIds(ids=[5] * 3000), stopping=pb.Stopping(max_tokens=5000)))
    s.fails(C.DEADLINE_EXCEEDED, text_request(w("deadline"), 4000), timeout=0.2)
    # broken on the wire: text that is not UTF-8, an unfinished message, a field of a wrong type
    raw = s.server.channel.unary_stream(identity.GENERATE)
    for body in (b"\x1a" + bytes([len(w("not_utf8")) + 1]) + list(w.words)[-1].encode() + b"\xff",
                 b"\x1a\x7f" + w("unfinished").encode(), b"\x32\x7f" + w("nested").encode() * 4,
                 b"\x0a" + bytes([len(w("bad_request_id")) + 1]) + list(w.words)[-1].encode() + b"\n"):
        try:
            list(raw(body, metadata=s.md, timeout=PATIENCE_S))
        except grpc.RpcError as e:
            assert e.code() == bad, e
            s.errors.append(said_by(e))
        else:
            raise AssertionError("was not refused")


def be_cut(s):
    """Cancelled, aborted, disconnected while prefilling, decoding and waiting."""
    for i, place in enumerate(("cancelled", "aborted", "dropped")):
        channel = s.server.new_channel()
        call = rpc.InferenceStub(channel).Generate(text_request(s.canaries(place), 4000, request_id=f"cut-{s.server.round}-{i}"),
                                                   metadata=s.md)
        next(call)
        if place == "cancelled":
            call.cancel()
        elif place == "aborted":
            s.server.stub.Abort(pb.AbortRequest(request_ids=[f"cut-{s.server.round}-{i}"]), metadata=s.md)
            list(call)
        channel.close()


def be_abusive(s):
    """Broken HTTP/2 with content and credentials in it: core's own complaints are logged, too."""
    w = s.canaries
    port = int(s.server.address.rsplit(":", 1)[1])
    start = identity.GENERATE.encode()
    head = lambda *more: abuse.request_headers(start, b"".join(abuse.literal(k, v) for k, v in more))  # noqa: E731
    token = (b"authorization", b"Bearer alice-secret")
    body = w("raw_body").encode()
    frames = [
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head(token, (b"x-bin", w("bad_binary").encode() + b"!!"))),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head((b"Upper-Case", w("bad_key").encode()))),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head((b"x-control", w("bad_value").encode() + b"\x01"))),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head((b"grpc-timeout", w("bad_timeout").encode()))),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head((b"grpc-encoding", w("bad_encoding").encode()))),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head((b"content-type", w("content_type").encode()))),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head(token)) +
        abuse.frame(abuse.DATA, abuse.END_STREAM, 1, b"\1" + struct.pack(">I", len(body)) + body),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head(token)) +
        abuse.frame(abuse.DATA, abuse.END_STREAM, 1, b"\0" + struct.pack(">I", 1 << 30) + body),
        abuse.frame(abuse.HEADERS, abuse.END_HEADERS, 1, head(token)) + abuse.frame(250, 255, 1, w("unknown_frame").encode()),
        w("no_preface").encode() * 4,
    ]
    for f in frames:
        with contextlib.suppress(OSError):
            raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            raw.sendall((b"" if f.startswith(b"zq") else abuse.PREFACE + abuse.frame(abuse.SETTINGS, 0, 0)) + f)
            raw.settimeout(0.15)
            with contextlib.suppress(OSError):
                while raw.recv(65536):
                    pass
            raw.close()
    for path in (f"/{w('admin_path')}", f"/metrics?{w('admin_query')}", f"/statusz?{w('page_query')}"):
        with contextlib.suppress(urllib.error.HTTPError):
            s.errors.append(urllib.request.urlopen(f"http://{s.server.admin_address}{path}", timeout=PATIENCE_S).read().decode())


@pytest.mark.parametrize("level,form", [("debug", "text"), ("info", "json"), ("warn", "text"), ("error", "json")])
def test_no_content_anywhere(tmp_path, level, form):
    canaries = Canaries()
    (tmp_path / "tokens").write_text(line("alice-secret", "alice"))
    with Server({"log.level": level, "log.format": form, "auth.tokens_file": tmp_path / "tokens", "engine.kv_blocks": 128,
                 "engine.max_sequences": 4}, admin=True) as s:
        s.round = level + form
        session = Session(s, canaries)
        for part in (succeed, be_refused, be_cut, be_abusive):
            part(session)
        wait_for("idle", lambda: s.stub.EngineStatus(pb.EngineStatusRequest(), metadata=session.md).running == 0)
        artefacts = {"a page": pages(s), "an error": session.errors}
        if level in ("debug", "info"):
            wait_for("all requests are logged", lambda: len(s.events("request")) + sum('"request"' in x for x in s.lines) >= 11)
    artefacts["the log"] = s.lines
    assert len(canaries.words) > 35 and len(session.errors) > 15, "the session was meant to do more"
    for name, texts in artefacts.items():
        for text in texts:
            assert not canaries.found_in(text), (name, canaries.found_in(text), text)
            assert "alice-secret" not in text, (name, text)
