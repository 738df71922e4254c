#!/usr/bin/env bash
# Runs the tests of the engine, whose datagrams and offloads are handled by `unsafe` code, under AddressSanitizer.
#
# The compiler has it behind a flag that asks for a nightly one; RUSTC_BOOTSTRAP lets the toolchain at hand take it, so
# that what is tested is what is shipped. Tests of other programs are left out: those are not built this way.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
runtime=$(rustc --print target-libdir)/librustc-stable_rt.asan.a
if [ ! -e "$runtime" ]; then
    echo "sanitize: this Rust has no sanitizer's runtime ($runtime); the one of rustup has" >&2
    exit 69
fi
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address"
# What is freed is kept for a while to find who still uses it; a test that watches memory must not see that as growth.
export ASAN_OPTIONS=quarantine_size_mb=1

# A sanitizer that sees nothing would prove nothing.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo 'fn main() { let one = vec![1_u8; 4]; std::hint::black_box(unsafe { one.as_ptr().add(4).read() }); }' |
    rustc -Zsanitizer=address -o "$scratch/control" -
if "$scratch/control" 2>"$scratch/said" || ! grep -q heap-buffer-overflow "$scratch/said"; then
    echo "sanitize: a read beyond the end was not noticed; AddressSanitizer does not work here" >&2
    exit 1
fi

cargo test --locked --target "$host" --package tunnel --lib --test namespaces -- \
    --test-threads=2 --skip interop:: --skip bare::
