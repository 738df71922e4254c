#!/bin/busybox sh
# The first program in the virtual machine: makes the host's files its own, read-only and with a layer in memory above
# them for what is written, and goes on with the guest script that the command line names.
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
# Nobody changes the files meanwhile, so what was read may be kept.
$bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host || die "no files of the host"
$bb mount -t tmpfs -o mode=755 layer /layer
$bb mkdir /layer/upper /layer/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new || die "no layer above"
for word in $($bb cat /proc/cmdline); do
    case $word in guest=*) guest=${word#guest=} ;; esac
done
$bb umount /dev /proc
exec $bb switch_root /new "$guest"
