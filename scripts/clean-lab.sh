#!/usr/bin/env bash
# Ends demos of this checkout that KEEP=1 left running, and removes the logs of all labs.
#
# There is nothing else to clean: a lab's namespaces, links and daemons belong to a process that the kernel ends together
# with the demo or test that created them, however that ends.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

for process in /proc/[0-9]*; do
    # The exact path of the program: other checkouts' demos, and other programs of that name, are left alone.
    program=$(readlink "$process/exe" 2>/dev/null) || continue
    case ${program% (deleted)} in
        "$target"/debug/demo | "$target"/release/demo)
            printf '==> ending %s (%s)\n' "${process#/proc/}" "$program"
            kill "${process#/proc/}" 2>/dev/null || true
            ;;
    esac
done
rm -rf "$target/lab"
