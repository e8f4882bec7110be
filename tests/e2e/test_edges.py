"""What a terminal, a pipe and a closed stream do to inferctl and inferd: nothing hangs, nothing is lost silently, nothing foreign
is obeyed."""
import concurrent.futures
import os
import pty
import re
import select
import signal
import subprocess
import time

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import harness
from harness import INFERCTL, PATIENCE_S, inferctl, pb, rpc

ESC = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f"  # sets a title, clears the screen: 7-bit and 8-bit forms


def start(address, *args, **kw):
    return subprocess.Popen([str(INFERCTL), "--server", address, *args], **kw)


def test_a_token_that_no_header_can_carry(server, tmp_path):
    f = tmp_path / "token"
    for token in ("a\nb", "tab\there", "\x01", "gr\xfc\xdfe", "x" * 5000):
        f.write_text(token, encoding="utf-8")
        cases = [inferctl(server, "info", env={"INFERCTL_TOKEN": token})] if len(token) < 100 else []
        if "\n" not in token:  # of a file the first line counts
            cases.append(inferctl(server, "--token-file", str(f), "info"))
        for p in cases:
            assert p.returncode == 2 and b"token" in p.stderr, (token, p)


def test_a_closed_pipe_ends_the_call(server):
    for args in (["health", "--watch"], ["generate", "--max-tokens", "5000", "--ignore-eos", "Once"],
                 ["generate", "--json", "--max-tokens", "5000", "--ignore-eos", "Once"]):
        p = start(server.address, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert p.stdout.read(5)
        p.stdout.close()
        assert p.wait(PATIENCE_S) == 1, args
        assert p.stderr.read() == b"", args  # whoever closed it knows


def test_output_that_cannot_be_written(server):
    for args in (["info"], ["generate", "--max-tokens", "3", "x"], ["generate", "--json", "--max-tokens", "3", "x"], ["--help"]):
        with open("/dev/full", "wb") as full:
            p = start(server.address, *args, stdout=full, stderr=subprocess.PIPE)
            assert p.wait(PATIENCE_S) == 1 and b"cannot be written" in p.stderr.read(), args


def test_ctrl_c_while_input_is_read(server):
    for args in (["generate", "-"], ["detokenize"], ["chat"]):
        p = start(server.address, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.5)
        p.send_signal(signal.SIGINT)
        assert p.wait(PATIENCE_S) in (-signal.SIGINT, 130), args
        p.stdin.close()


def test_closed_standard_streams():
    """A socket must not get the number of a closed stream."""
    def close_all():
        for fd in range(3):
            os.close(fd)
    with harness.tempfile.TemporaryDirectory() as folder:
        p = subprocess.Popen([str(harness.INFERD), "--model", str(harness.MODEL), "--listen", f"unix:{folder}/s", "--admin", "off"],
                             preexec_fn=close_all)
        try:
            q = inferctl(f"unix:{folder}/s", "--wait", str(PATIENCE_S), "generate", "--max-tokens", "2", "x")
            assert q.returncode == 0, q.stderr
            assert {os.readlink(f"/proc/{p.pid}/fd/{fd}") for fd in (1, 2)} == {"/dev/null"}
            q = subprocess.run([str(INFERCTL), "--server", f"unix:{folder}/s", "info"], preexec_fn=close_all, timeout=PATIENCE_S)
            assert q.returncode == 1  # nothing could be said
        finally:
            p.terminate()
            assert p.wait(PATIENCE_S) == 0


class Hostile(rpc.InferenceServicer):
    """A server that tries to take over the terminals of its clients."""

    def ModelInfo(self, request, context):
        return pb.ModelInfoResponse(name=ESC, architecture="a\nb", vocab_size=10, context_length=100)

    def Generate(self, request, context):
        bad = error_details_pb2.BadRequest(field_violations=[{"field": "f" + ESC, "description": "d" + ESC}])
        details = any_pb2.Any()
        details.Pack(bad)
        status = status_pb2.Status(code=3, details=[details]).SerializeToString()
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "m" + ESC)

    def EngineStatus(self, request, context):
        return pb.EngineStatusResponse()


def on_terminal(address, *args):
    """All that inferctl shows on a terminal."""
    ours, theirs = pty.openpty()
    p = start(address, *args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        if args[-1] == "chat" and not select.select([ours], [], [], 1)[0]:
            os.write(ours, b"\x04")  # again and again: it is lost when it comes before the prompt
            continue
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    p.wait(PATIENCE_S)
    os.close(ours)
    return shown.decode()


def test_a_hostile_server_does_not_get_the_terminal():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    rpc.add_InferenceServicer_to_server(Hostile(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        for args in (["info"], ["generate", "x"], ["chat"]):
            shown = on_terminal(f"127.0.0.1:{port}", *args)
            assert "owned" in shown, (args, shown)
            assert not re.search("\x1b\\]|\x1b\\[2J|\x9b|\x07|\x7f", shown), (args, shown)
    finally:
        server.stop(0)
