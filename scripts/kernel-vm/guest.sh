#!/usr/bin/env bash
# PID 1 of the virtual machine: sets the system up, runs the job, and turns the machine off.
#
# The job is a bash script in the directory that the host shares for writing. Its output goes to the second serial line,
# where the last line has its exit code.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
# Not over /tmp: the checkout or its target may be below it, and the root is writable anyway, in memory.
for mounted in /dev/shm /run; do mount -t tmpfs -o mode=1777 tmpfs "$mounted"; done
mkdir -p /run/job /run/lock
mount -t 9p -o trans=virtio,version=9p2000.L job /run/job
# shellcheck source=/dev/null
. /run/job/settings

mkdir -p "/lib/modules/$(uname -r)"
mount --bind "$modules" "/lib/modules/$(uname -r)"
ip link set lo up
modprobe -a wireguard tun bridge veth nf_tables
# When the first socket of WireGuard is opened, and when the last one is closed, the kernel changes an instruction that each packet
# takes (sk_set_memalloc in net/core/sock.c, a static key in __alloc_skb), and emulated CPUs may see half of that and panic. So
# one stays open, where no test sees it.
unshare --net sh -c 'ip link add held type wireguard && ip link set held up && exec sleep infinity' &
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
echo "kernel: $(uname -r), up after $(cut -d ' ' -f 1 /proc/uptime) s"
cd "$directory" || exit
bash /run/job/run
echo "job ended with code $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
