"""Model files that change under the server, and that cost something to refuse."""
import os
import shutil
import signal
import subprocess
import time

from harness import INFERD, MODEL, PATIENCE_S

REST = ("--admin", "off", "--listen", "127.0.0.1:0", "--set", "engine.kv_blocks=64")


def start(model):
    # Nicer than this process, so that a crowded machine lets us come in between.
    return subprocess.Popen([str(INFERD), "--model", str(model), *REST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: os.nice(10))


def disturb_while_loading(model, after_s, disturb):
    """(exit code, stderr): -SIGTERM's effect, 0, when it was serving before the file changed."""
    p = start(model)
    line = p.stdout.readline()
    while line and "event=loading percent=0" not in line and "event=ready" not in line:
        line = p.stdout.readline()
    time.sleep(after_s)
    disturb()
    while line and "event=ready" not in line:
        line = p.stdout.readline()
    if line:
        p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=PATIENCE_S)
    return p.returncode, err


def test_a_file_cut_or_rewritten_while_it_loads(tmp_path):
    """Whenever it comes: the server serves the model that it had read by then, or refuses with one line. It never crashes. It goes on
    until one change came in time, which the first mostly does: it comes right after the start."""
    model, n_refused, i = tmp_path / "m.gguf", 0, -1
    while (i := i + 1) < 12 or n_refused == 0:
        assert i < 100, "never refused"
        shutil.copyfile(MODEL, model)
        cut = [lambda: os.truncate(model, 4096), lambda: os.truncate(model, 60_000_000), lambda: os.utime(model, (i, i))][i % 3]
        code, err = disturb_while_loading(model, 0.008 * (i % 12), cut)
        assert code in (0, 3), (i, code, err)
        if code == 3:
            n_refused += 1
            assert len(err.strip().splitlines()) == 1 and str(model) in err and "while it was read" in err, err
        else:
            assert err == ""
