#!/usr/bin/env bash
# Speed on this CPU against llama.cpp, in one run: prefill of 512 tokens; decode of 1, 8 and 16 streams, on average 64 tokens deep.
#
#   tests/bench/compare_llama.sh LLAMA_BENCH LLAMA_BATCHED_BENCH MODEL.gguf [BENCH_CPU] [THREADS] [ROUNDS]
#
# The programs take turns, so that a busy neighbour hits both; a figure is the best of the rounds (default 3). Both sides time the
# computation alone: no tokeniser, no server. Ends with status 1 when a ratio is below 1.5. About 35 s a round on two cores.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
llama_bench=$1 llama_batched=$2 model=$3
bench_cpu=${4:-"$(dirname "$0")/../../build/release/bench_cpu"} threads=${5:-2} rounds=${6:-3}
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

for round in $(seq "$rounds"); do
    "$bench_cpu" "$model" --threads "$threads" --depth 48 --runs 2 | tail -1 >>"$work/ours"
    "$llama_bench" -m "$model" -t "$threads" -p 512 -n 128 -r 2 -o json >"$work/llama.$round" 2>/dev/null
    "$llama_batched" -m "$model" -t "$threads" -c 4096 -npp 16 -ntg 96 -npl 8,16 --output-format jsonl 2>/dev/null |
        grep '^{' >>"$work/batched"
done

python3 - "$work" <<'PYTHON'
import glob, json, sys
work = sys.argv[1]
lines = lambda name: [json.loads(line) for line in open(f"{work}/{name}")]
ours, batched = lines("ours"), lines("batched")
single = [t for name in glob.glob(f"{work}/llama.*") for t in json.load(open(name))]
rows = [("prefill 512", max(o["prefill"]["512"] for o in ours), max(max(t["samples_ts"]) for t in single if t["n_prompt"])),
        ("decode, 1 stream", max(o["decode"]["1"] for o in ours), max(max(t["samples_ts"]) for t in single if t["n_gen"]))]
for n in (8, 16):
    rows.append((f"decode, {n} streams", max(o["decode"][str(n)] for o in ours), max(b["speed_tg"] for b in batched if b["pl"] == n)))
print(f"{ours[0]['device']}; llama.cpp {single[0]['build_commit']} on {single[0]['cpu_info']}\n")
print("| tokens/s | inferd | llama.cpp | ratio |\n|---|---|---|---|")
for name, mine, other in rows:
    print(f"| {name} | {mine:.0f} | {other:.0f} | {mine / other:.2f}{'' if mine >= 1.5 * other else ' (below 1.5)'} |")
sys.exit(any(mine < 1.5 * other for _, mine, other in rows))
PYTHON
