#!/usr/bin/env bash
# Builds the guide into target/book with mdBook, which is built once into target/tools if it is not there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
PATH="$target/tools/bin:$PATH"
command -v mdbook >/dev/null ||
  cargo install mdbook --debug --locked --no-default-features --version '^0.5' --root "$target/tools"
mdbook build --dest-dir "$target/book" docs
