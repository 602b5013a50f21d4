#!/usr/bin/env bash
# Runs one test again and again beside two busy loops, and says how often it failed.
#
#   scripts/repeat.sh NAME [TIMES]             TIMES: 30 unless given
#   scripts/repeat.sh NAME TIMES ARGUMENTS...  hands these to cargo test, for example -p airwave-brokers --test redis
#
# NAME is a Rust test function, or (a part of) the title of a test in tests/browser or
# clients/typescript/test. Without ARGUMENTS the script looks where the name stands. The exit code
# is 0 only if the test never failed. What a failed run said is kept, and the path printed. A run
# may take AIRWAVE_REPEAT_LIMIT_S (600 s). Honours CARGO_TARGET_DIR.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ $# -ge 1 && $1 != -* ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
name=$1
times=${2:-30}
[[ $times =~ ^[1-9][0-9]*$ ]] || { echo "'$times' is not a number of times" >&2; exit 2; }
arguments=("${@:3}")
limit=${AIRWAVE_REPEAT_LIMIT_S:-600}

say() { printf '[repeat] %s\n' "$*"; }

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
export CARGO_TARGET_DIR=$target
work=$target/test-needs
mkdir -p "$work"
# shellcheck source-path=SCRIPTDIR source=needs.sh
source scripts/needs.sh
export AIRWAVE_TEST_REQUIRE_ALL=1
export AIRWAVE_BIN=$target/debug/airwave
export AIRWAVE_TEST_SCREENSHOTS=$target/screenshots

busy=()
clean_up() {
  trap - EXIT INT TERM HUP
  local pid
  for pid in "${busy[@]}"; do kill "$pid" 2>/dev/null || true; done
  restore_service_policy
  [[ -z ${temporary:-} ]] || rm -rf "$temporary"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
temporary=$(mktemp -d "${TMPDIR:-/tmp}/airwave-repeat.XXXXXX")
export TMPDIR=$temporary

# The package and the test target of a Rust file: `core/tests/core/ends.rs` is `-p airwave-core
# --test core`.
of_rust_file() {
  local file=${1#./} package=airwave rest
  case $file in
    core/* | transports/* | brokers/* | bench/*) package=airwave-${file%%/*} rest=${file#*/} ;;
    *) rest=$file ;;
  esac
  arguments=(-p "$package")
  [[ $package != airwave-brokers ]] || arguments+=(--all-features)
  case $rest in
    tests/*)
      rest=${rest#tests/}
      rest=${rest%%/*}
      arguments+=(--test "${rest%.rs}")
      ;;
    src/*) arguments+=(--lib --bins) ;;
    examples/*) arguments+=(--examples) ;;
  esac
}

kind=cargo
if [[ ${#arguments[@]} -eq 0 ]]; then
  quoted=$(printf '%s' "$name" | sed 's/[][\.*^$/]/\\&/g')
  mapfile -t rust < <(grep -rlE "fn ${quoted}\b" --include='*.rs' core transports brokers bench src tests examples)
  mapfile -t browser < <(grep -lF -- "$name" tests/browser/*.test.mjs)
  mapfile -t client < <(grep -rlF -- "$name" clients/typescript/test --include='*.test.ts' --include='*.test.tsx')
  found=$((${#rust[@]} + ${#browser[@]} + ${#client[@]}))
  if [[ $found -ne 1 ]]; then
    echo "'$name' stands in $found files of tests: ${rust[*]} ${browser[*]} ${client[*]}" >&2
    echo "name one test; a Rust test also by arguments for cargo test, see $0" >&2
    exit 2
  fi
  if [[ ${#rust[@]} -eq 1 ]]; then
    of_rust_file "${rust[0]}"
  elif [[ ${#browser[@]} -eq 1 ]]; then
    kind=browser
  else
    kind=client
  fi
fi

# Bringing what the test needs is not a part of the test.
for need in redis_server nats_server nats_server_2_10 nats_server_2_9 nginx haproxy chromium curl; do
  "need_$need" || { echo "missing: $need" >&2; exit 1; }
done
case $kind in
  cargo)
    say "cargo test ${arguments[*]} $name"
    cargo test --locked "${arguments[@]}" --no-run
    run=(cargo test --locked "${arguments[@]}" "$name")
    ran='^running [1-9]'
    ;;
  browser)
    say "node --test of tests/browser: $name"
    cargo build --locked --bin airwave
    [[ -d tests/browser/node_modules ]] || npm --prefix tests/browser ci --no-audit --no-fund --loglevel=error
    # A title is a pattern to node, and its signs are meant as they stand.
    pattern=$(printf '%s' "$name" | sed 's/[][\.*^$/(){}+?|]/\\&/g')
    run=(env -C tests/browser node --test --test-reporter=spec --test-name-pattern="$pattern" "${browser[0]##*/}")
    ran='ℹ (pass|fail) [1-9]'
    ;;
  client)
    say "vitest of clients/typescript: $name"
    cargo build --locked --bin airwave
    cargo build --locked --features typescript --example typed
    [[ -d clients/typescript/node_modules ]] || npm --prefix clients/typescript ci --no-audit --no-fund --loglevel=error
    pattern=$(printf '%s' "$name" | sed 's/[][\.*^$/(){}+?|]/\\&/g')
    run=(env -C clients/typescript npx vitest run "${client[0]#clients/typescript/}" -t "$pattern")
    ran='Tests .*(passed|failed)'
    ;;
esac

kept=$target/repeat/$(printf '%s' "$name" | tr -c 'a-zA-Z0-9_-' _)
rm -rf "$kept"
mkdir -p "$kept"
for _ in 1 2; do
  # Each ends by its own number, and by itself should this script be killed.
  (while kill -0 $$ 2>/dev/null; do for ((i = 0; i < 100000; i++)); do :; done; done) </dev/null >/dev/null 2>&1 &
  busy+=("$!")
done

failed=()
slowest=0
for ((number = 1; number <= times; number++)); do
  log=$kept/$number.log
  since=$SECONDS
  status=0
  timeout -k 15 "$limit" "${run[@]}" </dev/null >"$log" 2>&1 || status=$?
  took=$((SECONDS - since))
  [[ $took -le $slowest ]] || slowest=$took
  if ! grep -qE "$ran" "$log"; then
    tail -n 20 "$log"
    echo "no test ran: ${run[*]}" >&2
    exit 1
  fi
  if [[ $status -eq 0 ]]; then
    rm "$log"
  else
    failed+=("$number")
    say "run $number failed after $took s (exit code $status): $log"
  fi
done
say "$name: ${#failed[@]} of $times runs failed beside two busy loops; the slowest took $slowest s"
[[ ${#failed[@]} -eq 0 ]]
