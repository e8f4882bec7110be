"""inferctl against a real server: what a person and a script see."""
import json
import re
import signal
import socket
import subprocess

import pytest

import harness
from harness import INFERCTL, PATIENCE_S, generate, goldens, inferctl, pb, text_request, wait_for


def good(p):
    assert p.returncode == 0, (p.returncode, p.stderr)
    return p.stdout.decode()


def test_generate(server):
    want = generate(server, text_request("The capital of France is", 12))
    assert good(inferctl(server, "generate", "--max-tokens", "12", "The capital of France is")) == want.text.rstrip("\n") + "\n" \
        or want.text.endswith("\n")
    piped = inferctl(server, "generate", "--max-tokens", "12", stdin=b"The capital of France is")
    assert good(piped).rstrip("\n") == want.text.rstrip("\n")
    lines = [json.loads(x) for x in good(inferctl(server, "generate", "--json", "--max-tokens", "12", "The capital of France is")).splitlines()]
    assert [t for m in lines for t in m.get("token_ids", [])] == want.tokens
    assert "".join(m.get("text", "") for m in lines) == want.text
    assert lines[-1]["finish"]["reason"] == "FINISH_REASON_MAX_TOKENS" and lines[-1]["usage"]["completion_tokens"] == 12
    p = inferctl(server, "generate", "--usage", "--max-tokens", "12", "The capital of France is")
    assert b"max tokens; prompt 5 tokens" in p.stderr and b"output 12" in p.stderr


def test_chat_input_forms(server, tmp_path):
    case = next(c for c in goldens("smollm2/chat.json")["chats"] if len(c["messages"]) > 1)
    f = tmp_path / "chat.json"
    f.write_text(json.dumps(case["messages"]))
    a = good(inferctl(server, "tokenize", "--json", "--messages", str(f)))
    assert json.loads(a)["text"] == case["rendered"] and json.loads(a)["token_ids"] == case["ids"]
    flags = [x for m in case["messages"] for x in ("--message", f"{m['role']}:{m['content']}")]
    assert json.loads(good(inferctl(server, "tokenize", "--json", *flags)))["token_ids"] == case["ids"]
    one = goldens("smollm2/chat.json")["chats"][0]
    assert good(inferctl(server, "generate", "--chat", one["messages"][0]["content"])) == one["greedy_text"] + "\n"


def test_every_field_has_a_flag(server):
    """All flags at once; what the server did shows that they came through."""
    p = inferctl(server, "generate", "--json", "--temperature", "0.9", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01",
                 "--repetition-penalty", "1.1", "--frequency-penalty", "0.1", "--presence-penalty", "0.1", "--seed", "77",
                 "--logit-bias", "100=-5", "--logit-bias", "101=2.5", "--max-tokens", "6", "--min-tokens", "2", "--stop", "@@",
                 "--stop", "##", "--stop-token", "3", "--include-stop", "--time-limit-ms", "3600000", "--logprobs", "--top-logprobs", "2",
                 "--prompt-logprobs", "--keep-special", "--choices", "2", "--priority", "-3", "--cache-salt", "s", "--request-id",
                 "flags-1", "--plain", "--no-bos", "Hello there")
    lines = [json.loads(x) for x in good(p).splitlines()]
    assert lines[0]["request_id"] == "flags-1" and lines[0]["prompt"]["seed"] == 77
    assert len(lines[0]["prompt"]["logprobs"]) == lines[0]["prompt"]["tokens"]
    assert {m.get("index", 0) for m in lines} == {0, 1}
    assert all(len(t["top"]) == 2 for m in lines for t in m.get("logprobs", []))
    assert b"UNIMPLEMENTED" in inferctl(server, "generate", "--regex", "a*", "x").stderr
    p = inferctl(server, "generate", "--temperature", "nan", "--top-p", "7", "x")
    assert p.returncode == 1 and b"sampling.temperature: " in p.stderr and b"sampling.top_p: " in p.stderr
    p = inferctl(server, "generate", "--json", "--top-p", "7", "x")
    e = json.loads(p.stdout)["error"]
    assert e["code"] == "INVALID_ARGUMENT" and e["field_violations"][0]["field"] == "sampling.top_p"


def test_tokenize_detokenize(server):
    text = "Grüße, 世界! \U0001f600"
    ids = good(inferctl(server, "tokenize", text))
    assert good(inferctl(server, "detokenize", stdin=ids.encode())) == text
    pieces = good(inferctl(server, "tokenize", "--pieces", "Hello world"))
    assert pieces.splitlines()[0].split()[-1] == '"Hello"'


def test_info_status_health(server):
    i = json.loads(good(inferctl(server, "info", "--json")))
    assert i["architecture"] == "llama" and i["vocab_size"] == 49152
    assert "architecture           llama" in good(inferctl(server, "info"))
    s = json.loads(good(inferctl(server, "status", "--json")))
    assert s["state"] == "ENGINE_STATE_SERVING" and s["running"] == 0
    assert "SERVING" in good(inferctl(server, "health"))
    assert good(inferctl(server, "health", "--list")).count("SERVING") >= 5
    assert inferctl(server, "health", "no.such").returncode == 1


def test_abort_and_ctrl_c(server):
    argv = [str(INFERCTL), "--server", server.address, "generate", "--max-tokens", "5000", "--ignore-eos", "--request-id"]
    p = subprocess.Popen([*argv, "long-1", "Once"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for("running", lambda: server.status().running == 1)
    assert "long-1" in good(inferctl(server, "abort", "long-1"))
    assert p.wait(PATIENCE_S) == 0
    server.assert_idle()
    p = subprocess.Popen([*argv, "long-2", "Once"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for("running", lambda: server.status().running == 1)
    p.send_signal(signal.SIGINT)
    assert p.wait(PATIENCE_S) == 130
    server.assert_idle()


def test_chat_keeps_the_conversation(server):
    case = next(c for c in goldens("smollm2/chat.json")["chats"] if [m["role"] for m in c["messages"]] == ["user"])
    question = case["messages"][0]["content"]
    assert "\n" not in question
    p = inferctl(server, "chat", "--usage", stdin=f"{question}\n{question}\n/reset\n{question}\n/quit\nnot sent\n".encode())
    assert p.returncode == 0, p.stderr
    prompts = [int(n) for n in re.findall(r"prompt (\d+) tokens", p.stderr.decode())]
    assert len(prompts) == 3 and prompts[0] == prompts[2] == len(case["ids"]) and prompts[1] > prompts[0]


def test_bench(server):
    p = inferctl(server, "bench", "--json", "--streams", "4", "--requests", "12", "--prompt-tokens", "8..16", "--output-tokens", "5",
                 "--warmup", "2")
    b = json.loads(good(p))
    assert b["requests_ok"] == 12 and b["requests_failed"] == 0 and b["output_tokens"] == 60 and b["requests_cut"] == 0
    assert 0 < b["first_token_ms"]["p50"] <= b["first_token_ms"]["p99"] <= b["first_token_ms"]["max"] * 1.01
    assert b["first_token_ms"]["n"] == 12
    p = inferctl(server, "bench", "--rate", "20", "--requests", "20", "--prompt-tokens", "8", "--output-tokens", "2")
    assert "inter-token" in good(p)


def test_nobody_there(tmp_path):
    """It says so; it does not wait until somebody comes."""
    p = inferctl(f"unix:{tmp_path}/none", "info", timeout_s=PATIENCE_S)
    assert p.returncode == 3 and b"inferd --model" in p.stderr
    with socket.socket() as nobody:  # has the port and does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert inferctl(address, "generate", "x", timeout_s=PATIENCE_S).returncode == 3
        assert inferctl(address, "--wait", "0.5", "status", timeout_s=PATIENCE_S).returncode == 3


def test_usage_errors(server):
    for args in (["generate", "--bogus", "x"], ["nonsense"], [], ["generate", "--max-tokens", "-1", "x"], ["abort"],
                 ["bench", "--streams", "2", "--rate", "3"], ["generate", "a", "b"], ["generate", "--token-ids", "1,x"],
                 ["tokenize", "--tools", "f", "x"], ["tokenize", "--no-generation-prompt", "x"]):
        p = inferctl(server, *args)
        assert p.returncode == 2 and b"--help" in p.stderr, args
    for name in ("generate", "chat", "tokenize", "detokenize", "info", "status", "health", "abort", "bench"):
        text = good(inferctl(server, name, "--help"))
        assert "examples:" in text and "exit codes:" in text


def test_a_server_needs_a_port():
    p = subprocess.run([str(INFERCTL), "--server", "localhost", "info"], capture_output=True, timeout=PATIENCE_S)
    assert p.returncode == 2 and b"localhost:50051" in p.stderr, p.stderr


@pytest.mark.parametrize("rate", ["1e9", "1e-300"])
def test_bench_at_any_rate(server, rate):
    """A rate beyond all reason starts no more than may live at once, and hears Ctrl-C; one below all reason waits."""
    p = subprocess.Popen([str(INFERCTL), "--server", server.address, "bench", "--rate", rate, "--duration", "3600",
                          "--output-tokens", "1", "--prompt-tokens", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for("Ctrl-C is held for a look",
                 lambda: int(re.search(r"SigBlk:\s*(\w+)", open(f"/proc/{p.pid}/status").read()).group(1), 16) & 2)
        if rate == "1e9":
            wait_for("the load has come", lambda: server.stub.EngineStatus(pb.EngineStatusRequest()).running > 0)
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=PATIENCE_S)
        assert p.returncode == 130
    finally:
        p.kill()


def test_wait_until_ready():
    s = harness.Server({"engine.kv_blocks": 64}, unix=True, wait=False)
    address = next(a for a in s.argv if a.startswith("unix:"))
    with s:
        p = inferctl(address, "--wait", str(PATIENCE_S), "generate", "--max-tokens", "2", "x")
        assert p.returncode == 0, p.stderr
        s.wait_ready()
