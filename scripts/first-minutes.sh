#!/usr/bin/env bash
# Types README's commands, one by one, as a new user does, and says after how many seconds an event
# was seen on both transports. Wants cargo, node and curl, and nothing else.
#
#   scripts/first-minutes.sh [--binary FILE] [--port N] [--within SECONDS]
#
# --binary   a built `airwave`, so that nothing is built: it stands in for `cargo run --release` and
#            `target/release/airwave`
# --port     stands in for README's 8080; 0: any free one
# --within   how long it may take from the first command after the build until an event was seen
#            (default 10)
#
# The commands are typed twice: as they stand, and with README's own airwave.toml. It is written for
# bash 3.2, which macOS has.
set -eu
cd "$(dirname "$0")/.."
root=$PWD

binary='' port=8080 within=10
while [ $# -gt 0 ]; do
  case $1 in
    --binary) binary=$2 ;;
    --port) port=$2 ;;
    --within) within=$2 ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done

say() { printf '[first minutes] %s\n' "$*"; }
now() { node -p 'Date.now()'; }

# A developer's own settings must not change what is tried, and those of tests are no settings.
for name in $(env | sed -n 's/^\(AIRWAVE_[A-Z0-9_]*\)=.*/\1/p'); do unset "$name"; done
unset RUST_LOG

work=$(mktemp -d "${TMPDIR:-/tmp}/airwave-first.XXXXXX")
out=$work/out
running=()
stop_all() {
  local pid
  for pid in ${running[@]+"${running[@]}"}; do kill -- "-$pid" 2>/dev/null || true; done
  for pid in ${running[@]+"${running[@]}"}; do wait "$pid" 2>/dev/null || true; done
  running=()
}
trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The commands of README, one a line, without their comments: of the first block that starts the
# server, and of those that talk to it.
commands=$(awk '/^```sh$/ { inside = 1; next } /^```/ { inside = 0 } inside' README.md | sed 's/ \{2,\}#.*//' | grep -v '^scripts/')
server=$(printf '%s\n' "$commands" | head -n 1)
[ "$server" = 'cargo run --release' ] || { say "README begins with '$server' and not with the server"; exit 1; }
awk '/^# airwave.toml$/ { inside = 1 } /^```/ { inside = 0 } inside' README.md >"$work/airwave.toml"
[ -s "$work/airwave.toml" ] || { say "README has no airwave.toml"; exit 1; }

if [ -z "$binary" ]; then
  cargo build --release
else
  binary=$(cd "$(dirname "$binary")" && pwd)/$(basename "$binary")
  [ -x "$binary" ] || { say "there is no $binary"; exit 1; }
fi
if [ "$port" = 0 ]; then
  port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
fi
if [ "$port" != 8080 ]; then
  export AIRWAVE_LISTEN=127.0.0.1:$port AIRWAVE_URL=http://127.0.0.1:$port
fi

# What is typed for a command of README.
typed() {
  local text=$1
  text=${text//127.0.0.1:8080/127.0.0.1:$port}
  if [ -n "$binary" ]; then
    text=${text//target\/release\/airwave/$binary}
    [ "$text" != 'cargo run --release' ] || text=$binary
  else
    text=${text//target\/release\/airwave/$root\/target\/release\/airwave}
    [ "$text" != 'cargo run --release' ] || text="cargo run --release --manifest-path $root/Cargo.toml"
  fi
  printf '%s' "$text"
}

# in_terminal NAME COMMAND: a terminal of its own; what it says goes to $out/NAME.
in_terminal() {
  set -m
  (cd "$folder" && exec bash -e -o pipefail -c "$2") >"$out/$1" 2>"$out/$1.err" </dev/null &
  running+=("$!")
  set +m
}

# soon WHAT COMMAND...: until the command succeeds, for a time that only something broken takes.
soon() {
  local what=$1 until=$((SECONDS + within))
  shift
  until "$@"; do
    if [ "$SECONDS" -gt "$until" ]; then
      say "not within $within s: $what"
      for file in "$out"/*; do printf -- '--- %s\n' "$(basename "$file")"; tail -n 20 "$file"; done
      return 1
    fi
    sleep 0.1
  done
}

serves() { grep -qs '^airwave listening on ' "$out/server"; }
# An id of an event that both listeners have printed: `id: N` over SSE, `N message …` over
# WebSocket.
on_both() {
  local id
  for id in $(sed -n 's/^\([0-9][0-9]*\) message .*/\1/p' "$out/websocket" 2>/dev/null); do
    ! grep -qs "^id: $id\$" "$out/sse1" || return 0
  done
  return 1
}
has() { grep -qs "$2" "$out/$1"; }

try() {
  local began seen='' streams=0 command
  say "$1"
  rm -rf "$out"
  mkdir "$out"
  began=$(now)
  in_terminal server "$(typed "$server")"
  soon "the server listens" serves
  while read -r command; do
    [ "$command" != "$server" ] || continue
    say "\$ $command"
    case $command in
      *' listen '*) in_terminal websocket "$(typed "$command")" ;;
      'curl -N '*)
        streams=$((streams + 1))
        in_terminal "sse$streams" "$(typed "$command")"
        # As a user does, who sees that it listens before the next command is typed.
        soon "a confirmation over SSE" has "sse$streams" '^event: airwave.subscribed'
        ;;
      while*)
        in_terminal source "$(typed "$command")"
        soon "an event on both transports" on_both
        seen=yes
        say "an event on both transports after $(awk "BEGIN { printf \"%.1f\", ($(now) - $began) / 1000 }") s"
        ;;
      # The others end by themselves, and do what they say.
      *)
        (cd "$folder" && bash -e -o pipefail -c "$(typed "$command")") >"$out/once" 2>&1 && ! has once '"error"' \
          || { say "failed: $command"; cat "$out/once"; return 1; }
        case $command in
          */publish) soon "what was published" has "sse$streams" '^event: order-update' ;;
          */channels/*) has once '"order-update"' || { say "the history lacks the event"; cat "$out/once"; return 1; } ;;
        esac
        ;;
    esac
  done <<<"$commands"
  [ -n "$seen" ] || { say "README has no source of events"; return 1; }
  stop_all
}

mkdir "$work/empty" "$work/with-file"
folder=$work/empty
try "as README says"
mv "$work/airwave.toml" "$work/with-file/"
folder=$work/with-file
try "the same, with README's airwave.toml"
