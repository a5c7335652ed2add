#!/usr/bin/env bash
# Builds the image from a release build: build.sh [TAG]. Needs buildah (or docker: set BUILDER=docker).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
binary=${LMCACHED_BIN:-$target/release/lmcached}
[ -n "${LMCACHED_BIN:-}" ] || cargo build --release --locked --workspace --bin lmcached --bin lmcached-keeper --bin lmcache-ctl
deploy/container/stage.sh "$target/container" "$binary" "$(dirname "$binary")"/{lmcached-keeper,lmcache-ctl}
"${BUILDER:-buildah}" build --file deploy/container/Containerfile --tag "${1:-lmcached}" "$target/container"
