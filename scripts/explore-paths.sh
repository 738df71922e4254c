#!/usr/bin/env bash
# Runs the model of paths, optimized: PATHS_CASES more runs after those that were made at this commit, or from number PATHS_SEED
# on. Results of one commit add up in target/explore/paths.json; those of a changed working copy count for themselves.
#
#   PATHS_CASES=4000 PATHS_SEED=1 scripts/explore-paths.sh
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
COMMIT=
if git diff --quiet HEAD; then COMMIT=$(git rev-parse HEAD); fi
export COMMIT PATHS_REPORT=$target/explore/paths.json
# Optimized like this nothing but the model and what it runs is built anew.
cargo test --locked --config profile.dev.package.plan.opt-level=3 --package plan --test paths -- \
    --nocapture --test-threads=1 explore::
