#!/usr/bin/env bash
# From a clone to an answer: installs what is missing, builds, fetches a small model, starts the server, asks it a question.
#   scripts/quickstart.sh [QUESTION]
# Can be run again; a step that is done already is skipped. The server stops when the script ends (--keep leaves it running).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

keep=false
[ "${1:-}" = --keep ] && { keep=true; shift; }
question="${1:-In one sentence: what is the moon?}"

need_packages $BUILD_PACKAGES
build release inferd inferctl
fetch_model

step "start the server"
socket="$(mktemp -u /tmp/inferd-XXXXXX.sock)"
log="$(mktemp /tmp/inferd-XXXXXX.log)"
build/release/inferd --model "$CACHE/$MODEL_FILE" --listen "unix:$socket" --admin off >"$log" 2>&1 &
server=$!
stop() { $keep || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null; rm -f "$socket" "$log"; }; }
trap stop EXIT
for _ in $(seq 1200); do
    grep -q 'event=ready' "$log" && break
    kill -0 "$server" 2>/dev/null || { cat "$log"; die "the server did not start"; }
    sleep 0.05
done
grep -q 'event=ready' "$log" || { cat "$log"; die "the server is not ready after a minute"; }

step "ask: $question"
build/release/inferctl --server "unix:$socket" generate --chat --max-tokens 128 "$question"

$keep && step "the server goes on: build/release/inferctl --server unix:$socket chat; kill $server ends it (log: $log)"
cat <<EOF

== go on
  serve on the network port   build/release/inferd --model $CACHE/$MODEL_FILE
  talk to it                  build/release/inferctl chat
  another model               build/release/inferd --model FILE.gguf   (llama, qwen2, qwen3, phi3)
  all commands                build/release/inferctl --help
EOF
