#!/usr/bin/env bash
# The house's boundaries (ARCHITECTURE.md), checked by a machine:
#
#   1. core names no HTTP framework, no socket protocol, no broker client, and no crate of this
#      workspace but protocol; protocol names no crate of the workspace, no runtime and no I/O;
#   2. transports do not know brokers, brokers do not know transports, and neither knows the facade;
#   3. siblings (one transport and another, one broker and another) never import each other, nor do
#      the modules that they share;
#   4. no files of a crate use each other in a circle (scripts/circles.py says what counts as a use).
#      scripts/known-circles.txt lists those that are not untied yet, and may only become shorter.
#
#   scripts/check-boundaries.sh              the workspace; first it makes sure that it would notice a violation
#   scripts/check-boundaries.sh --self-test  only that
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Modules that the siblings of a crate share: lower floors. A new file in src/ counts as one more
# sibling until it is named here.
shared_of() {
  case $1 in
    transports) echo request envelope socket heads pages accept prometheus cors transport ;;
    brokers) echo reconnect silence ;;
  esac
}

# Modules that stand above the siblings: they may import all of them, and none of those imports them.
above_of() {
  case $1 in
    transports) echo router ;;
  esac
}

foreign_to_core='airwave|airwave-(brokers|transports|bench)|axum.*|actix.*|warp|rocket|poem|salvo.*|tower.*|http|http-.*|hyper.*|h2|h3|quinn.*|httparse|reqwest|ureq|curl|.*tungstenite.*|fastwebsockets|wtransport|web-transport.*|redis.*|fred|deadpool.*|async-nats|nats|nkeys|lapin|rdkafka|rustls|native-tls|openssl'

foreign_to_protocol='airwave.*|tokio.*|async-.*|mio|futures.*|rustix|libc|socket2|tracing.*|bytes|'$foreign_to_core

# named ALLOWED_OWN PATTERN: reads `cargo tree --prefix none` and fails if a crate of it matches
# PATTERN.
names_none_of() {
  local own=$1 pattern=$2 found
  found=$(awk '{print $1}' | grep -vxF -- "$own" | grep -xE -- "$pattern" | sort -u || true)
  [[ -z $found ]] || { echo "$own depends on: $(tr '\n' ' ' <<<"$found")" >&2; return 1; }
}

tree_of() { # tree_of CRATE [FEATURES]
  cargo tree --locked --quiet -p "$1" -e normal ${2:---all-features} --prefix none
}

# siblings CRATE_DIR CRATE_NAME SHARED... ^ABOVE...: fails if a module of CRATE_DIR/src other than lib.rs
# imports a sibling. Comments and strings do not count; a grouped `use crate::{a, b::c}` and names
# that lib.rs re-exports do.
siblings() {
  perl - "$@" <<'PERL'
use strict; use warnings;
my ($dir, $crate, @floors) = @ARGV;
my %shared = map { $_ => 1 } grep { !/^\^/ } @floors;
my %above = map { /^\^(.*)/ ? ($1 => 1) : () } @floors;
my (%files, %text);
for my $path (split /\n/, `find '$dir/src' -name '*.rs' | sort`) {
    (my $name = $path) =~ s{^\Q$dir\E/src/}{};
    (my $module = $name) =~ s{(/.*|\.rs)$}{};
    push @{ $files{$module} }, $path;
    local $/; open my $in, '<', $path or die "$path: $!"; my $t = <$in>;
    # One pass, longest token first, so that `//` within a string is no comment and a quote within a
    # comment opens no string.
    $t =~ s{ (//[^\n]*) | (/\*.*?\*/) | (\br(\#*)".*?"\g4) | ("(?:\\.|[^"\\])*") | ('(?:\\.|[^'\\\n])') }
           { defined $5 || defined $3 ? '""' : ' ' }gsex;
    $text{$path} = $t;
}
die "$dir/src holds no module: is this still where they are?\n" unless keys(%files) > 1;
my @siblings = grep { $_ ne 'lib' && !$shared{$_} } sort keys %files;

# What `pub use websocket::{Socket, frame as f}` in lib.rs makes importable as crate::Socket.
my %exported;
my $lib = join "\n", map { $text{$_} } @{ $files{lib} || [] };
for my $s (@siblings) {
    while ($lib =~ /\buse\s+(?:crate::|self::)?\Q$s\E::([^;]+);/g) {
        for my $item (split /[,{}]/, $1) {
            my ($last) = $item =~ /(\w+)\s*$/ or next;
            $exported{$last} = $s if $last ne 'self';
        }
    }
}

# The first segments of every path that begins at the crate's root: crate::X, super::X,
# crate::{X::…, Y}.
sub firsts {
    my ($t) = @_; my @out;
    my $root = qr/\b(?:crate|super|\Q$crate\E)\s*::\s*(?:super\s*::\s*)*/;
    push @out, $1 while $t =~ /$root(\w+)/g;
    while ($t =~ /$root(\{((?:[^{}]++|(?1))*)\})/g) {
        my $group = $2;
        1 while $group =~ s/\{[^{}]*\}//g;   # only the names at the group's own level
        push @out, map { /^\s*(\w+)/ ? $1 : () } split /,/, $group;
    }
    return @out;
}

my $bad = 0;
for my $module (grep { $_ ne 'lib' && !$above{$_} } sort keys %files) {
    for my $path (@{ $files{$module} }) {
        for my $name (firsts($text{$path})) {
            my ($target) = grep { $_ eq $name } @siblings;
            my $via = '';
            if (!defined $target && exists $exported{$name}) { $target = $exported{$name}; $via = " (through crate::$name)"; }
            next if !defined $target || $target eq $module;
            print STDERR "$path imports its sibling $target$via: what both need belongs in a module below them or in core (a new module that is below them is named in shared_of of this script)\n";
            $bad = 1;
        }
    }
}
exit $bad;
PERL
}

# The checks above, tried on small houses that break each rule once. A check that cannot fail proves
# nothing.
self_test() {
  local dir tree
  dir=$(mktemp -d)
  # shellcheck disable=SC2064  # the path is known now
  trap "rm -rf '$dir'" RETURN

  lay() { # lay SSE_RS [LIB_RS]: a transports crate whose sse.rs is this
    rm -rf "$dir/src"
    mkdir -p "$dir/src/http"
    printf '%s\n' "${2:-pub mod sse; pub mod websocket; pub mod http; mod request;}" >"$dir/src/lib.rs"
    printf '%s\n' "$1" >"$dir/src/sse.rs"
    echo 'use crate::request::Request; use http::StatusCode;' >"$dir/src/websocket.rs"
    echo 'mod body;' >"$dir/src/http/mod.rs"
    echo 'use crate::http::body as own;' >"$dir/src/http/body.rs"
    echo 'pub struct Request;' >"$dir/src/request.rs"
  }
  refused() { ! siblings "$dir" airwave_transports request 2>/dev/null || { echo "self-test: not noticed: $1" >&2; return 1; }; }
  accepted() { siblings "$dir" airwave_transports request || { echo "self-test: wrongly refused: $1" >&2; return 1; }; }
  local line
  for line in 'use crate::websocket::Frame;' 'use super::websocket;' 'use crate::{request::Request, websocket::Frame};' \
    'mod t { use super::super::websocket::X; }' 'fn f() { crate::http::reply() }' 'use airwave_transports::http;' \
    'const A: &str = "//"; use crate::websocket;' "const Q: char = '\"'; use crate::websocket; const P: char = '\"';" \
    'use crate::{request::{self, Request}, http};'; do
    lay "$line"
    refused "$line" || return 1
  done
  for line in 'use crate::request::Request; use http::StatusCode;' '// crate::websocket does this too' \
    'const A: &str = "crate::websocket"; /* super::http */' 'const A: &str = r#" " crate::http "#;' \
    'use crate::{request::{Request, http}};' 'use crate::sse::own;'; do
    lay "$line"
    accepted "$line" || return 1
  done
  lay 'use crate::Socket;' 'pub mod sse; pub mod websocket; pub use websocket::{Socket, close};'
  refused 'a re-export' || return 1
  lay '' && echo 'use crate::sse::Sse;' >"$dir/src/request.rs"
  refused 'a shared module that imports a sibling' || return 1
  lay '' && echo 'use crate::{sse, websocket};' >"$dir/src/router.rs"
  refused 'a sibling that imports the others' || return 1
  siblings "$dir" airwave_transports request ^router || { echo 'self-test: wrongly refused: a module above' >&2; return 1; }
  echo 'use crate::router;' >"$dir/src/sse.rs"
  ! siblings "$dir" airwave_transports request ^router 2>/dev/null || { echo 'self-test: not noticed: a sibling that imports what is above it' >&2; return 1; }
  rm -rf "$dir/src" && mkdir "$dir/src" && echo >"$dir/src/lib.rs"
  refused 'a crate whose modules have moved' || return 1

  tree=$'airwave-core v0.1.0 (/x/core)\nbytes v1.11.1\nserde v1.0.0 (*)'
  names_none_of airwave-core "$foreign_to_core" <<<"$tree" || { echo 'self-test: a clean tree was refused' >&2; return 1; }
  for line in axum-core hyper http http-body tower-service tungstenite tokio-tungstenite redis async-nats reqwest airwave airwave-brokers; do
    ! names_none_of airwave-core "$foreign_to_core" <<<"$tree"$'\n'"$line v1.0.0" 2>/dev/null ||
      { echo "self-test: not noticed: $line" >&2; return 1; }
  done
  tree=$'airwave-protocol v0.1.0 (/x/protocol)\nbase64 v0.22.1\nmemchr v2.7.0\nserde v1.0.0 (*)\nserde_json v1.0.0'
  names_none_of airwave-protocol "$foreign_to_protocol" <<<"$tree" || { echo 'self-test: a clean tree was refused' >&2; return 1; }
  for line in airwave-core airwave tokio tokio-util mio futures-util bytes hyper; do
    ! names_none_of airwave-protocol "$foreign_to_protocol" <<<"$tree"$'\n'"$line v1.0.0" 2>/dev/null ||
      { echo "self-test: not noticed: $line" >&2; return 1; }
  done
  echo 'self-test: every violation was noticed'
}

self_test
scripts/circles.py --self-test
[[ ${1:-} != --self-test ]] || exit 0

failed=0
check() { # check WHAT COMMAND...
  local what=$1
  shift
  if "$@"; then echo "ok      $what"; else echo "BROKEN  $what"; failed=1; fi
}
# Each tree in a variable of its own: in a pipe, a cargo that fails would look like a crate without
# dependencies. Core's feature `axum` implements one trait for one type, which no other crate may
# do. Only core/src/response.rs uses it.
protocol_tree=$(tree_of airwave-protocol)
core_tree=$(tree_of airwave-core --features=conformance)
transports_tree=$(tree_of airwave-transports)
brokers_tree=$(tree_of airwave-brokers)
check 'protocol names no other crate of the workspace, no runtime and no I/O' \
  names_none_of airwave-protocol "$foreign_to_protocol" <<<"$protocol_tree"
check 'protocol reads no clock, no file and no socket' \
  test -z "$(grep -rlE '\bstd::(net|fs|io|time|thread|process|env)\b' protocol/src)"
check 'core names no HTTP framework and no broker client' names_none_of airwave-core "$foreign_to_core" <<<"$core_tree"
check 'transports know neither brokers nor the facade' names_none_of airwave-transports 'airwave|airwave-brokers' <<<"$transports_tree"
check 'brokers know neither transports nor the facade' names_none_of airwave-brokers 'airwave|airwave-transports|axum.*' <<<"$brokers_tree"
check 'only core/src/response.rs names an HTTP framework in core' \
  test "$(grep -rlE '\b(axum_core|http)::' core/src)" = core/src/response.rs
for crate in transports brokers; do
  if [[ -z $(find "$crate/src" -name '*.rs' ! -name lib.rs) ]]; then
    echo "ok      $crate has no modules yet"
    continue
  fi
  # shellcheck disable=SC2046  # a list of module names
  check "no sibling in $crate imports another" siblings "$crate" "airwave_$crate" $(shared_of "$crate") $(above_of "$crate" | sed 's/[^ ]*/^&/g')
done
check 'no files use each other in a circle' scripts/circles.py --known scripts/known-circles.txt \
  protocol/src=airwave_protocol core/src=airwave_core transports/src=airwave_transports brokers/src=airwave_brokers src=airwave \
  bench/src=airwave_bench clients/typescript/src
exit "$failed"
