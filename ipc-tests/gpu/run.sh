#!/usr/bin/env bash
# Runs the device suite on this machine's GPU, then with torch processes as workers, then prints GB/s beside a raw copy.
#
# Needs no network: the crates must have been fetched (`cargo fetch` on a machine that has one), and torch is whatever Python has.
#
# PYTHON   the Python with torch [python3]
# PROFILE  debug to skip the release build; speeds mean nothing then
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
python=${PYTHON:-python3}
release=--release
[ "${PROFILE:-release}" = debug ] && release=

if ! ldconfig -p 2> /dev/null | grep -q 'libcuda\.so\.1' && ! ls /usr/lib*/libcuda.so.1 /usr/lib/*/libcuda.so.1 > /dev/null 2>&1; then
  echo "gpu: no libcuda.so.1 on this machine: nothing was run (the tests' own driver is what 'cargo test' uses)" >&2
  exit 3
fi
if ! ls /dev/nvidia[0-9]* > /dev/null 2>&1; then
  echo "gpu: a driver, and no /dev/nvidia* here: give the container its devices; nothing was run" >&2
  exit 3
fi
if command -v nvidia-smi > /dev/null; then
  nvidia-smi --query-gpu=index,name,driver_version,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader
fi

export CARGO_NET_OFFLINE=true LMCACHED_GPU=real
# One after the other: they share one GPU, and the speed of its bus.
serial=(--test-threads=1)

echo "== the suite, workers by the driver's own calls"
# Shellcheck's word splitting is meant: the flag may be absent.
# shellcheck disable=SC2086
cargo test $release --workspace --test device_suite -- "${serial[@]}"

echo "== the suite, workers by torch"
if "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
  # Without the form for isolated containers, which needs LMCache itself.
  # shellcheck disable=SC2086
  LMCACHED_GPU_WORKER="$python $root/ipc-tests/gpu/torch_worker.py" \
    cargo test $release --workspace --test device_suite -- "${serial[@]}" --skip isolated
else
  echo "gpu: $python has no torch that sees a GPU: not run with torch workers (PYTHON names another)" >&2
fi

echo "== GB/s; to reach: 92 % each way for 2 MiB chunks, 80 % paged, 90 % both ways"
# shellcheck disable=SC2086
cargo test $release --quiet --workspace --test gpu_speed -- --ignored --nocapture
