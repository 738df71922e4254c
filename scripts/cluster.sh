#!/usr/bin/env bash
# Starts a Kubernetes cluster on this machine, with meshd in it: `make cluster`. What it needs is built or unpacked first.
#
#   scripts/cluster.sh ARGUMENTS    those of `cluster create`: --nodes, --family, --proxy-mode, --id
#   scripts/cluster.sh check        only says why this machine can't run one, and ends with code 69 then
#
# START=prove-cluster or START=prove-suite runs that program with the same arguments instead, which starts its own.
#
# meshd's image is the archive IMAGE_ARCHIVE, else the one of `make image`, which is built if there is none.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/apt.sh
. scripts/apt.sh

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
triple=$(rustc -vV | awk '$1 == "host:" { print $2 }')

# Before anything is built that would be of no use.
cargo build --locked --quiet --workspace --bins
"$target/debug/cluster" check
[ "${1:-}" != check ] || exit 0
scripts/kube-assets.sh >/dev/null
scripts/cluster-assets.sh >/dev/null
archive=${IMAGE_ARCHIVE:-}
if [ -z "$archive" ]; then
    found=("$target"/image/meshd-*.tar)
    if [ ! -e "${found[0]}" ]; then
        say "building meshd's image, once (make image builds it again)"
        scripts/image.sh
        found=("$target"/image/meshd-*.tar)
    fi
    archive=${found[0]}
fi
say "meshd's image: $archive, of $(date -r "$archive" '+%F %T')"
# Static, since its image has nothing else in it.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --quiet --release --target "$triple" \
    --target-dir "$target/static" --package e2e-pod
start=(cluster create)
[ -z "${START:-}" ] || start=("$START")
exec "$target/debug/${start[0]}" "${start[@]:1}" --image "$archive" --pod "$target/static/$triple/release/e2e-pod" "$@"
