#!/usr/bin/env bash
# The main job, as a user does it: start the daemon, give it a model and a data set over its socket, watch the job, and
# ask the same question before and after. Fails when the answer did not go from wrong to right.
#
#   configs/demo/run.sh .build/release models/SmolLM2-135M-Instruct.Q4_1.gguf
set -euo pipefail

bin=$(cd "$1" && pwd)
model=$2
here=$(cd "$(dirname "$0")" && pwd)
state=$PWD/demo-state
question=$(cat "$here/question.txt")
expected=$(cat "$here/expect.txt")

# A Unix socket's path may have 107 bytes, so it does not go below the checkout.
sockets=$(mktemp -d)
export EDGETUNE_SOCKET=$sockets/edgetuned.sock
rm -rf "$state"
mkdir -p "$state"
"$bin/edgetuned" serve --socket "$EDGETUNE_SOCKET" --state-dir "$state" 2>"$state/daemon.log" &
daemon=$!
finish() {
    kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true
    rm -rf "$sockets"
}
trap finish EXIT

for _ in $(seq 100); do
    "$bin/edgetune" status >/dev/null 2>&1 && break
    kill -0 "$daemon" 2>/dev/null || { cat "$state/daemon.log" >&2; exit 1; }
    sleep 0.1
done
"$bin/edgetune" status

ask() { "$bin/edgetune" generate --model smollm2-135m --prompt "$question" --max-tokens 60 "$@"; }

"$bin/edgetune" models add "$model" --name smollm2-135m
before=$(ask)
# Bounded: should the daemon die, `--watch` would wait for it to come back.
timeout --foreground 1800 "$bin/edgetune" submit "$here/job.yaml" --watch
after=$(ask --adapter demo)

printf '\nquestion (not in the training lines): %s\n\nbefore: %s\n\nafter:  %s\n\nadapter: %s\n' \
    "$question" "$before" "$after" "$("$bin/edgetune" adapters list --json | sed 's/.*"path":"\([^"]*\)".*/\1/')"

if grep -qF "$expected" <<<"$before"; then
    echo "demo: the base model already says \"$expected\"" >&2
    exit 1
fi
if ! grep -qF "$expected" <<<"$after"; then
    echo "demo: the answer does not say \"$expected\"" >&2
    exit 1
fi
