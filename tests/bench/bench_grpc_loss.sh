#!/usr/bin/env bash
# What gRPC costs: output tokens/s of inferd with inferctl bench against bench_engine, the same lengths (16 tokens in, 256 out, all
# streams at once), 1, 8 and 16 streams, on this CPU.
#
#   tests/bench/bench_grpc_loss.sh BUILD_DIR MODEL.gguf [ROUNDS] [THREADS]...
#
# The two take turns; a figure is the best of the rounds (default 3). THREADS: compute threads, default 2 and 1. The client runs on
# the same cores: with as many compute threads as cores, what it and the server's rpc threads take is taken from the computation.
# "without the client" gives back the client's own CPU time (getrusage); with one thread less than cores both have a core to run on.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
build=$1 model=$2 rounds=${3:-3}
shift $(($# < 3 ? $# : 3))
[ $# -gt 0 ] || set -- 2 1
work="$(mktemp -d)"
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

echo "| threads | streams | engine | over gRPC | loss | client, us a token | loss without the client |"
echo "|---|---|---|---|---|---|---|"
for threads in "$@"; do
    "$build/inferd" --model "$model" --listen "unix:$work/socket" --admin off --threads "$threads" >"$work/log" 2>&1 &
    server=$!
    for streams in 1 8 16; do
        for round in $(seq "$rounds"); do
            "$build/bench_engine" --model "$model" --backend cpu --threads "$threads" --batch "$streams" --prompt 16 --output 256 \
                --json "$work/engine.$round" >/dev/null
            TIMEFORMAT='%U %S'
            { time "$build/inferctl" bench --server "unix:$work/socket" --wait 10 --streams "$streams" --requests "$streams" \
                --prompt-tokens 16 --output-tokens 256 --json >"$work/grpc.$round"; } 2>"$work/client.$round"
        done
        python3 - "$work" "$threads" "$streams" "$rounds" <<'PYTHON'
import json, sys
work, threads, streams, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
engine = max(json.load(open(f"{work}/engine.{r}"))[0]["total_tokens_per_s"] for r in range(1, rounds + 1))
runs = []
for r in range(1, rounds + 1):
    g = json.load(open(f"{work}/grpc.{r}"))
    assert g["requests_failed"] == 0 and g["output_tokens"] == 256 * streams, g
    runs.append((g["output_tokens_per_s"], sum(map(float, open(f"{work}/client.{r}").read().split()))))
over, client_s = max(runs)
tokens = 256 * streams
alone = tokens / (tokens / over - client_s)
print(f"| {threads} | {streams} | {engine:.0f} | {over:.0f} | {100 * (1 - over / engine):.1f} % | "
      f"{1e6 * client_s / tokens:.0f} | {100 * (1 - alone / engine):.1f} % |", flush=True)
PYTHON
    done
    kill "$server" && wait "$server"
    server=
done
