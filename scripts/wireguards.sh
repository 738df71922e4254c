#!/usr/bin/env bash
# Provides other userspace WireGuard implementations for the benchmark and the interoperability tests, and prints their
# directory as the only line on stdout.
#
#   scripts/wireguards.sh        all of them
#   scripts/wireguards.sh test   those that the tests use
#
# wireguard-go is unpacked (not installed) from its package in Debian sid, which works on Debian 12; gotatun-cli and
# boringtun-cli are built once from crates.io, which takes about two minutes each on two cores. The tests need no fast
# ones: for them gotatun-cli is built with fewer optimizations, below `quick`, unless the other is there. They are kept in
# ${XDG_CACHE_HOME:-$HOME/.cache}/meshd/wireguards-1; the machine's apt sources and lists are not changed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/apt.sh"

gotatun=0.10.2
boringtun=0.7.1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshd
directory=$cache/wireguards-1
# The directory of the build that is running.
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

# A deb line for sid, from the archive that apt is configured with.
sid_line() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=
    [ -e $keyring ] && options="[signed-by=$keyring] "
    # shellcheck disable=SC2016 # these are apt's placeholders
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v options="$options" \
            '$1 == "Debian" && $2 == "main" && $4 !~ /-/ { print "deb " options $3, "sid main"; exit }'
}

wireguard_go() {
    [ -x "$directory/wireguard-go" ] && return
    local line deb
    work=$(mktemp -d "$cache/wireguard-go.XXXXXX")
    line=$(sid_line)
    if [ -z "$line" ]; then
        apt_with_retries update || fail "apt-get update failed"
        line=$(sid_line)
    fi
    [ -n "$line" ] || fail "no Debian main archive in the apt configuration"
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    echo "$line" >"$work/sources.list"
    local options=(
        -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=-
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o APT::Sandbox::User="$(id -un)"
    )
    say "downloading wireguard-go from Debian sid"
    apt-get -qq "${options[@]}" update >&2
    (cd "$work" && apt-get -qq "${options[@]}" download wireguard-go >&2)
    deb=$(echo "$work"/wireguard-go_*.deb)
    dpkg-deb -x "$deb" "$work/root"
    dpkg-deb -f "$deb" Version >"$directory/wireguard-go.version"
    cp "$work/root/usr/bin/wireguard-go" "$directory/wireguard-go.new"
    mv "$directory/wireguard-go.new" "$directory/wireguard-go"
    rm -rf "$work"
    work=
}

# $1: package, $2: version, $3: directory. The binary gets the package's name.
from_crates() {
    [ -x "$3/$1" ] && return
    work=$(mktemp -d "$cache/$1.XXXXXX")
    say "building $1 $2"
    CARGO_TARGET_DIR=$work/target cargo install --quiet --locked --root "$work" --version "$2" "$1" >&2
    mkdir -p "$3"
    echo "$2" >"$3/$1.version"
    mv "$work/bin/$(ls "$work/bin")" "$3/$1"
    rm -rf "$work"
    work=
}

main() {
    command -v flock >/dev/null || install_missing "flock util-linux"
    mkdir -p "$directory"
    exec 9>"$cache/wireguards.lock"
    flock 9
    wireguard_go
    if [ "${1:-all}" != test ]; then
        from_crates gotatun-cli "$gotatun" "$directory"
        from_crates boringtun-cli "$boringtun" "$directory"
    elif [ ! -x "$directory/gotatun-cli" ]; then
        export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
        from_crates gotatun-cli "$gotatun" "$directory/quick"
    fi
    echo "$directory"
}

main "$@"
