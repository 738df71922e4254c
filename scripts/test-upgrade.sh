#!/usr/bin/env bash
# Upgrades a mesh of three nodes from an earlier version of the daemon to this one, node by node, under traffic, and fails
# if a packet leaves unencrypted or more is lost than docs/upgrade.md says.
#
#   scripts/test-upgrade.sh [BACKEND...]   userspace, on this machine, and kernel, in a virtual machine; both without any
#
# EARLIER is the commit to upgrade from. It is built from this clone's history, which a shallow clone lacks.
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/apt.sh
. scripts/apt.sh
# The last commit of version 0.1.
earlier=${EARLIER:-300ed9ab0b1cb853d08683148f37288b16b88315}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# Enough on slow, shared cores, emulated in software.
seconds=2400

# Builds the earlier version into $1, once: with this compiler, and with the versions of its own Cargo.lock.
build_earlier() {
    [ ! -x "$1/mesh-cni" ] || return 0
    git cat-file -e "$earlier^{commit}" 2>/dev/null ||
        fail "commit $earlier is not in this clone: git fetch --unshallow"
    mkdir -p "$1/source"
    git archive "$earlier" | tar -x -C "$1/source"
    cp rust-toolchain.toml "$1/source/"
    (cd "$1/source" && CARGO_TARGET_DIR=$1/build cargo build --locked -p meshd -p cni --bins)
    cp "$1/build/debug/meshd" "$1/build/debug/mesh-cni" "$1/"
}

# $1: the directory of the earlier version.
in_virtual_machine() {
    local job code=0
    job=$(mktemp)
    printf 'exec %q %q kernel\n' "$target/debug/prove-upgrade" "$1" >"$job"
    scripts/kernel-vm/boot.sh "$job" $seconds || code=$?
    rm -f "$job"
    return $code
}

main() {
    local built=$target/upgrade/${earlier:0:7} backend
    [ $# -gt 0 ] || set -- userspace kernel
    build_earlier "$built"
    cargo build --locked --workspace --bins
    for backend in "$@"; do
        case $backend in
            userspace) "$target/debug/prove-upgrade" "$built" userspace ;;
            kernel) in_virtual_machine "$built" ;;
            *) fail "expected userspace or kernel, not $backend" ;;
        esac
    done
}

main "$@"
