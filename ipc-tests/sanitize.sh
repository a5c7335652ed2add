#!/usr/bin/env bash
# Runs the tests of the rooms with unsafe code under AddressSanitizer and under valgrind.
#
#   sanitize.sh [asan|valgrind]     both without a name
#
# Needs the stable toolchain (RUSTC_BOOTSTRAP=1 for -Zsanitizer) and, for the second, valgrind. Builds into target folders of
# its own: instrumented crates and the usual ones must not mix.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
triple=x86_64-unknown-linux-gnu

# The unit tests of these, by room: shared-memory layouts and lanes; the client's pool and ring; the pool, its table and the
# index over it; workers' segments and copies; L2's buffers and file I/O, and the adapters on top; the ring's segment.
daemon_rooms=(l1:: device:: l2:: ring:: roster::)

asan() {
  export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target_dir/asan
  # Leaks: statics of the runtime and of TLS live until the end, on purpose.
  export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allow_user_segv_handler=1:handle_sigbus=0
  cargo test --target "$triple" -p lmcache-proto -p lmcache-client --lib --tests -- --skip every_record_arrives --skip a_lane_that_changes
  cargo test --target "$triple" -p lmcached --lib -- "${daemon_rooms[@]}" --skip models::
  cargo test --target "$triple" -p ipc-tests --test fuzz_corpus
}

valgrind_() {
  # Optimised as in tests; the instructions that valgrind does not know (AVX-512) are chosen at run time and not offered.
  local tests
  tests=$(CARGO_TARGET_DIR=$target_dir/valgrind cargo test -p lmcached --lib --no-run --message-format=json \
    | sed -n 's/.*"executable":"\([^"]*\/deps\/lmcached-[^"]*\)".*/\1/p' | tail -n 1)
  [ -n "$tests" ] || { echo "no test program of lmcached was built" >&2; exit 1; }
  # One thread: valgrind runs one at a time anyway. io_uring and loom are not for it (the kernel writes behind its back; a
  # scheduler of its own).
  valgrind --quiet --error-exitcode=9 --leak-check=no --fair-sched=yes \
    "$tests" --test-threads=1 l1:: device:: l2::memory l2::aesgcm l2::raw_block l2::fs ring:: roster:: --skip models:: --skip uring
}

case $what in
  asan) asan ;;
  valgrind) valgrind_ ;;
  all) (asan) && valgrind_ ;;
  *) echo "asan or valgrind" >&2; exit 2 ;;
esac
