#!/usr/bin/env bash
# The one command that tests everything: installs what the tests need, runs every gate, cleans up after itself.
#
#   scripts/test.sh                 all gates
#   scripts/test.sh fmt clippy      only these
#   scripts/test.sh --list          their names
#
# Wants Debian 12 (or a kin) with cargo and node 20 or newer; what else is missing it installs by apt, as root or through sudo.
# Honours CARGO_TARGET_DIR. AIRWAVE_TEST_BUDGET_S bounds the whole run (default 4500 s). Every gate runs even if an earlier one
# failed, the exit code is 0 only if none failed, and the last line counts them.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_gates=(fmt clippy boundaries doc test brokers loom browser client)
chosen=("${all_gates[@]}")
if [[ $# -gt 0 ]]; then
  if [[ $1 == --list ]]; then
    printf '%s\n' "${all_gates[@]}"
    exit 0
  fi
  chosen=("$@")
  for name in "${chosen[@]}"; do
    [[ " ${all_gates[*]} " == *" $name "* ]] || { echo "no gate is called '$name'; there are: ${all_gates[*]}" >&2; exit 2; }
  done
fi
is_chosen() { [[ " ${chosen[*]} " == *" $1 "* ]]; }

say() { printf '[test] %s\n' "$*"; }

started=$SECONDS
budget=${AIRWAVE_TEST_BUDGET_S:-4500}

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
export CARGO_TARGET_DIR=$target
work=$target/test-needs
mkdir -p "$work"

# Everything below that makes a temporary file makes it here, so one `rm` cleans up after a test that was killed, too.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/airwave-test.XXXXXX")
export TMPDIR
# Marks every process that descends from this run, so that leftovers are found and nobody else's process is touched.
export AIRWAVE_TEST_RUN=$$-$RANDOM-$started

# shellcheck source-path=SCRIPTDIR source=needs.sh
source scripts/needs.sh

leftovers() {
  local dir
  for dir in /proc/[0-9]*; do
    if grep -qzxF "AIRWAVE_TEST_RUN=$AIRWAVE_TEST_RUN" "$dir/environ" 2>/dev/null; then
      echo "${dir#/proc/}"
    fi
  done
}

current=
clean_up() {
  trap - EXIT INT TERM HUP
  set +e
  if [[ -n $current ]]; then
    # `timeout` hands the signal on to the process group that it leads.
    kill -TERM "$current" 2>/dev/null
    wait "$current" 2>/dev/null
  fi
  local pid
  for pid in $(leftovers); do kill -KILL "$pid" 2>/dev/null; done
  restore_service_policy
  rm -rf "$TMPDIR"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

passed=0 failed=0 skipped=0
report=()

heading() { printf '\n==== %s ====\n' "$*"; }

tell() { # tell OUTCOME GATE TEXT
  report+=("$(printf '%-8s %-11s %s' "$1" "$2" "$3")")
  case $1 in
    passed) passed=$((passed + 1)) ;;
    failed) failed=$((failed + 1)) ;;
    skipped) skipped=$((skipped + 1)) ;;
  esac
}

# bounded SECONDS COMMAND...: runs the command with no input, at most this long, and never past the budget of the whole run.
bounded() {
  local limit=$1 left=$((budget - SECONDS + started)) status=0
  shift
  if [[ $left -le 0 ]]; then
    say "the budget of $budget s is used up: not run"
    return 124
  fi
  [[ $limit -le $left ]] || limit=$left
  timeout -k 15 "$limit" "$@" </dev/null &
  current=$!
  wait "$current" || status=$?
  current=
  [[ $status -ne 124 ]] || say "stopped after $limit s"
  return "$status"
}

# gate NAME SECONDS COMMAND...
gate() {
  local name=$1 limit=$2 since=$SECONDS status=0
  shift 2
  is_chosen "$name" || return 0
  heading "$name: $*"
  bounded "$limit" "$@" || status=$?
  if [[ $status -eq 0 ]]; then
    tell passed "$name" "$((SECONDS - since)) s"
  else
    tell failed "$name" "$((SECONDS - since)) s, exit code $status"
  fi
}

skip() { # skip GATE WHY
  is_chosen "$1" || return 0
  heading "$1"
  say "skipped: $2"
  tell skipped "$1" "$2"
}

# ---------------------------------------------------------------------------------------------------------------------
heading "needs"

prepared=yes
lacks() { say "$*"; prepared=; }

if ! command -v cargo >/dev/null; then
  lacks "missing: cargo. Install Rust with its components rustfmt and clippy"
else
  cargo fmt --version >/dev/null 2>&1 || lacks "missing: rustfmt. rustup component add rustfmt"
  cargo clippy --version >/dev/null 2>&1 || lacks "missing: clippy. rustup component add clippy"
fi
need_cc || lacks "missing: a C compiler, as rustc's linker"

# What `cargo test` starts itself. A test of a broker says here what it needs.
needs=()
if is_chosen test || is_chosen browser || is_chosen client; then
  needs+=(redis_server)
fi
if is_chosen test; then
  needs+=(nats_server nats_server_2_10 nats_server_2_9)
fi
if is_chosen browser; then
  needs+=(nginx haproxy)
fi
if is_chosen browser || is_chosen client; then
  needs+=(chromium curl)
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    lacks "missing: node and npm, 20 or newer"
  elif [[ $(node -p 'process.versions.node.split(".")[0]') -lt 20 ]]; then
    lacks "node is $(node --version): install 20 or newer"
  fi
fi
for need in "${needs[@]}"; do
  "need_$need" || lacks "missing: $need"
done

if [[ -z $prepared ]]; then
  say "not everything that the tests need is here, see above"
  tell failed needs "something is missing"
else
  # A registry may hiccup: three tries. Afterwards cargo needs no network, and a lock file that is not up to date is an error.
  fetched=
  for _ in 1 2 3; do
    if bounded 600 cargo fetch --locked; then fetched=yes; break; fi
  done
  for folder in tests/browser clients/typescript; do
    if [[ $folder == tests/browser ]]; then of=browser; else of=client; fi
    if is_chosen "$of" && [[ -n $fetched ]]; then
      fetched=
      for _ in 1 2 3; do
        if bounded 300 npm --prefix "$folder" ci --no-audit --no-fund --loglevel=error; then fetched=yes; break; fi
      done
    fi
  done
  [[ -n $fetched ]] || { prepared=; tell failed needs "the dependencies could not be fetched"; }
fi

if [[ -n $prepared ]]; then
  export CARGO_NET_OFFLINE=true
  # With this set a test whose server or browser is missing fails; without it, a bare `cargo test` or `npm test` skips it aloud.
  export AIRWAVE_TEST_REQUIRE_ALL=1
  export AIRWAVE_BIN=$target/debug/airwave
  export AIRWAVE_TEST_SCREENSHOTS=$target/screenshots
  # Incremental files are written for a next build, which a machine of CI does not have.
  [[ -z ${CI:-} ]] || export CARGO_INCREMENTAL=0

  gate fmt 60 cargo fmt --all --check
  gate clippy 1200 cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
  gate boundaries 120 scripts/check-boundaries.sh
  gate doc 600 env RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
  # What every broker made of every clause of the contract is written down, and docs/brokers.md must say the same.
  export AIRWAVE_CONFORMANCE_RECORD=$work/conformance
  ! is_chosen test || rm -rf "$AIRWAVE_CONFORMANCE_RECORD"
  gate test 2100 cargo test --locked --workspace
  gate brokers 300 cargo run --locked --quiet -p airwave-brokers --all-features --example conformance -- \
    "$AIRWAVE_CONFORMANCE_RECORD" docs/brokers.md

  # Loom replaces the standard library's atomics throughout core, hence a build of its own.
  if grep -rq 'loom::model' --include='*.rs' core/src; then
    gate loom 900 env RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR="$target/loom" scripts/nonempty.sh \
      cargo test --locked -p airwave-core --lib loom
  else
    skip loom "core has no loom test"
  fi

  if is_chosen browser; then
    if bounded 900 cargo build --locked --bin airwave; then
      gate browser 900 npm --prefix tests/browser test
    else
      tell failed browser "the airwave binary does not build"
    fi
  fi

  if is_chosen client; then
    if bounded 900 cargo build --locked --bin airwave && bounded 600 cargo build --locked --features typescript --example typed; then
      gate client 300 npm --prefix clients/typescript test
      gate client 300 cargo test --locked --features typescript --lib typescript
    else
      tell failed client "the airwave binary or its example does not build"
    fi
  fi

  # A test that leaves a process behind is a fault of that test. Browsers take a moment to go.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    left_behind=$(leftovers)
    [[ -n $left_behind ]] || break
    sleep 0.5
  done
  if [[ -n $left_behind ]]; then
    heading "left behind"
    for pid in $left_behind; do
      say "process $pid is still running: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null || true)"
    done
    tell failed clean-up "processes were left behind (and are now ended)"
  fi
fi

heading "summary"
printf '%s\n' "${report[@]}"
say "$((SECONDS - started)) s in all"
echo "gates: $passed passed, $failed failed, $skipped skipped"
[[ $failed -eq 0 ]]
