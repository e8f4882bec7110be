#!/usr/bin/env bash
# Fuzzes every target for SECONDS (default 20) and fails if one finds something. What it finds is left in the build folder: fix it,
# then keep the input in regressions/<target>/. Usage: run.sh [SECONDS] [TARGET...]; BUILD=build/fuzz (cmake --preset fuzz).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${BUILD:-$here/../../build/fuzz}
seconds=${1:-20}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=($(cd "$here" && ls fuzz_*.c | sed 's/\.c$//'))
work=$build/fuzzing
failed=0
for t in "${targets[@]}"; do
    [ -x "$build/$t" ] || { echo "FAIL $t: not built in $build"; failed=1; continue; }
    mkdir -p "$work/$t/found" "$work/$t/corpus"
    seeds=("$work/$t/corpus" "$here/corpus/$t")
    [ -d "$here/regressions/$t" ] && seeds+=("$here/regressions/$t")
    # -rss_limit_mb: a bounded input may not cost much; -timeout: nor hang (wall clock: on a crowded machine a unit of half
    # a second takes long).
    if "$build/$t" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=16384 -print_final_stats=1 \
        -artifact_prefix="$work/$t/found/" "${seeds[@]}" >"$work/$t/log" 2>&1; then
        echo "ok   $t: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "$work/$t/log" | grep -o '[0-9]*$') inputs, $(grep -o 'cov: [0-9]*' "$work/$t/log" | tail -1)"
    else
        echo "FAIL $t: see $work/$t/log"; tail -25 "$work/$t/log"; failed=1
    fi
done
exit $failed
