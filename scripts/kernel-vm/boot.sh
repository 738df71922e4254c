#!/usr/bin/env bash
# Runs a bash script in a virtual machine whose kernel has WireGuard, and passes on its output and exit code.
#
#   scripts/kernel-vm/boot.sh SCRIPT [SECONDS]
#
# The virtual machine sees all files of this one read-only, except /run/job, a temporary directory. It has no network
# connection. After SECONDS (600) it is stopped, which is a failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/apt.sh
. "$here/../apt.sh"

[ $# -ge 1 ] || { echo "usage: ${0##*/} SCRIPT [SECONDS]" >&2; exit 64; }
seconds=${2:-600}
assets=$("$here/assets.sh")
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
cp "$1" "$job/run"
printf 'directory=%q\nmodules=%q\n' "$PWD" "$(echo "$assets"/lib/modules/*)" >"$job/settings"

# Software emulation is slow but works everywhere; MESHD_VM_ACCEL=kvm is faster where it is available.
machine=(
    -accel "${MESHD_VM_ACCEL:-tcg,thread=multi}" -cpu max -smp 2 -m "${MESHD_VM_MEMORY:-2048}"
    -nodefaults -display none -no-reboot -nic none -device virtio-rng-pci
    -kernel "$assets/vmlinuz" -initrd "$assets/initramfs"
    -append "console=ttyS0 quiet panic=1 random.trust_cpu=on mitigations=off guest=$here/guest.sh"
    -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap
    -device virtio-9p-pci,fsdev=host,mount_tag=host
    -fsdev local,id=job,path="$job",security_model=none
    -device virtio-9p-pci,fsdev=job,mount_tag=job
    -serial "file:$job/console" -serial stdio
)
# Emulated CPUs that run in parallel now and then see half of an instruction that the kernel changes, and it panics ("Oops:
# int3"): while it boots, and, seldom, when a static key of its is switched later. That says nothing about the job, so the
# machine is booted again and the job begins anew. Whatever else happens once the job has begun counts.
ended=0
for attempt in 1 2 3; do
    ended=0
    timeout --kill-after=5 "$seconds" qemu-system-x86_64 "${machine[@]}" </dev/null 2>"$job/errors" |
        tee "$job/output" || ended=$?
    if grep -q '^job ended with code ' "$job/output"; then break; fi
    if grep -aq 'Oops: int3' "$job/console"; then
        why="the emulated kernel saw half of a changed instruction"
    elif ! grep -q '^kernel: ' "$job/output" && [ $ended = 0 ]; then
        why="it ended before the job began"
    else
        break
    fi
    grep -aE 'Oops|panic' "$job/console" >&2 || true
    echo "${0##*/}: attempt $attempt of 3 says nothing about the job: $why" >&2
done
if ! code=$(sed -n 's/^job ended with code \([0-9]*\)$/\1/p' "$job/output") || [ -z "$code" ]; then
    grep -v '^$' "$job/console" "$job/errors" | tail -n 40 >&2
    fail "the virtual machine did not finish the job, for which it has $seconds s (exit code of QEMU: $ended, 124 if time was up); its last output is above"
fi
# Warnings of the kernel are shown even if the job succeeded.
sed 's/^/console: /' "$job/console" | tr -d '\r' | grep -aE 'BUG|WARNING|Oops|panic|Call Trace' >&2 || true
exit "$code"
