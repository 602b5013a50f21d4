#!/usr/bin/env bash
# What to run after each change, in about a minute if the build is warm: the format, clippy and the
# unit tests of the crates that differ from main, and one room of the end-to-end tests.
#
#   scripts/quick.sh [ROOM]    ROOM: a module of tests/e2e (delivery unless given), or `none`
#   scripts/quick.sh --list    the rooms
#
# It installs nothing and starts no broker. scripts/test.sh runs all the rest.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rooms() { find tests/e2e -maxdepth 1 -name '*.rs' ! -name main.rs -printf '%f\n' | sed 's/\.rs$//' | sort; }

room=${1:-delivery}
case $room in
  --list) rooms; exit 0 ;;
  -*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
  none) ;;
  *) rooms | grep -qxF -- "$room" || { echo "no room is called '$room'; there are: $(rooms | tr '\n' ' ')" >&2; exit 2; } ;;
esac

# The crates whose files differ from where this branch left main, or from the last commit on main.
base=$(git merge-base HEAD main 2>/dev/null || git rev-parse HEAD)
[[ $base != "$(git rev-parse HEAD)" ]] || base=HEAD
changed=$({ git diff --name-only "$base"; git ls-files --others --exclude-standard; } | sort -u)
declare -A crate_of=([protocol]=airwave-protocol [core]=airwave-core [transports]=airwave-transports [brokers]=airwave-brokers [bench]=airwave-bench [src]=airwave)
packages=()
for folder in protocol core transports brokers bench src; do
  if grep -qE "^$folder/.*\.(rs|lua|toml|html|css|js)$" <<<"$changed"; then packages+=(-p "${crate_of[$folder]}"); fi
done

step() { printf '\n==== %s ====\n' "$*"; "$@"; }

step cargo fmt --all --check
step scripts/check-words.sh
if [[ ${#packages[@]} -gt 0 ]]; then
  step cargo clippy --quiet --locked "${packages[@]}" --all-targets --all-features -- -D warnings
  # Binaries and libraries alone: tests of brokers start servers.
  step cargo test --quiet --locked "${packages[@]}" --lib
else
  printf '\nno crate differs from %s\n' "$(git rev-parse --short "$base")"
fi
[[ $room == none ]] || step scripts/nonempty.sh cargo test --quiet --locked -p airwave --test e2e "$room::"
printf '\nquick: all passed in %s s\n' "$SECONDS"
