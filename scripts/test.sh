#!/usr/bin/env bash
# All that `make test` does, on a fresh Debian with Rust: set-up, lints, build, every test.
#
# Stops at the first step that fails. In any case target/test/report.json says what ran, what passed, what was skipped
# and why. With CI=true a skip is a failure.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/apt.sh
. scripts/apt.sh
# Debian keeps nft, ip and friends in sbin, which is not in an ordinary user's PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
target=${CARGO_TARGET_DIR:-target}
out=$target/test
steps=$out/steps.jsonl

# The process group of the step in the background, if one runs.
background=

# Runs the rest of the arguments as the step named $1, and notes how it went. Bash does not apply errexit inside a function
# called here, so such a function has to return at the first command that fails.
step() {
    local name=$1 begin=$SECONDS ok=true
    shift
    printf '\n==> %s: %s\n' "$name" "$*" >&2
    "$@" || ok=false
    note "$name" $((SECONDS - begin)) $ok
}

# Writes the outcome of a step for the report; ends everything if it failed.
note() {
    printf '{"name": "%s", "seconds": %d, "ok": %s}\n' "$1" "$2" "$3" >>"$steps"
    [ "$3" = true ] || { printf 'test: the step "%s" failed\n' "$1" >&2; exit 1; }
}

# Starts the rest of the arguments in the background, as the step named $1, with what the steps in the foreground leave of
# the cores: it is run only while nothing else is (SCHED_IDLE), so tests that rest on a core don't notice it. Its output
# goes to a file. One at a time: `await` waits for it.
begin() {
    background_name=$1 background_log=$out/background.log background_begin=$SECONDS
    shift
    printf '\n==> %s, in the background: %s\n' "$background_name" "$*" >&2
    # With job control it has a process group of its own, which can be ended as a whole.
    set -m
    chrt --idle 0 "$@" </dev/null >"$background_log" 2>&1 &
    background=$!
    set +m
}

# Waits for what `begin` started, prints its output and notes how it went.
await() {
    local ok=true job=$background
    printf '\n==> waiting for: %s\n' "$background_name" >&2
    wait "$job" || ok=false
    background=
    cat "$background_log" >&2
    note "$background_name" $((SECONDS - background_begin)) $ok
}

# One line for the report about something that can't run on this machine.
not_run() {
    printf '==> not run: %s: %s\n' "$1" "$2" >&2
    printf '{"name": "%s", "why": "%s"}\n' "$1" "$2" >>"$out/not-run.jsonl"
}

scripts_are_sound() {
    local script
    for script in scripts/*.sh scripts/kernel-vm/*.sh scripts/hooks/* .ci/run; do
        bash -n "$script" || return 1
    done
    python3 scripts/test-report.py --self-test || return 1
    scripts/layering.sh --self-test || return 1
}

# nextest runs each test in a process of its own and knows the groups of .config/nextest.toml; where it is not
# installed cargo's own runner runs the same tests and reports less about each.
#
# Always with all packages of the workspace, also where tests of one are wanted: which features dependencies are built
# with depends on the packages that are selected, and another selection would build dozens of them once more.
tests_with_moved_clock() {
    if [ $runner = nextest ]; then
        cargo nextest run --locked --profile clock --workspace --features tunnel/mock-clock --test silence
    else
        cargo test --locked --workspace --features tunnel/mock-clock --test silence 2>&1 | tee "$out/clock.log"
    fi
}

all_tests() {
    if [ $runner = nextest ]; then
        # Its report leaves out tests that are marked as ignored.
        cargo nextest list --locked --workspace --run-ignored only --message-format json >"$out/ignored.json" || return 1
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
    # Once it has ended, another process group may have its number.
    if [ -n "$background" ] && jobs -pr | grep -qx "$background"; then
        kill -- "-$background" 2>/dev/null || true
        wait "$background" || true
    fi
    python3 scripts/test-report.py --directory "$out" --target "$target" --runner $runner --exit-code $code \
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
    step "set-up: packages" scripts/setup.sh test-packages
    # What takes minutes to build, and only the tests need.
    begin "set-up: programs and kernel for the tests" scripts/setup.sh test-assets
    step "scripts" scripts_are_sound
    step "format" cargo fmt --all --check
    step "layering" scripts/layering.sh
    step "lints" cargo clippy --locked --workspace --all-targets -- -D warnings
    if cargo deny --version >/dev/null 2>&1; then
        step "licences and sources" cargo deny --locked check bans licenses sources
    else
        not_run "licences and sources" "cargo-deny is not installed; scripts/layering.sh covers its bans"
    fi
    # Tests start the daemon and the plugin as programs; cargo does not build those for the tests of another package.
    # Together with the tests: on their own, programs are built with other features of their dependencies.
    step "build" cargo build --locked --workspace --bins --tests
    step "documentation examples" cargo test --locked --workspace --doc
    step "tests with a moved clock" tests_with_moved_clock
    if [ -e "$(rustc --print target-libdir)/librustc-stable_rt.asan.a" ]; then
        step "the engine under AddressSanitizer" scripts/sanitize.sh engine
    else
        not_run "the engine under AddressSanitizer" "this Rust comes without the sanitizer's runtime; rustup's has it"
    fi
    await
    # CI builds the image next. Neither the tests nor the virtual machine keep both cores busy all the time.
    [ "${CI:-}" != true ] || begin "programs for the image" scripts/image.sh --build-only
    step "tests" all_tests
    step "tests with WireGuard in the kernel" scripts/test-kernel.sh
    [ "${CI:-}" != true ] || await
}

main "$@"
