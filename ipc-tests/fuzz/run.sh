#!/usr/bin/env bash
# Fuzzes what comes from outside.
#
#   run.sh SECONDS [TARGET…]   runs each target (all nine without names) for so long, from the kept corpus; prints a table;
#                              ends with an error if an input crashes, hangs or takes too much memory
#   run.sh merge [TARGET…]     takes what was found into the kept corpus, as few and as small inputs as have the same coverage
#   run.sh build               builds the targets
#   run.sh table [TARGET…]     prints the table of the last runs again
#
# Needs the stable toolchain alone (RUSTC_BOOTSTRAP=1 for the instrumentation) and a C++ compiler. JOBS targets run at the
# same time (default: 2). What is found stays in the target folder until it is merged; crashing inputs too.
set -euo pipefail
cd "$(dirname "$0")"

ALL=(zmtp requests keys descriptors trace_file ring_lanes object_table l2_values http)
TRIPLE=x86_64-unknown-linux-gnu
# Largest input. An HTTP request or a table is found in fewer steps when it is not longer than it must be.
MAX_LEN=8192
# No target needs a tenth of these for such an input: more is a finding, as is an input that takes a minute. The clock is the
# wall's: on a machine that stands still for that long, set TIMEOUT.
LIMITS=(-max_len=$MAX_LEN -malloc_limit_mb=64 -rss_limit_mb=2048 -timeout="${TIMEOUT:-60}")

what=${1:?SECONDS, merge, build or table}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=("${ALL[@]}")

target_dir=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")
out=$target_dir/fuzz
work=$out/work
tools=$target_dir/tools
PATH="$tools/bin:$PATH"
mkdir -p "$work"

bin=$out/$TRIPLE/release
# What cargo-fuzz sets for its own runs, and: a leak is not looked for after each input, the daemon's parts are statics.
export ASAN_OPTIONS=detect_odr_violation=0:detect_leaks=0

build() {
  command -v cargo-fuzz > /dev/null || cargo install cargo-fuzz --debug --locked --version '^0.13' --root "$tools"
  RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir . --target-dir "$out" --target "$TRIPLE"
}

table() {
  local target log last
  printf '%-14s %8s %12s %8s %9s %8s %8s\n' target seconds executions edges features inputs crashes
  for target in "${targets[@]}"; do
    log=$out/$target.log
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -n 1; }
    last=$(grep -aE '^#[0-9]+.*cov: ' "$log" | tail -n 1)
    field() { sed -n "s/.* $1: \([0-9]*\).*/\1/p" <<< "$last"; }
    seconds=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$log")
    printf '%-14s %8s %12s %8s %9s %8s %8s\n' "$target" "${seconds:-ended}" "$(stat number_of_executed_units)" \
      "$(field cov)" "$(field ft)" "$(find "$work/$target" -type f | wc -l)" "$(find "$out/artifacts/$target" -type f | wc -l)"
  done
}

run_one() {
  local target=$1 seconds=$2
  mkdir -p "$work/$target" "corpus/$target" "$out/artifacts/$target"
  "$bin/$target" "$work/$target" "corpus/$target" "${LIMITS[@]}" -max_total_time="$seconds" -print_final_stats=1 \
    -artifact_prefix="$out/artifacts/$target/" > "$out/$target.log" 2>&1
}

case $what in
  build) build ;;
  table) table ;;
  merge)
    build
    for target in "${targets[@]}"; do
      mkdir -p "$work/$target" "corpus/$target"
      rm -rf "$out/merged"
      mkdir "$out/merged"
      "$bin/$target" -merge=1 "${LIMITS[@]}" "$out/merged" "corpus/$target" "$work/$target" > "$out/$target.merge.log" 2>&1
      rm -rf "corpus/$target"
      mv "$out/merged" "corpus/$target"
      echo "$target: $(find "corpus/$target" -type f | wc -l) inputs, $(du -sb "corpus/$target" | cut -f 1) bytes"
    done
    ;;
  *)
    build
    failed=()
    running=0
    for target in "${targets[@]}"; do
      run_one "$target" "$what" || touch "$out/$target.failed" &
      running=$((running + 1))
      if [ "$running" -ge "${JOBS:-2}" ]; then
        wait -n
        running=$((running - 1))
      fi
    done
    wait
    table
    for target in "${targets[@]}"; do
      if [ -e "$out/$target.failed" ]; then
        rm "$out/$target.failed"
        failed+=("$target")
      fi
    done
    if [ ${#failed[@]} -gt 0 ]; then
      echo "failed: ${failed[*]}; see $out/*.log and $out/artifacts" >&2
      exit 1
    fi
    ;;
esac
