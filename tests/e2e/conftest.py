import sys
import pathlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import pytest  # noqa: E402
import harness  # noqa: E402

# Guards that act on the clock: a starved machine must not set them off. Whoever tests one of them sets it.
harness.Server.defaults |= {"watchdog.not_ready_s": 3600, "watchdog.exit_s": 3600, "limits.slow_reader_s": 3600, "server.keepalive_s": 0}


def pytest_configure(config):
    for path in (harness.INFERD, harness.INFERCTL, harness.MODEL):
        if not path.exists():
            pytest.exit(f"{path} is missing: build it first, or set INFERD_BUILD, INFERD_MODEL", returncode=1)


@pytest.fixture(scope="session")
def shared_server():
    """One server for the tests that need nothing special."""
    with harness.Server({"engine.kv_blocks": 512, "engine.max_sequences": 64, "queue.max_requests": 256}, admin=True) as s:
        list(s.stub.Generate(harness.text_request("warm up", 2)))
        yield s


@pytest.fixture
def server(shared_server):
    """The shared server, which a test must leave as it found it."""
    assert shared_server.process.poll() is None, "inferd died in an earlier test"
    yield shared_server
    assert shared_server.process.poll() is None, "inferd died"
    shared_server.assert_idle()
