"""Hostile requests: every field below, above, NaN, infinite, huge, empty, or not UTF-8. Each is INVALID_ARGUMENT naming its
field, costs the engine nothing, and leaves the server as it was. Bytes are made by hand where a stock client refuses to."""
import struct

import grpc
import pytest

from harness import GENERATE, PATIENCE_S, SLOW, Answer, Details, generate, ids_request, pb, refused, text_request

C = grpc.StatusCode
INF, NAN = float("inf"), float("nan")
VOCAB = 49152


def sampling(**kw):
    return text_request("x", 2, sampling=pb.Sampling(**kw))


def stopping(**kw):
    r = pb.GenerateRequest(text="x", stopping=pb.Stopping(**{"max_tokens": 2, **kw}))
    return r


def output(**kw):
    return text_request("x", 2, output=pb.Output(**kw))


def message(n=1, **kw):
    return pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(**kw)] * n))


def bias(*pairs):
    return sampling(logit_bias=[pb.LogitBias(token_id=t, bias=b) for t, b in pairs])


BAD = [
    ("request_id", text_request("x", 2, request_id="a b")),
    ("request_id", text_request("x", 2, request_id="x" * 129)),
    ("request_id", text_request("x", 2, request_id="Grüße")),
    ("request_id", text_request("x", 2, request_id="a\nb")),
    ("input", pb.GenerateRequest()),
    ("input", pb.GenerateRequest(stopping=pb.Stopping(max_tokens=2))),
    ("text", pb.GenerateRequest(text="")),
    ("token_ids.ids", pb.GenerateRequest(token_ids=pb.TokenIds())),
    ("token_ids.ids[1]", ids_request([5, VOCAB], 2)),
    ("token_ids.ids[0]", ids_request([2**32 - 1], 2)),
    ("token_ids.ids[0]", ids_request([2**31], 2)),
    ("chat.messages", pb.GenerateRequest(chat=pb.Chat())),
    ("chat.messages", message(4097, role="user", content="x")),
    ("chat.tools_json", pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role="user", content="x")], tools_json="{"))),
    ("chat.tools_json", pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role="user", content="x")], tools_json="[]"))),
    *(("sampling.temperature", sampling(temperature=v)) for v in (-0.1, 2.1, 0.001, INF, -INF, NAN, 3e38)),
    *(("sampling.top_p", sampling(top_p=v)) for v in (-0.1, 1.1, INF, NAN)),
    *(("sampling.min_p", sampling(min_p=v)) for v in (-0.1, 1.1, INF, NAN)),
    *(("sampling.repetition_penalty", sampling(repetition_penalty=v)) for v in (-0.1, 2.1, INF, NAN)),
    *(("sampling.frequency_penalty", sampling(frequency_penalty=v)) for v in (-2.1, 2.1, INF, -INF, NAN)),
    *(("sampling.presence_penalty", sampling(presence_penalty=v)) for v in (-2.1, 2.1, INF, -INF, NAN)),
    *(("sampling.logit_bias[0].bias", bias((5, v))) for v in (-100.5, 100.5, INF, -INF, NAN)),
    ("sampling.logit_bias[0].token_id", bias((VOCAB, 1))),
    ("sampling.logit_bias[0].token_id", bias((2**32 - 1, 1))),
    ("sampling.logit_bias[1].token_id", bias((5, 1), (5, 2))),
    ("sampling.logit_bias", bias(*((i, 1) for i in range(1025)))),
    ("stopping.max_tokens", stopping(max_tokens=2**32 - 1)),
    ("stopping.max_tokens", stopping(max_tokens=2**31)),
    ("stopping.max_tokens", stopping(max_tokens=1000000)),
    ("stopping.min_tokens", stopping(max_tokens=2, min_tokens=3)),
    ("stopping.min_tokens", stopping(max_tokens=2, min_tokens=2**32 - 1)),
    ("stopping.stop", stopping(stop=["x"] * 17)),
    ("stopping.stop[1]", stopping(stop=["a", ""])),
    ("stopping.stop[0]", stopping(stop=["x" * 257])),
    ("stopping.stop_token_ids", stopping(stop_token_ids=range(65))),
    ("stopping.stop_token_ids[0]", stopping(stop_token_ids=[VOCAB])),
    ("stopping.stop_token_ids[1]", stopping(stop_token_ids=[7, 7])),
    ("output.top_logprobs", output(logprobs=True, top_logprobs=21)),
    ("output.top_logprobs", output(logprobs=True, top_logprobs=2**32 - 1)),
    ("output.top_logprobs", output(top_logprobs=2)),
    *(("priority", text_request("x", 2, priority=v)) for v in (-101, 101, 2**31 - 1, -2**31)),
    ("cache_salt", text_request("x", 2, cache_salt="x" * 65)),
    ("choices", text_request("x", 2, choices=9)),
    ("choices", text_request("x", 2, choices=2**32 - 1)),
    ("constraint", text_request("x", 2, constraint=pb.Constraint())),
    ("plain", ids_request([5], 2, plain=True)),
    ("no_bos", ids_request([5], 2, no_bos=True)),
    ("plain", pb.GenerateRequest(chat=pb.Chat(messages=[pb.Message(role="user", content="x")]), plain=True)),
]


@pytest.mark.parametrize("i", range(len(BAD)), ids=lambda i: f"{i}-{BAD[i][0]}")
def test_bad_field_is_named(server, i):
    field, request = BAD[i]
    d = refused(lambda: server.stub.Generate(request, timeout=PATIENCE_S), C.INVALID_ARGUMENT)
    assert d.fields == [field], (field, d.fields, d.message)
    assert d.bad.field_violations[0].description and d.pushback_ms is None


def test_all_bad_fields_are_listed_at_once(server):
    r = pb.GenerateRequest(text="x", request_id="a b", priority=1000, choices=99, cache_salt="s" * 100,
                           sampling=pb.Sampling(temperature=NAN, top_p=7), output=pb.Output(top_logprobs=99))
    d = refused(lambda: server.stub.Generate(r), C.INVALID_ARGUMENT)
    assert set(d.fields) == {"request_id", "priority", "choices", "cache_salt", "sampling.temperature", "sampling.top_p",
                             "output.top_logprobs"}


GOOD = [
    sampling(temperature=0.01), sampling(temperature=2, seed=1), sampling(top_p=1), sampling(min_p=1, temperature=1),
    sampling(repetition_penalty=2), sampling(frequency_penalty=-2, presence_penalty=2), sampling(top_k=2**32 - 1),
    sampling(seed=2**64 - 1, temperature=1), bias((5, -100), (VOCAB - 1, 100)), bias(*((i, 1) for i in range(1024))),
    stopping(min_tokens=2), stopping(stop=["x" * 256] * 16), stopping(stop_token_ids=range(64)), stopping(time_limit_ms=2**32 - 1),
    output(logprobs=True, top_logprobs=20), text_request("x", 2, priority=-100), text_request("x", 2, priority=100),
    text_request("x", 2, cache_salt="s" * 64), text_request("x", 2, choices=8), text_request("x", 2, request_id="aZ09._:-" * 16),
    text_request("x", 2, plain=True, no_bos=True), ids_request([0, VOCAB - 1], 2),
]


@pytest.mark.parametrize("i", range(len(GOOD)))
def test_values_on_the_border_are_taken(server, i):
    generate(server, GOOD[i])


# ---- bytes that no stock client sends

def varint(v):
    out = b""
    while v > 127:
        out += bytes([v & 127 | 128])
        v >>= 7
    return out + bytes([v])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def raw(server, data):
    call = server.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
    return call(data, timeout=PATIENCE_S)


STOP2 = field(7, b"\x08\x02")
NOT_UTF8 = [b"\xff", b"a\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
TEXT_FIELDS = {
    "request_id": lambda t: field(1, t) + field(3, b"x") + STOP2,
    "model": lambda t: field(2, t) + field(3, b"x") + STOP2,
    "text": lambda t: field(3, t) + STOP2,
    "chat.messages[0].role": lambda t: field(5, field(1, field(1, t) + field(2, b"x"))) + STOP2,
    "chat.messages[0].content": lambda t: field(5, field(1, field(1, b"user") + field(2, t))) + STOP2,
    "chat.messages[0].name": lambda t: field(5, field(1, field(1, b"user") + field(2, b"x") + field(3, t))) + STOP2,
    "chat.tools_json": lambda t: field(5, field(1, field(1, b"user") + field(2, b"x")) + field(3, t)) + STOP2,
    "stopping.stop[0]": lambda t: field(3, b"x") + field(7, b"\x08\x02" + field(3, t)),
    "cache_salt": lambda t: field(3, b"x") + field(10, t) + STOP2,
    "constraint.regex": lambda t: field(3, b"x") + field(12, field(2, t)) + STOP2,
}


@pytest.mark.parametrize("name", TEXT_FIELDS)
def test_wrong_utf8_is_refused_by_field(server, name):
    for bad in NOT_UTF8:
        d = refused(lambda: raw(server, TEXT_FIELDS[name](bad)), C.INVALID_ARGUMENT)
        assert name in d.fields, (bad, d.fields, d.message)


def test_malformed_protobuf(server):
    for data in (b"\xff", b"\x1a\x7fx", b"\x1a\xff\xff\xff\xff\x0f", b"\x08", b"\x1b\x1c", field(3, b"x") + b"\x30\x01",
                 b"\x00\x01", field(6, b"\xff\xff"), b"\x80" * 20, field(4, field(1, b"\x80" * 12))):
        refused(lambda: raw(server, data), C.INVALID_ARGUMENT)


def test_unknown_fields_are_ignored(server):
    data = field(3, b"x") + STOP2 + field(99, b"new") + varint(98 << 3) + b"\x01" + varint(97 << 3 | 5) + struct.pack("<f", 1)
    messages = [pb.GenerateResponse.FromString(m) for m in raw(server, data)]
    assert len(Answer(messages).tokens) == 2


def test_amplification_is_bounded(server):
    """1.9 MB of empty messages in the places that repeat: refused, and the memory is not kept: what the first of each kind has left
    behind, the next ones use."""
    after = []
    for _ in range(8):
        for data in (field(5, b"\x0a\x00" * 950000), field(3, b"x") + field(6, b"\x4a\x00" * 950000),
                     field(3, b"x") + field(7, b"\x1a\x00" * 950000), field(3, b"x") + STOP2 + b"\xfa\x3f\x00" * 600000):
            try:
                list(raw(server, data))
            except grpc.RpcError as e:
                assert e.code() in (C.INVALID_ARGUMENT, C.RESOURCE_EXHAUSTED), e
        after.append(server.rss_bytes())
    assert after[-1] < after[0] + 64 * 2**20 * SLOW, after


def test_nested_depth_is_harmless(server):
    data = b"x"
    for _ in range(10000):
        data = field(5, data)
    refused(lambda: raw(server, data), C.INVALID_ARGUMENT)


def test_other_rpcs_check_their_fields(server):
    s = server.stub
    rows = [
        (lambda: s.Detokenize(pb.DetokenizeRequest(token_ids=[VOCAB])), "token_ids[0]"),
        (lambda: s.Detokenize(pb.DetokenizeRequest(token_ids=[1, 2**32 - 1])), "token_ids[1]"),
        (lambda: s.Tokenize(pb.TokenizeRequest()), "input"),
        (lambda: s.Tokenize(pb.TokenizeRequest(chat=pb.Chat())), "chat.messages"),
        (lambda: s.Abort(pb.AbortRequest(request_ids=["x"] * 1025)), "request_ids"),
    ]
    for call, name in rows:
        d = refused(call, C.INVALID_ARGUMENT)
        assert d.fields == [name] and name in d.message, (name, d.fields, d.message)
    for method, number in (("Tokenize", 2), ("Tokenize", 1), ("ModelInfo", 1), ("Detokenize", 1), ("Abort", 1)):
        call = server.channel.unary_unary(f"/inferd.v1.Inference/{method}")
        refused(lambda: call(field(number, b"\xff"), timeout=PATIENCE_S), C.INVALID_ARGUMENT)
    for call in (lambda: s.Tokenize(pb.TokenizeRequest(model="no", text="x")),
                 lambda: s.Detokenize(pb.DetokenizeRequest(model="no", token_ids=[5])),
                 lambda: s.Generate(text_request("x", 1, model="no"))):
        assert refused(call, C.NOT_FOUND).reason == "MODEL_NOT_FOUND"


def test_metadata_request_id_is_checked(server):
    for bad in ("a b", "x" * 129, "semi;colon"):
        request = text_request("x", 1, request_id="good")
        refused(lambda: server.stub.Generate(request, metadata=(("x-request-id", bad),)), C.INVALID_ARGUMENT)
        d = refused(lambda: server.stub.Generate(text_request("x", 1), metadata=(("x-request-id", bad),)), C.INVALID_ARGUMENT)
        assert isinstance(d, Details)


def test_error_texts_do_not_repeat_content(server):
    canary = "canary5c1f"
    for request in (text_request(canary, 2, request_id=canary + " "), text_request(canary, 2, model=canary),
                    stopping(stop=[canary * 40]), message(role=canary, content=canary),
                    pb.GenerateRequest(text=canary, cache_salt=canary * 9)):
        try:
            list(server.stub.Generate(request))
        except grpc.RpcError as e:
            d = Details(e)
            assert canary not in d.message and canary.encode() not in (d.status.SerializeToString() if d.status else b"")
    assert not any(canary in line for line in server.lines), "content in the log"


def test_the_server_is_none_the_worse(server):
    before = server.status()
    for _ in range(50):
        refused(lambda: server.stub.Generate(sampling(temperature=9)), C.INVALID_ARGUMENT)
    after = server.status()
    assert (after.steps, after.requests_failed, after.requests_rejected) == \
        (before.steps, before.requests_failed, before.requests_rejected)
