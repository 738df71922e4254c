#!/usr/bin/env bash
# Runs each fuzz target, or those that are named, for FUZZ_SECONDS (20), starting with its committed corpus. New inputs are
# written to target/fuzz, not to the checkout; a failing input is kept there too, and the run fails. The time that each
# target has had so far is in target/fuzz/time.tsv, and printed at the end.
#
# libFuzzer and the sanitizer are behind flags for nightly compilers; RUSTC_BOOTSTRAP enables them in the pinned one, so that
# the tested code is compiled like the released code. The committed corpora also run as ordinary tests, which need neither.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { printf 'fuzz: %s\n' "$*" >&2; exit 69; }
cargo fuzz --version >/dev/null 2>&1 || fail "cargo-fuzz is missing: cargo install --locked cargo-fuzz"
command -v c++ >/dev/null || fail "a C++ compiler is missing: apt-get install g++"
# Otherwise other versions of the dependencies would be fuzzed than are released.
cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null ||
    fail "fuzz/Cargo.lock is not up to date: cp Cargo.lock fuzz/, then cargo metadata --manifest-path fuzz/Cargo.toml"
export RUSTC_BOOTSTRAP=1
sanitizer=address
if [ ! -e "$(rustc --print target-libdir)/librustc-stable_rt.asan.a" ]; then
    echo "fuzz: this Rust has no AddressSanitizer: only panics are found" >&2
    sanitizer=none
fi

all=(fuzz/fuzz_targets/*.rs)
names=("${@:-${all[@]}}")
found=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
mkdir -p "$found"
log=$found/time.tsv
seconds=$(mktemp)
trap 'rm -f "$seconds"' EXIT
TIMEFORMAT=%U
for source in "${names[@]}"; do
    name=$(basename "$source" .rs)
    mkdir -p "$found/$name" "$found/artifacts/$name"
    printf '==> %s\n' "$name"
    cargo fuzz build --sanitizer "$sanitizer" "$name"
    # New inputs go to the first directory; the corpus in the checkout is only read.
    { time cargo fuzz run --sanitizer "$sanitizer" "$name" "$found/$name" "fuzz/corpus/$name" -- \
        -max_total_time="${FUZZ_SECONDS:-20}" -artifact_prefix="$found/artifacts/$name/" 2>&3; } 3>&2 2>"$seconds"
    printf '%s\t%s\t%s\n' "$name" "$(git rev-parse --short HEAD)" "$(cat "$seconds")" >>"$log"
done
echo "CPU seconds of each target so far ($log):"
awk -F '\t' '{ sum[$1] += $3 } END { for (name in sum) printf "  %-14s %8.0f\n", name, sum[name] }' "$log" | sort
