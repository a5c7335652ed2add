#!/usr/bin/env bash
# late.sh SECONDS DAEMON [FLAG...]: starts the daemon that much later, as a busy machine or a large pool would.
set -euo pipefail
sleep "$1"
shift
exec "$@"
