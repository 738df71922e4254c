#!/usr/bin/env bash
# What the daemon of one node costs in a mesh of many; all other nodes are played. Writes target/scale.
#
#   N=50,1000,5000 QUICK=1 DAEMON=path SCENARIOS=start,idle,... IGNORE_GOALS=1 scripts/bench-scale.sh
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# A run that plays nodes with a debug build is late itself, and a daemon of one shows other costs.
cargo build --locked --release --package meshd --package cni --package lab --bin meshd --bin mesh-cni --bin bench-scale
exec "$target/release/bench-scale"
