"""A model's name comes from its file and goes to clients, logs and scrapers: it must be text there, however long it is."""
import json
import urllib.request

import pytest

import speaker
from harness import Server, generate, ids_request, pb

NAME_BYTES_MAX = 255


@pytest.mark.parametrize("unit", ["é", "€", "🦙"])
@pytest.mark.parametrize("pad", ["", "x"])
def test_a_long_name_is_cut_between_characters(tmp_path, unit, pad):
    given = pad + unit * 200
    served = given.encode()[:NAME_BYTES_MAX].decode(errors="ignore")
    speaker.write_speaker(tmp_path / "m.gguf", [0.0] * 8, name=given)
    with Server({"log.format": "json", "engine.kv_blocks": 64}, model=tmp_path / "m.gguf", admin=True) as s:
        assert s.stub.ModelInfo(pb.ModelInfoRequest()).name == served
        assert len(generate(s, ids_request([1], 1, model=served)).tokens) == 1
        page = urllib.request.urlopen(f"http://{s.admin_address}/metrics").read()
        assert f'inferd_requests_running{{model="{served}"}}' in page.decode()  # strict
        status = urllib.request.urlopen(f"http://{s.admin_address}/statusz").read().decode()
        assert served in status
    assert any(json.loads(line).get("name") == served for line in s.lines)
