#!/usr/bin/env bash
# Provides what `make cluster` runs on its nodes, and prints the directory as the only line on stdout: kubelet, kube-proxy,
# kube-controller-manager and kube-scheduler, containerd, runc, and a static busybox for the test image.
#
#   scripts/cluster-assets.sh needs    only prints what has to be installed, as lines "command package"
#
# containerd, runc, kubectl and busybox are unpacked from their Debian packages and not installed, since that would start a
# service; Kubernetes' programs are built from Debian's source package, which takes 3 to 10 minutes on two cores. They are
# not built if KUBEBUILDER_ASSETS has them. All is kept in ${XDG_CACHE_HOME:-$HOME/.cache}/meshd.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/apt.sh"
# shellcheck source=scripts/kube-source.sh
. "$here/kube-source.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshd
# The number is increased when the contents change. The lab has the name too, in tests/src/cluster/programs.rs.
assets=$cache/cluster-$kube_version-1
kube_programs="kubelet kube-proxy kube-controller-manager kube-scheduler"
# What kubelet, kube-proxy and the lab call by name.
needs="
ip          iproute2
iptables    iptables
nft         nftables
conntrack   conntrack
mount       mount
nsenter     util-linux
"

# Whether the programs of Kubernetes have to be built.
have_programs() {
    local directory program
    for directory in "${KUBEBUILDER_ASSETS:-}" "$assets"; do
        [ -n "$directory" ] || continue
        for program in $kube_programs; do
            [ -x "$directory/$program" ] || continue 2
        done
        return 0
    done
    return 1
}

# Copies files into the cache under names of their own last, so that it never has an incomplete one.
keep() {
    local file name
    for file in "$@"; do
        name=$(basename "$file")
        cp -L "$file" "$assets/.$name.new"
        chmod 755 "$assets/.$name.new"
        mv "$assets/.$name.new" "$assets/$name"
    done
}

unpack_packages() {
    say "unpacking containerd, runc, kubectl and busybox from their Debian packages"
    local package
    for package in containerd runc kubernetes-client busybox-static; do
        download "$package"
        dpkg-deb -x "$package"_*.deb unpacked
    done
    keep unpacked/usr/bin/{containerd-shim-runc-v2,ctr,kubectl} unpacked/usr/sbin/runc unpacked/bin/busybox
    keep unpacked/usr/bin/containerd
}

build_programs() {
    say "building $kube_programs in $PWD, once; this takes some minutes"
    unpack_source
    local targets=() program
    for program in $kube_programs; do targets+=("cmd/$program"); done
    compile_kubernetes "hack/make-rules/build.sh ${targets[*]}" "$kube_programs"
    for program in $kube_programs; do keep "go/src/k8s.io/kubernetes/_output/bin/$program"; done
}

main() {
    if [ "${1:-}" = needs ]; then
        echo "$needs"
        have_programs || echo "$kube_build_needs"
        return
    fi
    install_missing "$needs$(have_programs || echo "$kube_build_needs")"
    mkdir -p "$assets"
    enter_build_directory cluster.lock
    [ -x "$assets/containerd" ] || unpack_packages
    have_programs || build_programs
    say "the programs of the nodes are in $assets"
    echo "$assets"
}

main "$@"
