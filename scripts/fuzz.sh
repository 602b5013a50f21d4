#!/usr/bin/env bash
# Fuzzes every target of fuzz/ for so many seconds in all, two at a time: scripts/fuzz.sh [SECONDS,
# 600]
#
# Each run draws a seed of its own and begins with the inputs in fuzz/corpus; what it finds on its
# way is kept in the target folder. An input that fails is kept in fuzz/artifacts, and the command
# that tries it again is printed. The last line can be quoted. Wants cargo-fuzz in the path, and a
# nightly toolchain.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-600}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "'$seconds' is not a number of seconds" >&2; exit 2; }
target=${CARGO_TARGET_DIR:-target}/fuzz
mkdir -p "$target"
target=$(cd "$target" && pwd)
unset CARGO_TARGET_DIR
logs=$(mktemp -d)

running=()
clean_up() {
  trap - EXIT INT TERM HUP
  local pid
  for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$logs"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The lock file of the workspace, and what only the targets need added to it. So what is fuzzed is
# what is built.
cp Cargo.lock fuzz/Cargo.lock
mapfile -t names < <(cargo +nightly fuzz list)
[[ ${#names[@]} -gt 0 ]] || { echo "there is no target in fuzz/" >&2; exit 1; }
cargo +nightly fuzz build --target-dir "$target"

each=$((seconds * 2 / ${#names[@]}))
[[ $each -ge 1 ]] || each=1

fuzz() { # fuzz NAME
  local name=$1 found=$target/corpus/$1 status=0
  mkdir -p "$found" "fuzz/artifacts/$name"
  # A parser that takes 10 s or 1 GiB for an input that a client can send has a fault, too.
  cargo +nightly fuzz run --target-dir "$target" "$name" "$found" "fuzz/corpus/$name" -- \
    -max_total_time="$each" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    >"$logs/$name" 2>&1 </dev/null || status=$?
  echo "$status" >"$logs/$name.status"
}

# Two at a time, so that one processor is not left to itself.
for name in "${names[@]}"; do
  while [[ $(jobs -rp | wc -l) -ge 2 ]]; do wait -n || true; done
  echo "fuzzing $name for $each s"
  fuzz "$name" &
  running+=("$!")
done
wait

executions=0 failed=()
for name in "${names[@]}"; do
  ran=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$name")
  executions=$((executions + ${ran:-0}))
  if [[ $(<"$logs/$name.status") -ne 0 || ${ran:-0} -eq 0 ]]; then
    failed+=("$name")
    tail -n 60 "$logs/$name"
    artifact=$(sed -n 's/.*Test unit written to //p' "$logs/$name" | tail -n 1)
    echo "again: cargo +nightly fuzz run $name ${artifact:-}"
  else
    echo "$name: $ran inputs"
  fi
done
echo "${#names[@]} targets, $executions inputs, ${#failed[@]} failed (${failed[*]}), $seconds s"
[[ ${#failed[@]} -eq 0 ]]
