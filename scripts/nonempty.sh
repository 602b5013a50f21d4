#!/usr/bin/env bash
# nonempty.sh COMMAND...: runs a `cargo test` command and fails if it passed without running a
# single test, which is what a filter that matches nothing any more looks like.
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" 2>&1 | tee "$log"
grep -qE '^running [1-9]' "$log" || { echo "no test ran: $*" >&2; exit 1; }
