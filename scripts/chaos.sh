#!/usr/bin/env bash
# Runs chaos: random faults on a mesh under traffic. Results of one commit add up in target/chaos/report.json; those of a
# changed working copy count for themselves.
#
#   SEEDS=20 SEED=7 SECONDS_EACH=120 scripts/chaos.sh
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo build --locked --workspace --bins
COMMIT=
if git diff --quiet HEAD; then COMMIT=$(git rev-parse HEAD); fi
COMMIT=$COMMIT "$target/debug/chaos"
