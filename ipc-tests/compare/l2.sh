#!/usr/bin/env bash
# What L2 costs and what it reaches, against the tools that measure the store itself, in turns on one machine:
# lookups with and without a tier, files against fio, Redis against redis-benchmark.
#
#   l2.sh [DIRECTORY]    where the files go; target/l2-bench by default
#
# Needs fio, redis-server and redis-benchmark (Debian: fio, redis-server, redis-tools).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
cargo build --release --workspace --bin lmcached --bin compare --bin l2-bench
bin="${CARGO_TARGET_DIR:-$root/target}/release"
dir=${1:-$root/target/l2-bench}
rounds=${ROUNDS:-5}
bytes=$((8 << 20)) files=64 depth=8
value=$((1 << 20)) connections=8 values=64

rm -rf "$dir"
mkdir -p "$dir/ours" "$dir/fio"
redis=
trap 'if [ -n "$redis" ]; then kill "$redis" 2> /dev/null || true; fi; rm -rf "$dir"' EXIT

"$bin/compare" l2 --daemon "$bin/lmcached"

# Buffered, no fsync, one file for each object, made anew for each round: what the tier does. Reads find the page cache
# as the writes left it, on both sides.
fio() {
  command fio --name=files --directory="$dir/fio" --rw="$1" --bs="$2" --filesize="$bytes" --nrfiles="$files" \
    --size=$((bytes * files)) --file_service_type=sequential --openfiles="$depth" --ioengine=io_uring --iodepth="$depth" --direct=0 \
    --fallocate=none --create_on_open="$3" --invalidate=0 --output-format=json 2> /dev/null |
    python3 -c "import json,sys; j=json.load(sys.stdin)['jobs'][0]['$1']; print(j['bw_bytes'] / 1e9)"
}

ours() { # JSON BYTES OBJECTS AT-A-TIME: GB/s of one store and one load
  "$bin/l2-bench" "$1" "$2" "$3" "$4" 2 2> /dev/null | sed -n 's/^round 1: store \([0-9.]*\) GB\/s, load \([0-9.]*\).*/\1 \2/p'
}

echo
echo "| round | fs store, GB/s | fio write | fs load | fio read |"
echo "|---|---|---|---|---|"
results=$(mktemp)
for round in $(seq "$rounds"); do
  rm -rf "$dir/fio" "$dir/ours"
  mkdir -p "$dir/fio" "$dir/ours"
  read -r store load < <(ours "{\"type\":\"fs\",\"base_path\":\"$dir/ours\"}" "$bytes" "$files" "$depth")
  rm -rf "$dir/ours"
  write=$(fio write "$bytes" 1)
  read=$(fio read "$bytes" 0)
  printf '| %s | %.2f | %.2f | %.2f | %.2f |\n' "$round" "$store" "$write" "$load" "$read"
  echo "$store $write $load $read" >> "$results"
done
python3 - "$results" << 'EOF'
import statistics, sys
rows = [[float(x) for x in line.split()] for line in open(sys.argv[1])]
print(f"\nfs store {statistics.median(r[0] / r[1] for r in rows):.2f} × fio, load {statistics.median(r[2] / r[3] for r in rows):.2f} × fio")
EOF

port=$((20000 + $$ % 20000))
redis-server --port "$port" --bind 127.0.0.1 --save "" --appendonly no > /dev/null &
redis=$!
until redis-cli -p "$port" ping > /dev/null 2>&1; do sleep 0.1; done
echo
echo "| round | resp load, GB/s | redis-benchmark GET |"
echo "|---|---|---|"
: > "$results"
for round in $(seq "$rounds"); do
  read -r _ load < <(ours "{\"type\":\"resp\",\"host\":\"127.0.0.1\",\"port\":$port,\"num_workers\":$connections}" "$value" "$values" "$connections")
  redis-benchmark -p "$port" -t set -d "$value" -n 64 -c 1 -q > /dev/null
  get=$(redis-benchmark -p "$port" -t get -d "$value" -n 1500 -c "$connections" --csv 2> /dev/null |
    python3 -c "import csv,sys; rows=list(csv.DictReader(sys.stdin)); print(float(rows[-1]['rps']) * $value / 1e9)")
  printf '| %s | %.2f | %.2f |\n' "$round" "$load" "$get"
  echo "$load $get" >> "$results"
done
python3 - "$results" << 'EOF'
import statistics, sys
rows = [[float(x) for x in line.split()] for line in open(sys.argv[1])]
print(f"\nresp load {statistics.median(r[0] / r[1] for r in rows):.2f} × redis-benchmark's GET")
EOF
rm -f "$results"
