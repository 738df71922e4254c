#!/usr/bin/env bash
# Makes what a virtual machine with kernel WireGuard boots from, and prints the folder as its only line on stdout:
# vmlinuz, lib/modules/VERSION and initramfs.
#
# Kernel and busybox are unpacked from Debian's packages, not installed: this machine goes on booting what it boots. All
# of it stays in ${XDG_CACHE_HOME:-$HOME/.cache}/meshd; only QEMU and kmod are installed, if they are missing.
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
# The newest that the suite has. The flavour for clouds lacks 9p.
kernels="linux-image-6.12-amd64 linux-image-amd64"
# What has to be loaded before the machine's files can be seen; the rest is loaded from there.
early="virtio_pci 9pnet_virtio 9p overlay"

# The package with the files of a kernel, which the one named here only depends on.
kernel_package() {
    local meta found
    for meta in $kernels; do
        found=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
        [ -z "$found" ] || { echo "$found"; return; }
    done
    return 1
}

# $1: the folder of the kernel's files. Writes its initramfs.
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
    # Drivers of hardware are most of it, and a virtual machine has none.
    dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x -C new --wildcards './boot/vmlinuz-*' './lib/modules' \
        --exclude './lib/modules/*/kernel/drivers/[!nv]*' --exclude './lib/modules/*/kernel/drivers/n[!e]*' \
        --exclude './lib/modules/*/kernel/drivers/net/ethernet' --exclude './lib/modules/*/kernel/drivers/net/wireless' \
        --exclude './lib/modules/*/kernel/sound'
    mv new/boot/vmlinuz-* new/vmlinuz
    rmdir new/boot
    version=$(basename new/lib/modules/*)
    depmod -b new "$version"
    pack_initramfs "$PWD/new"
    # Renamed into place last: whoever looks at the cache sees all of it or nothing.
    mv new "$assets"
}

main() {
    [ "${1:-}" != needs ] || { echo "$needs"; return; }
    install_missing "$needs" >&2
    local package assets
    package=$(kernel_package) || { patient_apt update; package=$(kernel_package); } ||
        fail "no kernel among the packages: $kernels"
    # The digest is of what the initramfs is made of here.
    assets=$cache/kernel-${package#linux-image-}-$(cat "$here/init.sh" "$here/assets.sh" | sha256sum | cut -c 1-8)
    mkdir -p "$cache"
    exec 9>"$cache/kernel.lock"
    flock -n 9 || { say "another set-up is at work, waiting for it"; flock 9; }
    if [ ! -e "$assets/initramfs" ]; then
        work=$(mktemp -d "$cache/kernel.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        cd "$work"
        build "$package" "$assets"
    fi
    echo "$assets"
}

main "$@"
