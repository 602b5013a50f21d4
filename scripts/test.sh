#!/usr/bin/env bash
# The one command that tests everything: installs what the tests need, runs its gates, cleans up
# after itself.
#
#   scripts/test.sh                 the gates that CI runs: at most 30 minutes warm, 55 cold, on two cores
#   scripts/test.sh deep            the gates that take longer, with seeds of their own: at most 60 minutes
#   scripts/test.sh fmt clippy      only these, of either tier
#   scripts/test.sh --list          the names of CI's gates; --list deep: those of the deep tier
#
# Wants Debian 12 (or a kin) with cargo and node 20 or newer; what else is missing it installs by
# apt, as root or through sudo. The gate `fuzz` also wants a nightly toolchain. Honours
# CARGO_TARGET_DIR. AIRWAVE_TEST_BUDGET_S bounds the whole run (default: 3300 s, deep 3900 s).
# AIRWAVE_DEEP_SEED is the first seed of the deep tier instead of the clock's, and
# AIRWAVE_DEEP_FAULTS what chaos does beside the usual (clocks, busy, refusals, all or none; all
# unless given). Every gate runs even if an earlier one failed, and no gate is skipped. The exit
# code is 0 only if none failed. The last line counts them; the last line of the deep tier can be
# quoted.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ci_gates=(fmt clippy boundaries words doc api package test outside brokers loom first-minutes browser client bundlers)
deep_gates=(chaos matrix upgrade simulation model figures fuzz firefox more-bundlers cost msrv deny verify)
tier=ci
chosen=()
case ${1:-} in
  --list)
    if [[ ${2:-} == deep ]]; then printf '%s\n' "${deep_gates[@]}"; else printf '%s\n' "${ci_gates[@]}"; fi
    exit 0
    ;;
  '') chosen=("${ci_gates[@]}") ;;
  deep)
    [[ $# -eq 1 ]] || { echo "'deep' stands alone, or name the gates: $0 ${deep_gates[*]}" >&2; exit 2; }
    tier=deep
    chosen=("${deep_gates[@]}")
    ;;
  *)
    chosen=("$@")
    for name in "${chosen[@]}"; do
      [[ " ${ci_gates[*]} ${deep_gates[*]} " == *" $name "* ]] \
        || { echo "no gate is called '$name'; there are: ${ci_gates[*]}, and deep: ${deep_gates[*]}" >&2; exit 2; }
    done
    ;;
esac
is_chosen() { [[ " ${chosen[*]} " == *" $1 "* ]]; }

say() { printf '[test] %s\n' "$*"; }

started=$SECONDS
if [[ $tier == deep ]]; then usual_budget=3900; else usual_budget=3300; fi
budget=${AIRWAVE_TEST_BUDGET_S:-$usual_budget}

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
export CARGO_TARGET_DIR=$target
work=$target/test-needs
mkdir -p "$work"

# Everything below that makes a temporary file makes it here, so one `rm` cleans up after a test
# that was killed, too.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/airwave-test.XXXXXX")
export TMPDIR
# Marks every process that descends from this run, so that the run finds its leftovers and touches
# no other process.
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

passed=0 failed=0
report=()
# What the gates of the deep tier say of themselves for the last line.
remarks=()

heading() { printf '\n==== %s ====\n' "$*"; }

tell() { # tell OUTCOME GATE TEXT
  report+=("$(printf '%-8s %-11s %s' "$1" "$2" "$3")")
  case $1 in
    passed) passed=$((passed + 1)) ;;
    failed) failed=$((failed + 1)) ;;
  esac
  say "$2: $1, $3"
}

# bounded SECONDS COMMAND...: runs the command with no input, at most this long, and never past the
# budget of the whole run.
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

# "${kept[@]}" FILE COMMAND...: runs the command; what it says is shown and also kept in the file.
# shellcheck disable=SC2016 # the inner shell expands them
kept=(bash -o pipefail -c '"$@" 2>&1 | tee "$0"')

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

if is_chosen boundaries || is_chosen api; then
  need_python3 || lacks "missing: python3"
fi

# What `cargo test` starts itself. A test of a broker says here what it needs.
needs=()
if is_chosen test || is_chosen browser || is_chosen client || is_chosen chaos || is_chosen matrix; then
  needs+=(redis_server)
fi
if is_chosen test; then
  needs+=(nats_server nats_server_2_10 nats_server_2_9 promtool)
fi
if is_chosen figures; then
  needs+=(nats_server nats_server_2_10)
fi
if is_chosen chaos || is_chosen matrix; then
  # A C compiler makes what skews clocks.
  needs+=(nats_server cc)
fi
if is_chosen upgrade; then
  needs+=(redis_server nats_server airwave_0_1)
fi
if is_chosen cost; then
  needs+=(valgrind)
fi
if is_chosen package || is_chosen verify; then
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    lacks "missing: node and npm, 20 or newer"
  fi
fi
if is_chosen msrv; then
  needs+=(oldest_rust)
fi
if is_chosen deny; then
  needs+=(cargo_deny)
fi
if is_chosen first-minutes; then
  needs+=(curl)
  command -v node >/dev/null || lacks "missing: node, 20 or newer"
fi
if is_chosen fuzz; then
  needs+=(cargo_fuzz)
fi
if is_chosen browser; then
  needs+=(nginx haproxy)
fi
if is_chosen firefox; then
  needs+=(redis_server firefox)
fi
if is_chosen browser || is_chosen client || is_chosen bundlers || is_chosen firefox || is_chosen more-bundlers; then
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
  # A registry may hiccup: three tries. Afterwards cargo needs no network, and a lock file that is
  # not up to date is an error.
  fetched=
  for _ in 1 2 3; do
    if bounded 600 cargo fetch --locked; then fetched=yes; break; fi
  done
  # The fuzz targets are no part of the workspace. They are built of the versions that it has.
  if is_chosen fuzz && [[ -n $fetched ]]; then
    fetched=
    cp Cargo.lock fuzz/Cargo.lock
    for _ in 1 2 3; do
      if bounded 600 cargo fetch --manifest-path fuzz/Cargo.toml; then fetched=yes; break; fi
    done
  fi
  # What each gate needs of npm. The bundlers' tests drive the browser as those of tests/browser do.
  declare -A folders_of=(
    [browser]="tests/browser" [client]="clients/typescript" [firefox]="clients/typescript"
    [bundlers]="tests/browser tests/bundlers" [more-bundlers]="tests/browser tests/bundlers tests/bundlers/more"
  )
  folders=$(for of in "${!folders_of[@]}"; do ! is_chosen "$of" || printf '%s\n' ${folders_of[$of]}; done | sort -u)
  for folder in $folders; do
    if [[ -n $fetched ]]; then
      fetched=
      for _ in 1 2 3; do
        if bounded 600 npm --prefix "$folder" ci --no-audit --no-fund --loglevel=error; then fetched=yes; break; fi
      done
    fi
  done
  [[ -n $fetched ]] || { prepared=; tell failed needs "the dependencies could not be fetched"; }
fi

if [[ -n $prepared ]]; then
  export CARGO_NET_OFFLINE=true
  # With this set a test whose server or browser is missing fails; without it, a bare `cargo test`
  # or `npm test` skips it aloud.
  export AIRWAVE_TEST_REQUIRE_ALL=1
  export AIRWAVE_BIN=$target/debug/airwave
  export AIRWAVE_TEST_SCREENSHOTS=$target/screenshots
  # Incremental files are written for a next build, which a machine of CI does not have.
  [[ -z ${CI:-} ]] || export CARGO_INCREMENTAL=0

  gate fmt 60 cargo fmt --all --check
  gate clippy 1200 cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
  gate boundaries 120 scripts/check-boundaries.sh
  gate words 60 scripts/check-words.sh
  gate doc 600 env RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
  # What is public, compared with public-api/ and with what CHANGELOG.md says of it.
  gate api 600 scripts/public-api.sh
  gate package 120 scripts/package.sh
  # What every broker made of every clause of the contract is written down, and docs/brokers.md must
  # say the same.
  export AIRWAVE_CONFORMANCE_RECORD=$work/conformance
  ! is_chosen test || rm -rf "$AIRWAVE_CONFORMANCE_RECORD"
  gate test 2100 cargo test --locked --workspace --no-fail-fast
  # What the documents show, as an application of its own, with the default features and without.
  gate outside 600 cargo test --locked --manifest-path tests/outside/Cargo.toml
  gate outside 600 cargo test --locked --manifest-path tests/outside/Cargo.toml --no-default-features --features typescript
  gate brokers 300 cargo run --locked --quiet -p airwave-brokers --all-features --example conformance -- \
    "$AIRWAVE_CONFORMANCE_RECORD" docs/brokers.md

  # Loom replaces the standard library's atomics throughout core, hence a build of its own.
  gate loom 900 env RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR="$target/loom" scripts/nonempty.sh \
    cargo test --locked -p airwave-core --lib loom

  # Instructions and allocations of the release binary, counted and compared with bench/cost.toml.
  if is_chosen cost; then
    if bounded 1500 cargo build --locked --release --bin airwave && bounded 900 cargo build --locked -p airwave-bench; then
      gate cost 900 "$target/debug/airwave-bench" --airwave "$target/release/airwave" cost
    else
      tell failed cost "the airwave binary or the bench does not build"
    fi
  fi

  # README's commands, typed one by one.
  if is_chosen first-minutes; then
    if bounded 900 cargo build --locked --bin airwave; then
      gate first-minutes 300 scripts/first-minutes.sh --binary "$target/debug/airwave" --port 0 --within 60
    else
      tell failed first-minutes "the airwave binary does not build"
    fi
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

  for of in bundlers more-bundlers firefox; do
    is_chosen "$of" || continue
    bounded 900 cargo build --locked --bin airwave || { tell failed "$of" "the airwave binary does not build"; continue; }
    case $of in
      bundlers) gate bundlers 600 npm --prefix tests/bundlers test ;;
      more-bundlers) gate more-bundlers 900 npm --prefix tests/bundlers run test:more ;;
      firefox) gate firefox 300 npm --prefix clients/typescript run test:deep ;;
    esac
  done

  # The deep tier. Each gate draws seeds of its own and prints, for a seed that fails, the command
  # that repeats it. Chaos takes 30 minutes in all: three nodes over every broker, then one node and
  # five.
  if is_chosen chaos || is_chosen matrix; then
    if bounded 900 cargo build --locked --bin airwave && bounded 900 cargo build --locked -p airwave-bench; then
      chaos=("$target/debug/airwave-bench" --airwave "$target/debug/airwave" chaos --every-broker --story
        --with "${AIRWAVE_DEEP_FAULTS:-all}")
      first_seed=${AIRWAVE_DEEP_SEED:-$(date +%s)}
      gate chaos 2100 "${kept[@]}" "$TMPDIR/chaos" "${chaos[@]}" --minutes 24 --seed "$first_seed"
      gate matrix 900 "${kept[@]}" "$TMPDIR/matrix" "${chaos[@]}" --minutes 6 --seed "$first_seed" --seconds 8 --nodes 1,5
      for name in chaos matrix; do
        [[ ! -s $TMPDIR/$name ]] || remarks+=("$name: $(tail -n 1 "$TMPDIR/$name")")
      done
    else
      tell failed chaos "the airwave binary or the bench does not build"
    fi
  fi

  # Version 0.1 and this one share a broker. The old program is built once, of its own sources and
  # into a folder of its own.
  if is_chosen upgrade; then
    if bounded 1500 env CARGO_TARGET_DIR="$target/upgrade" CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 \
      cargo build --locked --bin airwave --manifest-path "$AIRWAVE_TEST_OLD_SOURCE/Cargo.toml"; then
      gate upgrade 900 env AIRWAVE_TEST_OLD_BIN="$target/upgrade/debug/airwave" scripts/nonempty.sh \
        cargo test --locked --test nodes upgrade:: -- --ignored
    else
      tell failed upgrade "version 0.1 does not build"
    fi
  fi

  first_seed=${AIRWAVE_DEEP_SEED:-$(($(date +%s) % 1000000 * 1000))}
  gate simulation 600 env AIRWAVE_SIM_SEEDS="$first_seed..$((first_seed + 300))" scripts/nonempty.sh \
    cargo test --locked -p airwave-transports --test sim seeds
  ! is_chosen simulation || remarks+=("simulation: seeds $first_seed..$((first_seed + 300))")

  # Tests that are marked as too long for CI.
  gate model 900 scripts/nonempty.sh cargo test --locked -p airwave-core --test core -- --ignored
  # They measure for minutes and fail on a loss that is not told.
  gate figures 900 scripts/nonempty.sh \
    cargo test --locked --workspace --test nats -- --ignored --nocapture --test-threads 1

  gate fuzz 1200 "${kept[@]}" "$TMPDIR/fuzz" scripts/fuzz.sh 600
  [[ ! -s $TMPDIR/fuzz ]] || remarks+=("fuzz: $(tail -n 1 "$TMPDIR/fuzz")")

  # The Rust that Cargo.toml promises, and dependencies that may be shipped. What is known against
  # them is read from a database that changes by itself: it is shown, and decides nothing.
  if is_chosen msrv; then
    old_cargo=(env CARGO_TARGET_DIR="$target/msrv" cargo "+$AIRWAVE_TEST_OLDEST_RUST" check --locked)
    gate msrv 900 "${old_cargo[@]}" -p airwave-protocol -p airwave-core -p airwave-transports -p airwave-brokers --lib --all-features
    # The gallery needs the Rust of rust-toolchain.toml: a library of one of its examples does.
    gate msrv 900 "${old_cargo[@]}" -p airwave --lib --bins --no-default-features --features nats,redis,typescript
    rm -rf "$target/msrv"
  fi
  gate deny 300 cargo deny --offline --locked --workspace check bans licenses sources
  gate verify 1500 scripts/package.sh --verify

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
counted="gates: $passed passed, $failed failed, 0 skipped"
if [[ $tier == deep ]]; then
  at=$(git rev-parse --short HEAD 2>/dev/null || echo "no commit")
  [[ -z $(git status --porcelain 2>/dev/null) ]] || at+=" with changes"
  counted="deep $counted, $((SECONDS - started)) s, at $at"
  for remark in "${remarks[@]}"; do counted+="; $remark"; done
fi
echo "$counted"
[[ $failed -eq 0 ]]
