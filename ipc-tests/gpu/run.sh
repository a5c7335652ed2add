#!/usr/bin/env bash
# Runs the device suite on this machine's GPU, then with torch processes as workers, then prints GB/s beside a raw copy.
#
# Needs no network: the crates must have been fetched (`cargo fetch` on a machine that has one), and torch is whatever Python has.
#
# PYTHON   the Python with torch [python3]
# PROFILE  debug to skip the release build; speeds mean nothing then
#
# All parts are run, whatever became of those before. Ends with
#   0  all of it was run and passed, the goals of speed among it
#   1  something failed, or a goal was missed
#   3  nothing was run: no GPU
#   4  nothing failed, but something was not run: no torch
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=${PYTHON:-python3}
# One after the other: they share one GPU, and the speed of its bus.
serial=(--test-threads=1)
build=(--workspace)
[ "${PROFILE:-release}" = debug ] || build+=(--release)

# Not `grep -q`: it ends at the first line, and the list that it does not read would be a failure.
if ! ldconfig -p 2> /dev/null | grep 'libcuda\.so\.1' > /dev/null && ! compgen -G '/usr/lib*/libcuda.so.1' > /dev/null &&
  ! compgen -G '/usr/lib/*/libcuda.so.1' > /dev/null; then
  echo "gpu: no libcuda.so.1 on this machine: nothing was run (the tests' own driver is what 'cargo test' uses)" >&2
  exit 3
fi
if ! ls /dev/nvidia[0-9]* > /dev/null 2>&1; then
  echo "gpu: a driver, and no /dev/nvidia* here: give the container its devices; nothing was run" >&2
  exit 3
fi
if command -v nvidia-smi > /dev/null; then
  # For the record only: a tool that fails is no reason to run nothing.
  nvidia-smi --query-gpu=index,name,driver_version,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader || true
fi

export CARGO_NET_OFFLINE=true LMCACHED_GPU=real
unset LMCACHED_GPU_WORKER
summary=()
failed=0
left_out=0

part() { # part NAME COMMAND...: runs it, and remembers how it ended
  local name=$1
  shift
  echo "== $name"
  if "$@"; then
    summary+=("passed   $name")
  else
    summary+=("FAILED   $name")
    failed=$((failed + 1))
  fi
}

leave_out() { # leave_out NAME REASON
  summary+=("NOT RUN  $1: $2")
  left_out=$((left_out + 1))
}

suite="the device suite"
processes="two processes that register, store, look up and retrieve, and their checksums"
# One program a call: a failure in one must not keep the next from being run.
part "$suite, workers by the driver's own calls" cargo test "${build[@]}" --test device_suite -- "${serial[@]}"
part "$processes, by the driver's own calls" cargo test "${build[@]}" --test gpu_workers -- "${serial[@]}"

# The last line of an ImportError says what is missing.
if reason=$("$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no GPU")' 2>&1); then
  export LMCACHED_GPU_WORKER="$python $root/ipc-tests/gpu/torch_worker.py"
  # Without the form for isolated containers, which needs LMCache itself.
  part "$suite, workers by torch" cargo test "${build[@]}" --test device_suite -- "${serial[@]}" --skip isolated
  part "$processes, by torch" cargo test "${build[@]}" --test gpu_workers -- "${serial[@]}"
  # The raw copies are the other worker's.
  unset LMCACHED_GPU_WORKER
else
  reason="$python: ${reason##*$'\n'} (PYTHON names another)"
  leave_out "$suite, workers by torch" "$reason"
  leave_out "$processes, by torch" "$reason"
fi

part "GB/s; to reach: 92 % of a raw copy each way for 2 MiB chunks, 80 % paged, 90 % both ways" \
  cargo test "${build[@]}" --quiet --test gpu_speed -- --ignored --nocapture

echo "== summary"
printf '%s\n' "${summary[@]}"
if [ "$failed" -gt 0 ]; then
  echo "gpu: $failed of ${#summary[@]} parts failed, $left_out not run" >&2
  exit 1
fi
if [ "$left_out" -gt 0 ]; then
  echo "gpu: nothing failed, and $left_out of ${#summary[@]} parts were not run" >&2
  exit 4
fi
