"""Unix sockets: one that answers is not taken away from its server, one that was left behind is no hindrance."""
import signal
import subprocess
import time

from harness import INFERCTL, INFERD, MODEL

PATIENCE_S = 120


def start(folder, *flags):
    return subprocess.Popen([str(INFERD), "--model", str(MODEL), "--admin", "off", "--set", "engine.threads=1", "--set",
                             "engine.kv_blocks=64", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder)


def serves(folder, name):
    return subprocess.run([str(INFERCTL), "--server", f"unix:{folder}/{name}", "--wait", str(PATIENCE_S), "health"],
                          capture_output=True, timeout=2 * PATIENCE_S)


def stop(p):
    p.terminate()
    assert p.wait(PATIENCE_S) == 0, p.stderr.read()


def test_a_socket_in_use_is_refused(tmp_path):
    listen, health = f"unix:{tmp_path}/s", f"unix:{tmp_path}/h"
    first = start(tmp_path, "--listen", listen, "--set", f"server.health_listen={health}")
    try:
        assert serves(tmp_path, "s").returncode == 0
        for flags in (["--listen", listen], ["--listen", "127.0.0.1:0", "--set", f"server.health_listen={listen}"],
                      ["--listen", health], ["--listen", "unix:s"]):
            second = start(tmp_path, *flags)
            try:
                said = second.communicate(timeout=PATIENCE_S)[1]
            finally:
                second.kill()
            assert second.returncode == 5 and b"in use" in said, (flags, said)
            for name in ("s", "h"):
                assert serves(tmp_path, name).returncode == 0, (flags, name)
    finally:
        stop(first)
    assert list(tmp_path.iterdir()) == []


def test_a_socket_left_behind_is_taken(tmp_path):
    first = start(tmp_path, "--listen", f"unix:{tmp_path}/s")
    assert serves(tmp_path, "s").returncode == 0
    first.send_signal(signal.SIGKILL)
    first.wait(PATIENCE_S)
    assert (tmp_path / "s").is_socket()
    second = start(tmp_path, "--listen", f"unix:{tmp_path}/s")
    try:
        end = time.monotonic() + PATIENCE_S
        while serves(tmp_path, "s").returncode != 0:
            assert time.monotonic() < end and second.poll() is None, second.poll()
    finally:
        stop(second)
