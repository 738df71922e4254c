#!/bin/busybox sh
# The init of the initramfs: mounts the host's files read-only with a writable layer in memory on top, and executes the
# guest script that the kernel command line names.
set -e
bb=/bin/busybox

die() {
    echo "init: $*" >/dev/console
    echo o >/proc/sysrq-trigger
    $bb sleep 60
}

$bb mkdir -p /proc /sys /dev /host /layer /new
$bb mount -t proc proc /proc
$bb mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $bb insmod "/modules/$module" || die "could not load $module"
done </modules/order
# The host's files do not change meanwhile, so they may be cached.
$bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host || die "could not mount the files of the host"
$bb mount -t tmpfs -o mode=755 layer /layer
$bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new || die "could not mount the overlay"
for word in $($bb cat /proc/cmdline); do
    case $word in guest=*) guest=${word#guest=} ;; esac
done
$bb umount /dev /proc
exec $bb switch_root /new "$guest"
