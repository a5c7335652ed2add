#!/usr/bin/env bash
# Opens the live page in a real browser. See README.md beside this file.
#
# CHROMIUM      use this browser instead of Debian's
# LMCACHED_BIN  use this daemon instead of building it
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
work="$target/page"
mkdir -p "$work"

chromium=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$chromium" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
  chromium=$(command -v chromium)
fi
if [ -z "$chromium" ]; then
  echo "page test: no browser; install Debian's chromium, or name one with CHROMIUM=" >&2
  exit 1
fi
if ! command -v npm >/dev/null; then
  echo "page test: no npm; install Node.js 20 or newer" >&2
  exit 1
fi

cp "$here/package.json" "$here/package-lock.json" "$work/"
if ! [ "$work/node_modules/.package-lock.json" -nt "$here/package-lock.json" ]; then
  (cd "$work" && timeout 300 npm ci --no-audit --no-fund --silent && touch node_modules/.package-lock.json)
fi

cd "$root"
# The programs are built with their packages' tests, and so with the features that the tests have been built with.
cargo test --quiet --no-run --workspace --test page --test instrumentation
export LMCACHED_BIN=${LMCACHED_BIN:-$target/debug/lmcached}
export PAGE_LOAD_BIN="$target/debug/page-load" CHROMIUM="$chromium" PAGE_WORK="$work"
# Imports are looked for beside the script, so it runs where its packages are.
rm -f "$work"/*.mjs
cp "$here"/*.mjs "$work/"
cd "$work"
exec timeout 900 node main.mjs "$@"
