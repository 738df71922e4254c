#!/usr/bin/env bash
# Provides kube-apiserver and etcd for the tests, and prints their directory as the only line on stdout.
#
#   scripts/kube-assets.sh needs        only prints what the build needs, if anything, as lines "command package"
#   scripts/kube-assets.sh directory    only prints the directory, whether the programs are in it yet or not
#
# In this order: KUBEBUILDER_ASSETS (which must contain both); the cache; else etcd is unpacked from its Debian package
# (not installed, since that would start a service on the default port), and kube-apiserver is built from Debian's source
# package `kubernetes`. The build takes 4 to 8 minutes on two cores, and 3 GB in a temporary directory of the cache.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/apt.sh"
# shellcheck source=scripts/kube-source.sh
. "$here/kube-source.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshd
# The number after the version is increased when the build changes, so that an old one is not used. The lab has the name
# too, in tests/src/kube/assets.rs.
assets=$cache/kube-$kube_version-2

# Of what the main makefile would generate first, the source package lacks the OpenAPI code alone; the second makefile
# generates it, with the settings that the main one passes.
# shellcheck disable=SC2016 # the inner shell's own
compile='
    make -f Makefile.generated_files CALLED_FROM_MAIN_MAKEFILE=1 PRJ_SRC_PATH=k8s.io/kubernetes META_DIR=.make \
        OUT_DIR=_output BIN_DIR=_output/bin GENERATED_FILE_PREFIX=zz_generated. gen_openapi
    hack/make-rules/build.sh cmd/kube-apiserver
'

build_apiserver() {
    say "building kube-apiserver $kube_version in $PWD, once; this takes some minutes"
    unpack_source
    compile_kubernetes "$compile" kube-apiserver
    # Renamed into place last, so that the cache never has an incomplete file.
    cp go/src/k8s.io/kubernetes/_output/bin/kube-apiserver "$assets/.kube-apiserver.new"
    mv "$assets/.kube-apiserver.new" "$assets/kube-apiserver"
}

unpack_etcd() {
    say "unpacking etcd from its Debian package"
    download etcd-server
    dpkg-deb -x etcd-server_*.deb etcd
    cp etcd/usr/bin/etcd "$assets/.etcd.new"
    mv "$assets/.etcd.new" "$assets/etcd"
}

main() {
    if [ "${1:-}" = needs ]; then
        [ -n "${KUBEBUILDER_ASSETS:-}" ] || [ -x "$assets/kube-apiserver" ] || echo "$kube_build_needs"
        return
    fi
    if [ "${1:-}" = directory ]; then
        echo "${KUBEBUILDER_ASSETS:-$assets}"
        return
    fi
    if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
        local tool
        for tool in kube-apiserver etcd; do
            [ -x "$KUBEBUILDER_ASSETS/$tool" ] || fail "expected $tool in KUBEBUILDER_ASSETS ($KUBEBUILDER_ASSETS), found none"
        done
        echo "$KUBEBUILDER_ASSETS"
        return
    fi
    mkdir -p "$assets"
    if [ ! -x "$assets/kube-apiserver" ]; then install_missing "$kube_build_needs"; fi
    enter_build_directory setup.lock
    [ -x "$assets/etcd" ] || unpack_etcd
    [ -x "$assets/kube-apiserver" ] || build_apiserver
    say "kube-apiserver and etcd are in $assets"
    echo "$assets"
}

main "$@"
