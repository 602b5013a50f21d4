#!/usr/bin/env bash
# Packs what is published, crates and the npm package, and looks into each pack.
#
#   scripts/package.sh            packs, without building
#   scripts/package.sh --verify   also builds each crate from its pack alone, which shows a file that
#                                 lies outside it
#
# Every pack holds both licence texts and a README, nothing that only the repository needs, and no
# file over 1 MiB. Honours CARGO_TARGET_DIR.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

verify=--no-verify
case ${1:-} in
  '') ;;
  --verify) verify= ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac

failed=0
complain() { echo "BROKEN  $*" >&2; failed=1; }

# look NAME: reads the paths of a pack, below its folder, and complains of what is wrong.
look() {
  local name=$1 files path
  files=$(cat)
  for path in LICENSE-MIT LICENSE-APACHE README.md; do
    grep -qxF -- "$path" <<<"$files" || complain "$name has no $path"
  done
  if path=$(grep -E '^(\.ci|\.github|scripts|fuzz|tests|public-api|test)/' <<<"$files" | head -n 1) && [[ -n $path ]]; then
    complain "$name has $path, which only the repository needs"
  fi
}

# A look that finds nothing proves nothing.
if (look trial <<<$'LICENSE-MIT\nREADME.md' && [[ $failed -eq 0 ]]) 2>/dev/null; then echo "a missing licence would pass" >&2; exit 1; fi
if (look trial <<<$'LICENSE-MIT\nLICENSE-APACHE\nREADME.md\nscripts/x' && [[ $failed -eq 0 ]]) 2>/dev/null; then
  echo "a script would pass" >&2
  exit 1
fi

target=${CARGO_TARGET_DIR:-target}
packs=$target/package
rm -f "$packs"/*.crate
# A changed file is what this is run for: CI has none.
# shellcheck disable=SC2086 # empty or one word
cargo package --quiet --locked --workspace --exclude airwave-bench --allow-dirty $verify

count=0
for pack in "$packs"/*.crate; do
  name=$(basename "$pack" .crate)
  count=$((count + 1))
  tar -tzf "$pack" | sed 's|^[^/]*/||' >"$packs/files"
  look "$name" <"$packs/files"
  if big=$(tar -tvzf "$pack" | awk '$3 > 1048576 { print $6; exit }') && [[ -n $big ]]; then complain "$name has $big, which is over 1 MiB"; fi
  printf 'ok      %-32s %5s files, %7s bytes\n' "$name" "$(wc -l <"$packs/files")" "$(stat -c %s "$pack")"
done
expected=$(cargo metadata --locked --no-deps --format-version 1 | tr ',' '\n' | grep -c '"publish":null')
[[ $count -eq $expected ]] || complain "$count crates were packed, and $expected are to be published"

# npm says what it would pack. `dist` is committed, so nothing is built.
npm --prefix clients/typescript pack --dry-run --json ./clients/typescript 2>/dev/null \
  | node -e '
    const [pack] = JSON.parse(require("fs").readFileSync(0, "utf8"));
    console.log(pack.files.map((file) => file.path).join("\n"));' >"$packs/files"
look airwave-client <"$packs/files"
grep -qxF dist/client.js "$packs/files" || complain "airwave-client has no dist/client.js"
grep -qxF dist/client.d.ts "$packs/files" || complain "airwave-client has no dist/client.d.ts"
printf 'ok      %-32s %5s files\n' airwave-client "$(wc -l <"$packs/files")"
exit "$failed"
