#!/usr/bin/env bash
# Runs the engine's tests under AddressSanitizer, since `unsafe` code handles its datagrams and offloads, and the fuzz corpora
# of everything else that reads bytes which others wrote, whose dependencies have `unsafe` code as well.
#
# The sanitizer is behind a flag for nightly compilers; RUSTC_BOOTSTRAP enables it in the pinned one, so that the tested
# code is compiled like the released code. Tests against other programs are left out, since those are not instrumented.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
runtime=$(rustc --print target-libdir)/librustc-stable_rt.asan.a
if [ ! -e "$runtime" ]; then
    echo "sanitize: this Rust has no sanitizer runtime ($runtime); install Rust with rustup" >&2
    exit 69
fi
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
# Build scripts of dependencies are run again where that flag is another one, and all that depends on them is built again: in
# a directory of its own the next ordinary build finds everything as it was.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/sanitize
export CARGO_TARGET_DIR
# The sanitizer keeps freed memory for a while to detect its use; a test that measures memory must not count that as growth.
export ASAN_OPTIONS=quarantine_size_mb=1

# Positive control: the sanitizer must detect an error that is there.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo 'fn main() { let one = vec![1_u8; 4]; std::hint::black_box(unsafe { one.as_ptr().add(4).read() }); }' |
    rustc -Zsanitizer=address -o "$scratch/control" -
if "$scratch/control" 2>"$scratch/output" || ! grep -q heap-buffer-overflow "$scratch/output"; then
    echo "sanitize: a read beyond the end was not detected; AddressSanitizer does not work here" >&2
    exit 1
fi

# This one measures the memory of its process, so it gets one of its own.
alone=hostile::a_million_bad_datagrams_neither_stop_nor_swell_it
cargo test --locked --target "$host" --package tunnel --lib --test namespaces -- \
    --test-threads=2 --skip interop:: --skip bare:: --skip bulk::with_wireguard_go --skip bulk::with_gotatun --skip $alone
cargo test --locked --target "$host" --package tunnel --test namespaces -- --exact $alone
# The other parsers are safe code, and building all they depend on takes minutes: they are left out of `make test`.
[ "${1:-}" = engine ] ||
    cargo test --locked --target "$host" --lib --package keyring --package plan --package relay --package cni --package meshd -- corpus
