#!/usr/bin/env bash
# The whole crash matrix: every step of the daemon, workers, and any moment, each with many seeds. docs/TESTING.md says what
# it is and what the last run printed.
#
#   run.sh [SEEDS [FIRST]]     seeds of each point (10), the first of them (1)
#
# A failure prints the command that runs it again.
set -euo pipefail
cd "$(dirname "$0")/../.."

CRASH_POINTS=all CRASH_SEEDS=${1:-10} CRASH_SEED=${2:-1}
export CRASH_POINTS CRASH_SEEDS CRASH_SEED
cargo test --workspace --test crash_matrix -- --nocapture --test-threads 1
