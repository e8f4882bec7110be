#!/usr/bin/env bash
# Builds and runs every test: house rules, unit tests, conformance, end to end; under ASan+UBSan and TSan; a short fuzzing run;
# and compiles the CUDA backend where nvcc is there (or can be installed). Prints each step; can be run again.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_packages $BUILD_PACKAGES $TEST_PACKAGES
fetch_model
export INFERD_MODEL="$CACHE/$MODEL_FILE"
find_goldens

step "house rules"
python3 tests/tidy.py .

step "Python client for the end-to-end tests"
venv="$CACHE/venv"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
export INFERD_PYTHON="$venv/bin/python"

build release
step "tests: release"
ctest --preset release

build dev
step "tests: ASan + UBSan"
ctest --preset dev -E 'e2e|engine/test_engine_model|tidy'
INFERD_BUILD="$PWD/build/dev" tests/e2e/run.sh test_life.py test_rpcs.py

build tsan
step "tests: TSan over engine, server and end to end"
export TSAN_OPTIONS=ignore_noninstrumented_modules=1
ctest --preset tsan -R 'engine/test_engine$|engine/test_engine_ends|server/'
INFERD_BUILD="$PWD/build/tsan" tests/e2e/run.sh test_cancel.py
unset TSAN_OPTIONS

build clang inferd inferctl conformance bench_engine
step "fuzzing, briefly"
build fuzz
tests/fuzz/run.sh 10

step "CUDA backend: compile for sm_80, 86, 89, 90a"
scripts/build_cuda.sh
