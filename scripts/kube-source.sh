# shellcheck shell=bash
# Sourced after apt.sh: Kubernetes from Debian's source package, unpacked and compiled in the current directory, which has
# to be empty. The machine's apt sources and lists are not changed: the deb-src line is in a private directory.

kube_version=1.20.2
# shellcheck disable=SC2034 # for the scripts that source this one
kube_build_needs="
flock        util-linux
go           golang-go
dpkg-source  dpkg-dev
make         make
rsync        rsync
jq           jq
"

# Goes to an empty directory that is removed at the end, below $cache. When two set-ups with the lock file $1 run at once, the
# second waits and then uses what the first one made.
enter_build_directory() {
    # shellcheck disable=SC2154 # set by the scripts that source this one
    exec 9>"$cache/$1"
    flock -n 9 || { say "waiting for another set-up"; flock 9; }
    work=$(mktemp -d "$cache/build.XXXXXX")
    # Go writes its module and build caches read-only in places.
    trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
    cd "$work"
}

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

# Unpacks the newest source package `kubernetes` of this suite into ./go/src/k8s.io/kubernetes.
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
        "$kube_version"* | *+really"$kube_version"*) ;;
        *) fail "this suite has kubernetes '$offered', the tests need $kube_version; set KUBEBUILDER_ASSETS to a directory with kube-apiserver and etcd" ;;
    esac
    say "downloading the source of kubernetes $offered"
    apt-get -qq "${options[@]}" --download-only source kubernetes >&2
    mkdir -p go/src/k8s.io
    dpkg-source --no-check -x kubernetes_*.dsc go/src/k8s.io/kubernetes >/dev/null
    replace_reflect2 go/src/k8s.io/kubernetes/vendor/github.com/modern-go/reflect2
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

# Runs the script $1 in the unpacked source tree; $2 says what it builds. The programs are then in
# go/src/k8s.io/kubernetes/_output/bin.
compile_kubernetes() {
    env -u GOFLAGS GOPATH="$PWD/go" GOCACHE="$PWD/gocache" GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0 \
        GOGC=off GOMEMLIMIT=1GiB KUBE_GIT_VERSION="v$kube_version" KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian \
        KUBE_VERBOSE=0 nice env -C go/src/k8s.io/kubernetes bash -ec "$1" >build.log 2>&1 ||
        { tail -n 30 build.log >&2; fail "the build of $2 failed; its last lines are above"; }
}
