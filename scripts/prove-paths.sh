#!/usr/bin/env bash
# Runs prove-paths: seven nodes on five networks behind NAT. With the kernel's backend, or a mixture of both, it runs in a
# virtual machine, which is emulated: there only whether pairs come up and what is lost counts, not how long it takes.
#
#   BACKEND=userspace|kernel|mixed PQ=prefer|require QUICK=1 CARRIER=1 HELP=1 ONLY=move,relay scripts/prove-paths.sh
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# Enough on slow, shared cores, emulated in software.
seconds=3600

in_virtual_machine() {
    local job code=0
    job=$(mktemp)
    printf 'export BACKEND=%q PQ=%q QUICK=1 CARRIER=%q HELP=%q ONLY=%q\nexec %q\n' \
        "$BACKEND" "${PQ:-}" "${CARRIER:-}" "${HELP:-}" "${ONLY:-}" "$target/debug/prove-paths" >"$job"
    scripts/kernel-vm/boot.sh "$job" $seconds || code=$?
    rm -f "$job"
    return $code
}

cargo build --locked --workspace --bins
case ${BACKEND:=userspace} in
    userspace) "$target/debug/prove-paths" ;;
    kernel | mixed) in_virtual_machine ;;
    *) echo "prove-paths: expected BACKEND=userspace, kernel or mixed, not $BACKEND" >&2; exit 64 ;;
esac
