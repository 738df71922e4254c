#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (20), starting with its committed corpus. New inputs are written to target/fuzz,
# not to the checkout; a failing input is kept there too, and the run fails.
#
# The committed corpora also run as ordinary tests, which need neither cargo-fuzz nor nightly.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { printf 'fuzz: %s\n' "$*" >&2; exit 1; }
cargo fuzz --version >/dev/null 2>&1 || fail "cargo-fuzz is missing: cargo install cargo-fuzz"
cargo +nightly --version >/dev/null 2>&1 || fail "the nightly toolchain is missing: rustup toolchain install nightly"
command -v c++ >/dev/null || fail "a C++ compiler is missing: apt-get install g++"

found=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
for source in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    mkdir -p "$found/$name" "$found/artifacts/$name"
    printf '==> %s\n' "$name"
    # New inputs go to the first directory; the corpus in the checkout is only read.
    cargo +nightly fuzz run "$name" "$found/$name" "fuzz/corpus/$name" -- \
        -max_total_time="${FUZZ_SECONDS:-20}" -artifact_prefix="$found/artifacts/$name/"
done
