#!/usr/bin/env bash
# Provides what a virtual machine with WireGuard in the kernel boots from (vmlinuz, lib/modules/VERSION and initramfs), and
# prints its directory as the only line on stdout.
#
# Kernel and busybox are unpacked from Debian's packages and not installed, so the machine's own boot is not affected. All
# of it is kept in ${XDG_CACHE_HOME:-$HOME/.cache}/meshd. Only QEMU, kmod and the commands below are installed if missing.
#
#   scripts/kernel-vm/assets.sh needs    only prints what it needs, as lines "command package"
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# shellcheck source=scripts/apt.sh
. "$here/../apt.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshd
needs="
qemu-system-x86_64  qemu-system-x86
modprobe            kmod
xz                  xz-utils
flock               util-linux
ip                  iproute2
nft                 nftables
wg                  wireguard-tools
"
# The newest that the suite has. The cloud flavour lacks 9p.
kernels="linux-image-6.12-amd64 linux-image-amd64"
# Modules needed to mount the host's files; all others are loaded from there.
early="virtio_pci 9pnet_virtio 9p overlay"

# The package with the kernel itself, on which the metapackages above depend.
kernel_package() {
    local meta found
    for meta in $kernels; do
        found=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
        [ -z "$found" ] || { echo "$found"; return; }
    done
    return 1
}

# $1: the directory of the kernel's files. Writes the initramfs into it.
pack_initramfs() {
    local root=$PWD/initramfs version line module name
    version=$(basename "$1"/lib/modules/*)
    mkdir -p "$root/bin" "$root/modules"
    cp busybox/bin/busybox "$root/bin/"
    cp "$here/init.sh" "$root/init"
    chmod 755 "$root/init"
    # shellcheck disable=SC2086 # several modules
    modprobe -d "$1" -S "$version" --all --show-depends $early | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >order
    while read -r module; do
        name=$(basename "${module%.ko*}").ko
        case $module in
            *.xz) xz -dc "$module" >"$root/modules/$name" ;;
            *) cp "$module" "$root/modules/$name" ;;
        esac
        echo "$name" >>"$root/modules/order"
    done <order
    (cd "$root" && find . -print0 | busybox_here cpio -0 -o -H newc 2>/dev/null) | gzip -1 >"$1/initramfs"
}

busybox_here() { "$work/busybox/bin/busybox" "$@"; }

build() {
    local package=$1 assets=$2 version
    say "unpacking $package, once"
    download "$package"
    download busybox-static
    dpkg-deb -x busybox-static_*.deb busybox
    mkdir new
    # Without drivers for hardware, which are most of the package and unused in a virtual machine.
    dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x -C new --wildcards './boot/vmlinuz-*' './lib/modules' \
        --exclude './lib/modules/*/kernel/drivers/[!nv]*' --exclude './lib/modules/*/kernel/drivers/n[!e]*' \
        --exclude './lib/modules/*/kernel/drivers/net/ethernet' --exclude './lib/modules/*/kernel/drivers/net/wireless' \
        --exclude './lib/modules/*/kernel/sound'
    mv new/boot/vmlinuz-* new/vmlinuz
    rmdir new/boot
    version=$(basename new/lib/modules/*)
    depmod -b new "$version"
    pack_initramfs "$PWD/new"
    # Renamed into place last, so that the cache never has an incomplete directory.
    mv new "$assets"
}

main() {
    [ "${1:-}" != needs ] || { echo "$needs"; return; }
    install_missing "$needs" >&2
    local package assets
    package=$(kernel_package) || { apt_with_retries update; package=$(kernel_package); } ||
        fail "no kernel among the packages: $kernels"
    # The digest covers the files that determine the content of the initramfs.
    assets=$cache/kernel-${package#linux-image-}-$(cat "$here/init.sh" "$here/assets.sh" | sha256sum | cut -c 1-8)
    mkdir -p "$cache"
    exec 9>"$cache/kernel.lock"
    flock -n 9 || { say "waiting for another set-up"; flock 9; }
    if [ ! -e "$assets/initramfs" ]; then
        work=$(mktemp -d "$cache/kernel.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        cd "$work"
        build "$package" "$assets"
    fi
    echo "$assets"
}

main "$@"
