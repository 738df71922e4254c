#!/usr/bin/env bash
# Builds the container image: nothing in it but two static programs. Needs no registry, no container daemon, no root.
#
#   scripts/image.sh                     build the programs, then the image
#   scripts/image.sh --build-only        build the programs
#   scripts/image.sh --binaries FOLDER   take the programs meshd and mesh-cni from there
#
# The image is an OCI archive, target/image/meshd-VERSION.tar. It is assembled twice, and both have to have the same
# digest; then it is unpacked and both programs are run in it. Times in it are SOURCE_DATE_EPOCH, else the commit's.
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

# The programs as static ones: the image has no dynamic loader and no libraries. With a target of its own, and a folder
# of its own, so that build scripts and macros are still built as usual. No path of this machine stays in them.
build_programs() {
    local triple
    triple=$(rustc -vV | awk '$1 == "host:" { print $2 }')
    local flags="-C target-feature=+crt-static"
    flags+=" --remap-path-prefix=$PWD=/source --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    say "building static programs"
    RUSTFLAGS=$flags cargo build --locked --release --target "$triple" --target-dir "$target/static" \
        --package meshd --package cni --bins
    binaries=$target/static/$triple/release
}

# buildah with storage of its own, which needs neither a daemon nor anything prepared on the machine.
storage() {
    buildah --root "$scratch/storage" --runroot "$scratch/run" --storage-driver vfs "$@"
}

# Puts the image into an archive at $1.
assemble() {
    local container
    container=$(storage from scratch)
    # The daemon installs the plugin that stands beside it.
    storage copy --quiet --chown 0:0 --chmod 0755 "$container" "$binaries/meshd" "$binaries/mesh-cni" / >/dev/null
    storage config --entrypoint '["/meshd"]' --cmd '' --user 0:0 --workingdir / \
        --label org.opencontainers.image.title=meshd \
        --label org.opencontainers.image.description="Encrypted pod networking for Kubernetes" \
        --label org.opencontainers.image.licenses=Apache-2.0 \
        --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.revision="$revision" \
        "$container"
    storage commit --quiet --format oci --timestamp "$epoch" "$container" "oci-archive:$1:meshd:$version" >/dev/null
    storage rm "$container" >/dev/null
}

# The digest of the image's manifest, which covers configuration and layers.
digest() {
    tar -xOf "$1" index.json | grep -o 'sha256:[0-9a-f]*' | head -n 1
}

# Unpacks the archive and looks at what is in it: exactly the programs, and they run with nothing else around them.
check() {
    local container root found
    container=$(storage from "oci-archive:$archive")
    root=$(storage mount "$container")
    found=$(cd "$root" && find . -mindepth 1 -printf '%P %m %U:%G\n' | sort)
    [ "$found" = $'mesh-cni 755 0:0\nmeshd 755 0:0' ] || fail "expected two programs in the image, found: $found"
    found=$(chroot "$root" /meshd --version)
    [ "$found" = "meshd $version" ] || fail "expected meshd $version to run in the image, found: $found"
    found=$(CNI_COMMAND=VERSION chroot "$root" /mesh-cni <<<'{"cniVersion": "1.1.0"}')
    grep -q supportedVersions <<<"$found" || fail "expected mesh-cni to answer in the image, found: $found"
    storage umount "$container" >/dev/null
}

assemble_and_check() {
    scratch=$(mktemp -d)
    # The storage's files may belong to ids that only buildah can remove.
    trap 'storage rm --all >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT
    mkdir -p "$out"
    rm -f "$archive"
    assemble "$archive"
    assemble "$scratch/again.tar"
    [ "$(digest "$archive")" = "$(digest "$scratch/again.tar")" ] || fail "the same programs gave two different images"
    check
    say "$archive: meshd:$version, $(digest "$archive"), $(stat -c %s "$archive") bytes"
}

case $# in
    0) build_programs ;;
    1) [ "$1" = --build-only ] || fail "usage: image.sh [--build-only | --binaries FOLDER]"; build_programs; exit ;;
    2) [ "$1" = --binaries ] || fail "usage: image.sh [--build-only | --binaries FOLDER]"; binaries=$(realpath "$2") ;;
    *) fail "usage: image.sh [--build-only | --binaries FOLDER]" ;;
esac
if [ -z "${_CONTAINERS_USERNS_CONFIGURED:-}" ]; then
    install_missing "buildah buildah"
    # Without root: once more, in a user namespace that buildah sets up, where mounting and chroot are allowed.
    if [ "$(id -u)" != 0 ]; then exec buildah unshare "$0" --binaries "$binaries"; fi
fi
assemble_and_check
