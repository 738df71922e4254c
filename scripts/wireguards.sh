#!/usr/bin/env bash
# Puts other userspace WireGuard implementations where the benchmark and the interoperability tests look for them, and
# prints that folder as its only line on stdout.
#
# wireguard-go is unpacked (not installed) from its package in Debian sid, which runs on Debian 12; gotatun-cli and
# boringtun-cli are built from crates.io, about two minutes each on two cores, once. All of it goes to
# ${XDG_CACHE_HOME:-$HOME/.cache}/meshd/wireguards-1; the machine's own apt sources and lists are not touched.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/apt.sh"

gotatun=0.10.2
boringtun=0.7.1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshd
folder=$cache/wireguards-1

# The sid suite of the Debian archive that apt is configured with now.
sid_line() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=
    [ -e $keyring ] && options="[signed-by=$keyring] "
    # shellcheck disable=SC2016 # they are apt's own placeholders
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v options="$options" \
            '$1 == "Debian" && $2 == "main" && $4 !~ /-/ { print "deb " options $3, "sid main"; exit }'
}

wireguard_go() {
    [ -x "$folder/wireguard-go" ] && return
    local work line deb
    work=$(mktemp -d "$cache/wireguard-go.XXXXXX")
    line=$(sid_line)
    if [ -z "$line" ]; then
        patient_apt update || fail "apt-get update failed"
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
    dpkg-deb -f "$deb" Version >"$folder/wireguard-go.version"
    cp "$work/root/usr/bin/wireguard-go" "$folder/wireguard-go.new"
    mv "$folder/wireguard-go.new" "$folder/wireguard-go"
    rm -rf "$work"
}

# $1: package, $2: its version. The binary has the name of the package.
from_crates() {
    [ -x "$folder/$1" ] && return
    local work
    work=$(mktemp -d "$cache/$1.XXXXXX")
    say "building $1 $2"
    CARGO_TARGET_DIR=$work/target cargo install --quiet --locked --root "$work" --version "$2" "$1" >&2
    echo "$2" >"$folder/$1.version"
    mv "$work/bin/$(ls "$work/bin")" "$folder/$1"
    rm -rf "$work"
}

main() {
    command -v flock >/dev/null || install_missing "flock util-linux"
    mkdir -p "$folder"
    exec 9>"$cache/wireguards.lock"
    flock 9
    wireguard_go
    from_crates gotatun-cli "$gotatun"
    # All that the tests need is there by now: only the benchmark pays for the rest.
    [ "${1:-all}" = test ] || from_crates boringtun-cli "$boringtun"
    echo "$folder"
}

main "$@"
