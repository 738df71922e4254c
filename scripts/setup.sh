#!/usr/bin/env bash
# Installs what a fresh Debian 12 with Rust lacks for the demo or for the tests; changes nothing that is installed already.
#
#   scripts/setup.sh demo    what `make demo` needs
#   scripts/setup.sh test    also what `make test` needs: etcd, kube-apiserver, buildah, reference CNI plugins, other
#                            implementations of WireGuard, QEMU, and a kernel with WireGuard to run in it
#
# The latter also in two parts: `test-packages` installs packages and takes seconds, `test-assets` builds and unpacks the
# rest and takes minutes the first time, so that other work can run in parallel.
#
# A package is installed only when its command is missing, and sudo is used only for that. etcd and kube-apiserver are
# those in KUBEBUILDER_ASSETS if that is set, else they are kept in ${XDG_CACHE_HOME:-$HOME/.cache}/meshd, without
# installing or starting a service. The kernel is kept there too and not installed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Debian keeps nft, ip and friends in sbin, which is not in an ordinary user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/apt.sh"

usage() {
    echo "usage: ${0##*/} demo|test|test-packages|test-assets" >&2
    exit 64
}

# Each line: a required command (or file), and the package that contains it.
demo_needs="
cc                  gcc
/usr/include/stdio.h libc6-dev
ip                  iproute2
ping                iputils-ping
nft                 nftables
wg                  wireguard-tools
"
test_needs="
buildah             buildah
wireguard-go        wireguard-go
/usr/lib/cni/ptp    containernetworking-plugins
flock               util-linux
"

# What takes long, in parallel. The packages that all of it needs are installed before: apt works for one at a time.
assets() {
    local job jobs=() failed=0
    "$here/kube-assets.sh" >/dev/null &
    jobs+=($!)
    "$here/wireguards.sh" test >/dev/null &
    jobs+=($!)
    "$here/kernel-vm/assets.sh" >/dev/null &
    jobs+=($!)
    for job in "${jobs[@]}"; do
        wait "$job" || failed=1
    done
    [ $failed = 0 ] || fail "some assets could not be built; see above"
}

main() {
    [ $# -eq 1 ] || usage
    command -v cargo >/dev/null || fail "cargo is missing: install Rust (rust-version in Cargo.toml) first"
    case $1 in
        demo) install_missing "$demo_needs" ;;
        test | test-packages)
            install_missing "$demo_needs$test_needs$("$here/kube-assets.sh" needs)
$("$here/kernel-vm/assets.sh" needs)"
            # Now, because the assets are built in parallel and without a terminal.
            need_lists
            ;;
        test-assets) ;;
        *) usage ;;
    esac
    case $1 in test | test-assets) assets ;; esac
    say "ready for $1"
}

main "$@"
