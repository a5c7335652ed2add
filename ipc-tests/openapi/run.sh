#!/usr/bin/env bash
# Holds a running daemon against its OpenAPI document: requests made from it, valid and not, and no 5xx among the answers.
# Not asked: what ends the daemon (drain, upgrade), the stream that has no end (events), and the removal of the one adapter.
# LMCACHED_BIN names a daemon, so that none is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
venv=${SCHEMATHESIS_VENV:-$target/openapi/venv}
if [ ! -x "$venv/bin/schemathesis" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet 'schemathesis>=4,<5'
fi
if [ -z "${LMCACHED_BIN:-}" ]; then
  cargo build --quiet --workspace --bins
  LMCACHED_BIN="$target/debug/lmcached"
fi
# lmcache-ctl is beside it.
bin=$(dirname "$(realpath "$LMCACHED_BIN")")
work=$(mktemp -d)
pid=
cleanup() {
  if [ -n "$pid" ]; then kill "$pid" 2> /dev/null || true; wait "$pid" 2> /dev/null || true; fi
  rm -rf "$work" /dev/shm/*lmcache_l1_pool_openapi"$$"*
}
trap cleanup EXIT
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32))' > "$work/token")
ports=$(python3 - << 'PY'
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in sockets])
PY
)
read -r port http prometheus <<< "$ports"
# In a directory of its own: a configuration made of random text may name relative paths.
cd "$work"
"$bin/lmcached" --port "$port" --http-port "$http" --prometheus-port "$prometheus" --l1-size-gb 0.03125 \
  --shm-name "openapi$$" --http-token-file "$work/token" \
  --l2-adapter "{\"type\":\"fs\",\"base_path\":\"$work/l2\"}" 2> "$work/log" &
pid=$!
for _ in $(seq 300); do
  if "$bin/lmcache-ctl" --url "http://127.0.0.1:$http" ping > /dev/null 2>&1; then break; fi
  sleep 0.1
done
"$venv/bin/schemathesis" run "http://127.0.0.1:$http/openapi.json" \
  --header "Authorization: Bearer $(cat "$work/token")" \
  --exclude-operation-id drain --exclude-operation-id upgrade --exclude-operation-id events --exclude-operation-id removeAdapter \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
  --max-examples "${SCHEMATHESIS_EXAMPLES:-20}" --generation-deterministic --request-timeout 30 --max-time "${SCHEMATHESIS_SECONDS:-120}" ||
  { tail -50 "$work/log"; exit 1; }
# It lives, and nothing panicked.
"$bin/lmcache-ctl" --url "http://127.0.0.1:$http" ping
if grep -i panick "$work/log"; then exit 1; fi
