#!/usr/bin/env bash
# The house's words, checked by a machine:
#
#   1. no text has a word that hides who acts (whoever, nobody, somebody, whom, oftener);
#   2. no code has a name of version 0.1 that has a plain one now (CHANGELOG.md lists old and new);
#   3. no comment line is longer than 100 columns, tables and addresses excepted;
#   4. no line of Markdown is, but for tables, code and words that cannot be broken;
#   5. no two types of one crate, or of one test binary, have the same name (scripts/type-names.py).
#
#   scripts/check-words.sh              the repository; first it makes sure that it would notice each
#   scripts/check-words.sh --self-test  only that
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sources=('*.rs' '*.ts' '*.tsx' '*.js' '*.mjs' '*.md' '*.sh' '*.toml' '*.lua')
# What others wrote, what is made from other files, and the two files that must name old words.
not_ours=(':!clients/typescript/dist' ':!examples/collab/page/yjs.js' ':!CHANGELOG.md' ':!scripts/check-words.sh')

hidden='whoever|nobody|somebody|whom|oftener'
# Names that nothing else is called, and types whose names are ordinary words.
old='Bell|Vitals|LineSender|Feeder|Flights|Roster|Attendance|Handover|Goodbye|Joiner|WireHandle|WireSlot|WireMetrics|MAX_WIRES|register_wire|publish_once|last_words|live_again|PollLine|PostingLine|SocketLine|StreamLine'
old_types='Seat|Joined|Talk|Conversation|Pulse|Taken|Wire|Line'
old_homes=(core/src transports/src clients/typescript/src src/listener.rs)

# found TITLE COMMAND...: fails and says what was found if COMMAND prints anything.
found() {
  local title=$1 lines
  shift
  lines=$("$@" || true)
  [[ -z $lines ]] || { printf 'found   %s:\n%s\n' "$title" "$(head -n 20 <<<"$lines")" >&2; return 1; }
  printf 'ok      %s\n' "$title"
}

# Comment lines of more than 100 characters, of the file names read: tables and lines that are one
# long word cannot be wrapped.
long_comments() {
  perl -CSD -lne '
    print "$ARGV:$.: $_" if length > 100 && m{^\s*(?://[/!]?|\*|--|\#) }
      && !m{^\s*\S+ +\|} && !m{^\s*\S+ +[\x27-]} && !m{^\s*\S+ (?:curl|cargo|assert|let|scripts/|redis|\# )} && !m{^\s*\#!?\[}
      && !m{`\S{40,}`} && !m{^\s*\S+ {2,}};
    close ARGV if eof' "$@"
}

# The same of Markdown. What stands in backquotes or is a link's address is one word with what touches
# it, and a line that begins with a word which reaches beyond the limit cannot be wrapped.
long_markdown() {
  perl -CSD -lne '
    $code = !$code if m{^\s*```};
    if (length > 100 && !$code && !m{^\s*[|<]} && !m{^\#} && !m{^\[[^\]]+\]: }) {
      my $line = $_;
      $line =~ s{(`[^`]*`|\]\([^)]*\))}{ (my $one = $1) =~ tr/ /_/; $one }ge;
      $line =~ s{^\s*(?:(?:[-*+>]|\d+[.)])\s+)?}{};
      print "$ARGV:$.: $_" if index($line, " ") >= 0 && index($line, " ") < 100;
    }
    if (eof) { close ARGV; $code = 0 }' "$@"
}

words() { git grep -IniwE "$hidden" -- "${sources[@]}" "${not_ours[@]}"; }
names() { git grep -InwE "$old" -- "${sources[@]}" "${not_ours[@]}"; }
types() { git grep -InE "\b(struct|enum|trait|type|class|interface) ($old_types)\b" -- "${old_homes[@]}"; }
comments() {
  local files
  mapfile -t files < <(git ls-files -- '*.rs' '*.ts' '*.tsx' '*.js' '*.mjs' '*.lua' "${not_ours[@]}")
  long_comments "${files[@]}"
}

same_names() { scripts/type-names.py; }

markdown() {
  local files
  mapfile -t files < <(git ls-files -- '*.md')
  long_markdown "${files[@]}"
}

self_test() {
  local text
  for text in "// Whoever comes here" "a text for nobody"; do
    grep -qiwE "$hidden" <<<"$text" || { echo "'$text' would pass" >&2; return 1; }
  done
  for text in "let bell: Bell" "hub.register_wire(format)"; do
    grep -qwE "$old" <<<"$text" || { echo "'$text' would pass" >&2; return 1; }
  done
  if ! grep -qE "\b(struct|enum) ($old_types)\b" <<<"pub struct Taken {"; then echo "an old type would pass" >&2; return 1; fi
  text=$(mktemp)
  printf '    /// %s\n' "$(printf 'word %.0s' {1..25})" >"$text"
  [[ -n $(long_comments "$text") ]] || { rm "$text"; echo "a long comment would pass" >&2; return 1; }
  printf '    /// short\n| %s |\n' "$(printf 'word %.0s' {1..25})" >"$text"
  [[ -z $(long_comments "$text") ]] || { rm "$text"; echo "what is no long comment would be found" >&2; return 1; }
  printf -- '- %s\n' "$(printf 'word %.0s' {1..25})" >"$text"
  [[ -n $(long_markdown "$text") ]] || { rm "$text"; echo "a long line of Markdown would pass" >&2; return 1; }
  printf '`%s`.\n```\n%s\n```\n' "$(printf 'word %.0s' {1..25})" "$(printf 'word %.0s' {1..25})" >"$text"
  [[ -z $(long_markdown "$text") ]] || { rm "$text"; echo "code that is no text would be found" >&2; return 1; }
  rm "$text"
  scripts/type-names.py --self-test || return 1
  echo "ok      this script notices each of them"
}

self_test
[[ ${1:-} != --self-test ]] || exit 0
status=0
found "words that hide who acts" words || status=1
found "names of version 0.1" names || status=1
found "types of version 0.1" types || status=1
found "comments over 100 columns" comments || status=1
found "lines of Markdown over 100 columns" markdown || status=1
found "types of one crate with one name" same_names || status=1
exit "$status"
