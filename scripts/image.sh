#!/usr/bin/env bash
# Builds the container image, which contains two static binaries and nothing else. Needs no registry, no container
# daemon and no root.
#
#   scripts/image.sh                        build the binaries, then the image
#   scripts/image.sh --build-only           build the binaries
#   scripts/image.sh --binaries DIRECTORY   take the binaries meshd and mesh-cni from there
#   scripts/image.sh --name                 print the name that the image gets, and build nothing
#
# The result is an OCI archive, target/image/meshd-VERSION.tar. The image's name in it is IMAGE, by default the name in
# deploy/base/daemonset.yaml. It must be fully qualified: `ctr images import` keeps it as it is, and a kubelet looks only
# for fully qualified names.
#
# The image is assembled twice and both digests must be equal; then it is unpacked and both binaries are run in it.
# Timestamps in it are SOURCE_DATE_EPOCH, or else the time of the commit.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/apt.sh
. scripts/apt.sh

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/image
version=$(awk -F'"' '/^version = / { print $2; exit }' Cargo.toml)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
archive=$out/meshd-$version.tar
image=${IMAGE:-$(awk '$1 == "image:" { print $2 }' deploy/base/daemonset.yaml)}

# A name without a registry means docker.io/library/ to a kubelet, and one without a tag means :latest.
fully_qualified() {
    local registry=${image%%/*}
    [[ $image == */* && ($registry == localhost || $registry == *[.:]*) && ${image##*/} == *:* ]] ||
        fail "expected an image name with registry and tag, as in localhost/meshd:$version, found: $image"
}

# Static binaries, since the image has no dynamic loader and no libraries. An explicit target, so that build scripts and
# macros are not linked statically as well. No path of the build machine remains in the binaries.
build_binaries() {
    local triple
    triple=$(rustc -vV | awk '$1 == "host:" { print $2 }')
    local flags="-C target-feature=+crt-static"
    flags+=" --remap-path-prefix=$PWD=/source --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    say "building static binaries"
    RUSTFLAGS=$flags cargo build --locked --release --target "$triple" --target-dir "$target/static" \
        --package meshd --package cni --bins
    binaries=$target/static/$triple/release
}

# buildah with its own storage, which needs neither a daemon nor any configuration of the machine.
storage() {
    buildah --root "$scratch/storage" --runroot "$scratch/run" --storage-driver vfs "$@"
}

# Writes the image into an archive at $1.
assemble() {
    local container
    container=$(storage from scratch)
    # The daemon installs the plugin from the directory of its own binary.
    storage copy --quiet --chown 0:0 --chmod 0755 "$container" "$binaries/meshd" "$binaries/mesh-cni" / >/dev/null
    storage config --entrypoint '["/meshd"]' --cmd '' --user 0:0 --workingdir / \
        --label org.opencontainers.image.title=meshd \
        --label org.opencontainers.image.description="Encrypted pod networking for Kubernetes" \
        --label org.opencontainers.image.licenses=Apache-2.0 \
        --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.revision="$revision" \
        "$container"
    storage commit --quiet --format oci --timestamp "$epoch" "$container" "oci-archive:$1:$image" >/dev/null
    storage rm "$container" >/dev/null
}

# The digest of the image's manifest, which covers configuration and layers.
digest() {
    tar -xOf "$1" index.json | grep -o 'sha256:[0-9a-f]*' | head -n 1
}

# The name under which `ctr images import` and `kind load` store the image.
name_in_archive() {
    tar -xOf "$1" index.json | sed -n 's/.*"org\.opencontainers\.image\.ref\.name": *"\([^"]*\)".*/\1/p'
}

# Checks name and contents of the archive: exactly the two binaries, and they run with nothing else around them.
check() {
    local container root found
    found=$(name_in_archive "$archive")
    [ "$found" = "$image" ] || fail "expected the name $image in the archive, found: $found"
    container=$(storage from "oci-archive:$archive")
    root=$(storage mount "$container")
    found=$(cd "$root" && find . -mindepth 1 -printf '%P %m %U:%G\n' | sort)
    [ "$found" = $'mesh-cni 755 0:0\nmeshd 755 0:0' ] || fail "expected two binaries in the image, found: $found"
    found=$(chroot "$root" /meshd --version)
    [ "$found" = "meshd $version" ] || fail "expected meshd $version to run in the image, found: $found"
    found=$(CNI_COMMAND=VERSION chroot "$root" /mesh-cni <<<'{"cniVersion": "1.1.0"}')
    grep -q supportedVersions <<<"$found" || fail "expected mesh-cni to answer in the image, found: $found"
    storage umount "$container" >/dev/null
}

assemble_and_check() {
    scratch=$(mktemp -d)
    # Files in the storage may have owners whose files only buildah can remove.
    trap 'storage rm --all >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT
    mkdir -p "$out"
    # Those of other versions too: `make kind-load` loads whatever is there.
    rm -f "$out"/meshd-*.tar
    assemble "$archive"
    assemble "$scratch/again.tar"
    [ "$(digest "$archive")" = "$(digest "$scratch/again.tar")" ] || fail "the same binaries gave two different images"
    check
    say "$archive: $image, $(digest "$archive"), $(stat -c %s "$archive") bytes"
}

usage() {
    echo "usage: ${0##*/} [--build-only | --binaries DIRECTORY | --name]" >&2
    exit 64
}

fully_qualified
case $#:${1:-} in
    0:) build_binaries ;;
    1:--build-only) build_binaries; exit ;;
    1:--name) echo "$image"; exit ;;
    2:--binaries) binaries=$(realpath "$2") ;;
    *) usage ;;
esac
if [ -z "${_CONTAINERS_USERNS_CONFIGURED:-}" ]; then
    install_missing "buildah buildah"
    # Without root, run again in a user namespace set up by buildah, where mount and chroot are allowed.
    if [ "$(id -u)" != 0 ]; then exec buildah unshare "$0" --binaries "$binaries"; fi
fi
assemble_and_check
