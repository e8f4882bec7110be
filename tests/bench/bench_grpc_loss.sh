#!/usr/bin/env bash
# What gRPC costs: output tokens/s of inferd with inferctl bench against bench_engine, the same lengths (16 tokens in, 256 out, all
# streams at once), 1, 8 and 16 streams, on this CPU.
#
#   tests/bench/bench_grpc_loss.sh BUILD_DIR MODEL.gguf [ROUNDS] [THREADS]...
#
# The two take turns, each in a new process that has answered two requests before (bench_engine warms up, too): one instance is up to
# 8 % faster than the next, perhaps by where its memory lies. A figure is the median of the rounds (default 5; three times as many for one
# stream, whose runs are short), a loss the median of the rounds' losses.
# THREADS: compute threads, default 2 and 1. The client runs on the same cores: with as many compute threads as cores, what it and the
# server's rpc threads take is taken from the computation. "without the client" gives back the client's own CPU time (getrusage); with
# one thread less than cores both have a core to run on.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
build=$1 model=$2 rounds=${3:-5}
shift $(($# < 3 ? $# : 3))
[ $# -gt 0 ] || set -- 2 1
work="$(mktemp -d)"
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

echo "| threads | streams | engine | over gRPC | loss | client, us a token | loss without the client |"
echo "|---|---|---|---|---|---|---|"
for threads in "$@"; do
    for streams in 1 8 16; do
        turns=$((streams == 1 ? 3 * rounds : rounds))
        for round in $(seq "$turns"); do
            "$build/bench_engine" --model "$model" --backend cpu --threads "$threads" --batch "$streams" --prompt 16 --output 256 \
                --json "$work/engine.$round" >/dev/null
            "$build/inferd" --model "$model" --listen "unix:$work/socket" --admin off --threads "$threads" >"$work/log" 2>&1 &
            server=$!
            "$build/inferctl" health --server "unix:$work/socket" --wait 10 >/dev/null
            TIMEFORMAT='%U %S'
            { time "$build/inferctl" bench --server "unix:$work/socket" --wait 10 --streams "$streams" --requests "$streams" \
                --warmup 2 --prompt-tokens 16 --output-tokens 256 --json >"$work/grpc.$round"; } 2>"$work/client.$round"
            kill "$server" && wait "$server"
            server=
        done
        python3 - "$work" "$threads" "$streams" "$turns" <<'PYTHON'
import json, sys
from statistics import median
work, threads, streams, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tokens = 256 * streams
engine, over, client_s, loss, loss_alone = [], [], [], [], []
for r in range(1, rounds + 1):
    g = json.load(open(f"{work}/grpc.{r}"))
    assert g["requests_failed"] == 0 and g["output_tokens"] == tokens, g
    engine.append(json.load(open(f"{work}/engine.{r}"))[0]["total_tokens_per_s"])
    over.append(g["output_tokens_per_s"])
    user_and_system = sum(map(float, open(f"{work}/client.{r}").read().split()))
    client_s.append(user_and_system * tokens / (tokens + 2 * 256))  # the warm-up's part is not the run's
    alone = tokens / (tokens / over[-1] - client_s[-1])
    loss.append(100 * (1 - over[-1] / engine[-1]))
    loss_alone.append(100 * (1 - alone / engine[-1]))
print(f"| {threads} | {streams} | {median(engine):.0f} | {median(over):.0f} | {median(loss):.1f} % | "
      f"{1e6 * median(client_s) / tokens:.0f} | {median(loss_alone):.1f} % |", flush=True)
PYTHON
    done
done
