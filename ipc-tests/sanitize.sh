#!/usr/bin/env bash
# Runs the unit tests of the rooms with unsafe code under AddressSanitizer and under valgrind.
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
packages=(-p lmcache-proto -p lmcache-client -p lmcached)

# By room: lanes in shared memory; the pool, its table and the index over it; workers' segments and copies; L2's buffers and
# file I/O, and the adapters on top; the ring's segment; the client's pool and lane.
rooms=(shm:: l1:: device:: l2:: ring:: roster:: pool:: lane)
# The models bring a scheduler with stacks of its own, which neither tool follows.
skip=(--skip models::)

asan() {
  # Leaks are not looked for: what the runtime and TLS keep until the end is not lost. The tests raise SIGBUS on purpose and
  # handle it.
  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:allow_user_segv_handler=1:handle_sigbus=0 \
    RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$target_dir/asan \
    cargo test --target "$triple" "${packages[@]}" --lib -- "${rooms[@]}" "${skip[@]}"
}

memcheck() {
  local programs
  programs=$(CARGO_TARGET_DIR=$target_dir/valgrind cargo test "${packages[@]}" --lib --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/deps\/[^"]*\)".*/\1/p')
  for program in $programs; do
    # Of io_uring valgrind sees the calls and not what the kernel writes; waiting for a ring, it stands still.
    LMCACHED_TEST_NO_URING=1 valgrind --quiet --error-exitcode=9 --leak-check=no --fair-sched=yes \
      "$program" --test-threads=1 "${rooms[@]}" "${skip[@]}" --skip uring
  done
}

case $what in
  asan) asan ;;
  valgrind) memcheck ;;
  all) asan && memcheck ;;
  *) echo "asan or valgrind" >&2; exit 2 ;;
esac
