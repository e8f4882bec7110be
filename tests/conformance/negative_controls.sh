#!/usr/bin/env bash
# Shows that the conformance suite notices: builds it once for every planted fault (base/planted.h) and runs the models suite, which must
# fail; and once without, which must pass. Usage: negative_controls.sh [BUILD_DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/planted}
goldens=${INFERD_GOLDENS:-../shared/goldens}
names=(none "RoPE pairing" "missing bias" "hard-coded eps" "window off by one" "gate and up swapped" "half-precision accumulation"
       "missing head norm" "missing RoPE factors" "attention scale 1/D")
declared=$(sed -n '/FAULT_NONE/,/FAULT_COUNT/p' base/planted.h | grep -c '^ *FAULT_[A-Z0-9_]*,')
[ "$declared" = "${#names[@]}" ] || { echo "base/planted.h declares $declared faults, this script knows ${#names[@]}"; exit 1; }

wrong=0
for n in "${!names[@]}"; do
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DINFERD_PLANTED_FAULT="$n" >/dev/null
    cmake --build "$build" --target conformance -j "${JOBS:-2}" >/dev/null
    caught=""
    for set in "$goldens" tests/data; do
        [ -d "$set/models" ] || continue
        rc=0
        "$build/conformance" --goldens "$set" --only models --quiet >"$build/planted.log" || rc=$?
        [ "$rc" -le 1 ] || { echo "fault $n: the suite ended with $rc"; exit 1; }
        caught+=$(grep '^FAIL' "$build/planted.log" | awk '{print $3}' | sort -u | tr '\n' ' ' || true)
    done
    count=$(wc -w <<<"$caught")
    if [ "$n" = 0 ]; then ok=$([ "$count" = 0 ] && echo yes || echo no); else ok=$([ "$count" -gt 0 ] && echo yes || echo no); fi
    [ "$ok" = yes ] || wrong=1
    printf '%-4s fault %d, %-28s %3d cases fail: %.90s\n' "$([ $ok = yes ] && echo ok || echo BAD)" "$n" "${names[$n]}:" "$count" "$caught"
done
exit $wrong
