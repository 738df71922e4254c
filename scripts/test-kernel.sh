#!/usr/bin/env bash
# Runs the tests that need WireGuard in the kernel, which are marked as ignored, in a virtual machine whose kernel has it.
#
#   scripts/test-kernel.sh [FILTER]   those whose name contains FILTER
#
# Each test prints its result in the same form as any other test. A test without a result has failed, and the whole run
# fails if the virtual machine does not finish in time. The output also goes to target/test/kernel.log, for the report.
set -euo pipefail

# The physical directory, because cargo prints that one.
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/test
filter=${1:-}
# All tests take half of this when emulated in software on slow, shared cores.
seconds=1200

# Prints the test programs with tests for the virtual machine, as lines "SOURCE PROGRAM"; fails if there are none. With the
# whole workspace selected, what `make test` has built already is used; other packages have tests of the same names.
programs() {
    cargo test --locked --quiet --workspace --test device --test kernel --no-run --message-format json |
        grep -F "\"src_path\":\"$PWD/tests/" | grep '"kind":\["test"\].*"executable":"' | sed -E 's/.*"src_path":"([^"]*)".*"executable":"([^"]*)".*/\1 \2/'
}

list() { "$1" --ignored --list --format terse ${filter:+"$filter"} | sed -n 's/: test$//p'; }

main() {
    # Together with the tests, as in test.sh: on their own, programs are built with other features of their dependencies.
    cargo build --locked --quiet --workspace --bins --tests
    mkdir -p "$out"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    local source program found code=0
    found=$(programs) || { echo "test-kernel: found no test program device or kernel below $PWD/tests" >&2; exit 1; }
    while read -r source program; do
        list "$program" >>"$scratch/expected"
        printf 'echo "     Running %s (%s)"\n' "${source#"$PWD"/}" "${program#"$PWD"/}"
        printf '%q --ignored --test-threads 1 --color never %q || failed=1\n' "$program" "$filter"
    done <<<"$found" >"$scratch/job"
    # shellcheck disable=SC2016 # the job's own
    echo 'exit ${failed:-0}' >>"$scratch/job"
    [ -s "$scratch/expected" ] || { echo "test-kernel: no test has a name with \"$filter\" in it" >&2; exit 1; }
    scripts/kernel-vm/boot.sh "$scratch/job" $seconds | tee "$out/kernel.log" || code=$?
    verify "$scratch/expected" || code=1
    return $code
}

# Every test of the list has to have passed, by a line of its own. One that has failed before the machine was booted again has
# failed.
verify() {
    local name missing=0
    while read -r name; do
        if grep -qaxF "test $name ... ok" "$out/kernel.log" && ! grep -qaxF "test $name ... FAILED" "$out/kernel.log"; then
            continue
        fi
        missing=$((missing + 1))
        grep -qa "^test $name \.\.\. " "$out/kernel.log" || echo "test $name ... FAILED" | tee -a "$out/kernel.log"
    done <"$1"
    printf 'test-kernel: %d of %d tests passed in the virtual machine\n' \
        $(($(wc -l <"$1") - missing)) "$(wc -l <"$1")" >&2
    [ $missing = 0 ]
}

main
