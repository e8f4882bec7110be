#!/usr/bin/env bash
# Runs the end-to-end tests against INFERD_BUILD (default build/release).
#   tests/e2e/run.sh [PYTEST ARGUMENTS]
# INFERD_PYTHON: a Python that has requirements.txt; without it a virtual environment is made (once) in the cache.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
export INFERD_BUILD="${INFERD_BUILD:-$root/build/release}"
python="${INFERD_PYTHON:-}"
if [ -z "$python" ]; then
    venv="${INFERD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/inferd}/venv"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    python="$venv/bin/python"
    "$python" -c 'import grpc_reflection, grpc_health, grpc_tools, pytest, pytest_timeout, google.rpc' 2>/dev/null ||
        "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi
cd "$here"
export PYTHONDONTWRITEBYTECODE=1
exec "$python" -m pytest -q -p no:cacheprovider --tb=short --durations=5 "$@"
