#!/usr/bin/env bash
# All that `make test` does, on a fresh Debian with Rust: set-up, lints, build, every test.
#
# Stops at the first step that fails. Whatever happens, target/test/report.json says what ran, what passed, what was
# skipped and why. With CI=true a skip is a failure.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/apt.sh
. scripts/apt.sh
# Debian keeps nft, ip and friends in sbin, which is not in an ordinary user's PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
target=${CARGO_TARGET_DIR:-target}
out=$target/test
steps=$out/steps.jsonl

# Runs the rest of the arguments as the step named $1, and notes how it went.
step() {
    local name=$1 begin=$SECONDS ok=true
    shift
    printf '\n==> %s: %s\n' "$name" "$*" >&2
    "$@" || ok=false
    printf '{"name": "%s", "seconds": %d, "ok": %s}\n' "$name" $((SECONDS - begin)) $ok >>"$steps"
    [ $ok = true ] || { printf 'test: the step "%s" failed\n' "$name" >&2; exit 1; }
}

# One line for the report about something that this machine can't run.
not_run() {
    printf '==> not run: %s: %s\n' "$1" "$2" >&2
    printf '{"name": "%s", "why": "%s"}\n' "$1" "$2" >>"$out/not-run.jsonl"
}

scripts_are_sound() {
    local script
    for script in scripts/*.sh scripts/kernel-vm/*.sh .ci/run; do
        bash -n "$script"
    done
    python3 scripts/test-report.py --self-test
    scripts/layering.sh --self-test
}

# nextest runs each test in a process of its own and knows the groups of .config/nextest.toml; where it is not
# installed cargo's own runner does the same tests, with less to say about each.
tests_with_moved_clock() {
    if [ $runner = nextest ]; then
        cargo nextest run --locked --profile clock -p tunnel --features mock-clock --test silence
    else
        cargo test --locked -p tunnel --features mock-clock --test silence 2>&1 | tee "$out/clock.log"
    fi
}

all_tests() {
    if [ $runner = nextest ]; then
        # Its report leaves out tests that are marked as ignored.
        cargo nextest list --locked --workspace --run-ignored only --message-format json >"$out/ignored.json"
        cargo nextest run --locked --workspace 2>&1 | tee "$out/tests.log"
    else
        # Two at a time: tests that start whole nodes need the cores to themselves.
        cargo test --locked --workspace --lib --bins --tests --no-fail-fast -- --test-threads=2 2>&1 |
            tee "$out/tests.log"
    fi
}

# The last lines of all are the runner's own.
finish() {
    local code=$?
    python3 scripts/test-report.py --folder "$out" --target "$target" --runner $runner --exit-code $code \
        --seconds $SECONDS || code=1
    [ ! -s "$out/tests.log" ] || grep -aE '^ *Summary \[|^test result:' "$out/tests.log" | tail -n 1
    exit $code
}

main() {
    rm -rf "$out" "$target/nextest"
    mkdir -p "$out"
    runner=cargo-test
    if cargo nextest --version >/dev/null 2>&1; then runner=nextest; fi
    trap finish EXIT

    command -v python3 >/dev/null || install_missing "python3 python3"
    step "set-up" scripts/setup.sh test
    step "scripts" scripts_are_sound
    step "format" cargo fmt --all --check
    step "layering" scripts/layering.sh
    step "lints" cargo clippy --locked --workspace --all-targets -- -D warnings
    if cargo deny --version >/dev/null 2>&1; then
        step "licences and sources" cargo deny --locked check bans licenses sources
    else
        not_run "licences and sources" "cargo-deny is not installed; scripts/layering.sh stands in for its bans"
    fi
    # Tests start the daemon and the plugin as programs; cargo does not build those for the tests of another package.
    step "build" cargo build --locked --workspace --bins
    step "documentation examples" cargo test --locked --workspace --doc
    step "tests with a moved clock" tests_with_moved_clock
    if [ -e "$(rustc --print target-libdir)/librustc-stable_rt.asan.a" ]; then
        step "the engine under AddressSanitizer" scripts/sanitize.sh
    else
        not_run "the engine under AddressSanitizer" "this Rust comes without the sanitizer's runtime; rustup's has it"
    fi
    step "tests" all_tests
    step "tests with WireGuard in the kernel" scripts/test-kernel.sh
}

main "$@"
