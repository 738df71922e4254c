#!/usr/bin/env bash
# Provides kube-apiserver and etcd for the tests, and prints their directory as the only line on stdout.
#
#   scripts/kube-assets.sh needs        only prints what the build needs, if anything, as lines "command package"
#   scripts/kube-assets.sh directory    only prints the directory, whether the programs are in it yet or not
#
# In this order: KUBEBUILDER_ASSETS (which must contain both); the cache; else etcd is unpacked from its Debian package
# (not installed, since that would start a service on the default port), and kube-apiserver is built from Debian's source
# package `kubernetes`. The build takes 4 to 8 minutes on two cores, and 3 GB in a temporary directory of the cache. The
# machine's apt sources and lists are not changed: the deb-src line is in a private directory.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/apt.sh"

version=1.20.2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshd
# The number after the version is increased when the build changes, so that an old one is not used. The lab has the name
# too, in tests/src/kube/assets.rs.
assets=$cache/kube-$version-2
build_needs="
flock        util-linux
go           golang-go
dpkg-source  dpkg-dev
make         make
rsync        rsync
jq           jq
"

# A deb-src line for the main suite of this Debian, from the archive that apt is configured with.
deb_src_line() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=
    [ -e $keyring ] && options="[signed-by=$keyring] "
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # these are apt's placeholders
    apt-get indextargets --format '$(CODENAME) $(ORIGIN) $(COMPONENT) $(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v codename="$codename" -v options="$options" \
            '$1 == codename && $2 == "Debian" && $3 == "main" { print "deb-src " options $4, $5, $3; exit }'
}

# Unpacks the newest source package `kubernetes` of this suite into ./source.
unpack_source() {
    local line
    line=$(deb_src_line)
    [ -n "$line" ] || fail "no Debian main archive in the apt configuration; set KUBEBUILDER_ASSETS to a directory with kube-apiserver and etcd"
    mkdir -p apt/lists/partial apt/cache/archives/partial
    echo "$line" >apt/sources.list
    local options=(
        -o Dir::Etc::SourceList="$PWD/apt/sources.list" -o Dir::Etc::SourceParts=-
        -o Dir::State::Lists="$PWD/apt/lists" -o Dir::Cache="$PWD/apt/cache" -o APT::Sandbox::User="$(id -un)"
    )
    say "reading the list of source packages"
    apt-get -qq "${options[@]}" update >&2
    local offered
    offered=$(apt-cache "${options[@]}" showsrc --only-source kubernetes | awk '$1 == "Version:" { print $2; exit }')
    case $offered in
        "$version"* | *+really"$version"*) ;;
        *) fail "this suite has kubernetes '$offered', the tests need $version; set KUBEBUILDER_ASSETS to a directory with kube-apiserver and etcd" ;;
    esac
    say "downloading the source of kubernetes $offered"
    apt-get -qq "${options[@]}" --download-only source kubernetes >&2
    dpkg-source --no-check -x kubernetes_*.dsc source >/dev/null
}

# Replaces the vendored reflect2, which dereferences a null pointer with Go 1.18 and later at the first map in a request
# and crashes the server. Debian packages the release that fixes it.
replace_reflect2() {
    say "replacing the vendored reflect2 with the release that works with this Go"
    download golang-github-modern-go-reflect2-dev
    dpkg-deb -x golang-github-modern-go-reflect2-dev_*.deb reflect2
    rm -rf "$1"
    cp -rL reflect2/usr/share/gocode/src/github.com/modern-go/reflect2 "$1"
}

# Compiles in the source tree $1. Of what the main makefile would generate first, the source package lacks the OpenAPI code
# alone; the second makefile generates it, with the settings that the main one passes.
# shellcheck disable=SC2016 # the inner shell's own
compile='
    cd "$1"
    make -f Makefile.generated_files CALLED_FROM_MAIN_MAKEFILE=1 PRJ_SRC_PATH=k8s.io/kubernetes META_DIR=.make \
        OUT_DIR=_output BIN_DIR=_output/bin GENERATED_FILE_PREFIX=zz_generated. gen_openapi
    hack/make-rules/build.sh cmd/kube-apiserver
'

build_apiserver() {
    say "building kube-apiserver $version in $PWD, once; this takes some minutes"
    unpack_source
    mkdir -p go/src/k8s.io
    mv source go/src/k8s.io/kubernetes
    replace_reflect2 go/src/k8s.io/kubernetes/vendor/github.com/modern-go/reflect2
    env -u GOFLAGS GOPATH="$PWD/go" GOCACHE="$PWD/gocache" GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0 \
        GOGC=off GOMEMLIMIT=1GiB KUBE_GIT_VERSION="v$version" KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian \
        KUBE_VERBOSE=0 nice bash -ec "$compile" build "$PWD/go/src/k8s.io/kubernetes" >build.log 2>&1 ||
        { tail -n 30 build.log >&2; fail "the build of kube-apiserver failed; its last lines are above"; }
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
        [ -n "${KUBEBUILDER_ASSETS:-}" ] || [ -x "$assets/kube-apiserver" ] || echo "$build_needs"
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
    if [ ! -x "$assets/kube-apiserver" ]; then install_missing "$build_needs"; fi
    # When two set-ups run at once, the second waits and then uses what the first one built.
    exec 9>"$cache/setup.lock"
    flock -n 9 || { say "waiting for another set-up"; flock 9; }
    work=$(mktemp -d "$cache/build.XXXXXX")
    # Go writes its module and build caches read-only in places.
    trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
    cd "$work"
    [ -x "$assets/etcd" ] || unpack_etcd
    [ -x "$assets/kube-apiserver" ] || build_apiserver
    say "kube-apiserver and etcd are in $assets"
    echo "$assets"
}

main "$@"
