#!/usr/bin/env bash
# What is public in the crates that others depend on, as files: public-api/CRATE.txt.
#
#   scripts/public-api.sh              compares; CHANGELOG.md must name each difference to the base, and
#                                      enums and structs with public fields must be #[non_exhaustive]
#   scripts/public-api.sh --write      writes the files anew
#   scripts/public-api.sh --self-test  only makes sure that it would notice a difference
#
# The base is the commit $AIRWAVE_API_BASE, or else the newest tag v* before this commit, or else the
# place where this branch left origin/main or main. A clone without that history has no base: it
# compares the files alone. The list comes from rustdoc's JSON, which the Rust of
# rust-toolchain.toml (or the one in use) writes when it is told that it is a nightly. Only rustdoc is
# told so: crates are built once, for this and for `cargo doc`.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

crates=(airwave-protocol airwave-core airwave-transports airwave-brokers airwave)

lists=$(mktemp -d "${TMPDIR:-/tmp}/airwave-api.XXXXXX")
trap 'rm -rf "$lists"' EXIT
printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc "$@"\n' >"$lists/rustdoc"
chmod +x "$lists/rustdoc"

# A small crate whose list is known.
self_test() {
  scripts/public-api.py --self-test
  cat >"$lists/house.rs" <<'RUST'
mod inner {
    /// Public where it is passed on.
    #[non_exhaustive]
    #[derive(Clone)]
    pub struct Door<T: Send> { pub width: u32, height: u32, kept: Vec<T> }
    impl<T: Send> Door<T> {
        pub fn open(&mut self, by: impl Fn(&str) -> bool) -> Result<&T, String> { todo!() }
        fn close(&self) {}
    }
    pub struct Hidden;
}
pub use inner::Door;
pub mod rooms {
    pub use crate::Door;
    pub use std::vec::Vec as List;
    pub enum Room { Kitchen(u8), Hall { doors: usize } }
    pub trait Clean: Send { const OFTEN: u8; fn clean<'a>(&'a self) -> Option<&'a str> { None } }
    impl Clean for Room { const OFTEN: u8 = 1; }
}
pub const WALLS: [u8; 4] = [0; 4];
pub async fn live(door: Box<dyn Send>) where u8: Into<u16> {}
#[doc(hidden)] pub fn secret() {}
RUST
  "$lists/rustdoc" --edition 2024 --crate-name house -o "$lists" -Z unstable-options --output-format json --cap-lints allow \
    "$lists/house.rs"
  diff --label 'self-test: the list that is expected' --label 'the list' - <(scripts/public-api.py list "$lists/house.json") >&2 <<'LIST'
#[non_exhaustive] pub struct house::Door<T: Send>
const house::rooms::Clean::OFTEN: u8
fn house::rooms::Clean::clean<'a>(&'a self) -> Option<&'a str> { … }
impl Clean for house::rooms::Room
impl<T: Clone + Send> Clone for house::Door<T>
pub async fn house::live(door: Box<dyn Send>) where u8: Into<u16>
pub const house::WALLS: [u8; 4]
pub enum house::rooms::Room
pub field house::Door::width: u32
pub fn house::Door::open(&mut self, by: impl Fn(&str) -> bool) -> Result<&T, String>
pub mod house
pub mod house::rooms
pub trait house::rooms::Clean: Send
pub use house::rooms::Door = house::Door
pub use house::rooms::List = std::vec::Vec
pub variant house::rooms::Room::Hall { doors: usize }
pub variant house::rooms::Room::Kitchen(u8)
LIST
}

self_test
[[ ${1:-} != --self-test ]] || exit 0

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
for crate in "${crates[@]}"; do
  json=$target/doc/${crate//-/_}.json
  # An old list must not pass for a new one.
  rm -f "$json"
  RUSTDOC=$lists/rustdoc cargo rustdoc --locked --quiet -p "$crate" --lib --all-features -- \
    -Z unstable-options --output-format json --cap-lints allow
  scripts/public-api.py list "$json" >"$lists/$crate.txt"
done

if [[ ${1:-} == --write ]]; then
  mkdir -p public-api
  for crate in "${crates[@]}"; do cp "$lists/$crate.txt" "public-api/$crate.txt"; done
  echo "wrote public-api/{$(IFS=,; echo "${crates[*]}")}.txt"
  exit 0
fi

status=0
for crate in "${crates[@]}"; do
  if diff -U0 --label "public-api/$crate.txt" --label "the code" "public-api/$crate.txt" "$lists/$crate.txt" >&2; then
    echo "ok      public-api/$crate.txt is what the code has"
  else
    echo "BROKEN  public-api/$crate.txt is not what the code has: scripts/public-api.sh --write, and a line in CHANGELOG.md" >&2
    status=1
  fi
  if scripts/public-api.py growth "$lists/$crate.txt"; then
    echo "ok      enums and public fields of $crate can grow"
  else
    status=1
  fi
done

# base: prints the commit to compare with, if there is one.
base() {
  local head fork
  if [[ -n ${AIRWAVE_API_BASE:-} ]]; then git rev-parse --verify --quiet "$AIRWAVE_API_BASE^{commit}" && return; fi
  head=$(git rev-parse --verify --quiet HEAD) || return 0
  git describe --tags --match 'v*' --abbrev=0 2>/dev/null && return
  for of in origin/main main; do
    fork=$(git merge-base HEAD "$of" 2>/dev/null) || continue
    [[ $fork == "$head" ]] || { echo "$fork"; return; }
  done
}
base=$(base)
if [[ -z $base ]]; then
  echo 'ok      no base in this clone: the changelog is not asked for differences'
  exit "$status"
fi
for crate in "${crates[@]}"; do
  # A base that has no list yet has no differences either.
  git show "$base:public-api/$crate.txt" >"$lists/base.txt" 2>/dev/null || continue
  if scripts/public-api.py changelog "$lists/base.txt" "$lists/$crate.txt" CHANGELOG.md; then
    echo "ok      CHANGELOG.md names what is new in $crate since $(git rev-parse --short "$base")"
  else
    status=1
  fi
done
exit "$status"
