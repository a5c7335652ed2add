#!/usr/bin/env bash
# What L2 costs and what it reaches, against the tools that measure the store itself, in turns on one machine:
# lookups with and without a tier, files against fio, Redis against redis-benchmark.
#
#   l2.sh [DIRECTORY]    in which a directory for the files is made; target by default
#
# ROUNDS: alternating rounds. ONLY_STORES: any text leaves the lookups out.
# Needs fio, redis-server and redis-benchmark (Debian: fio, redis-server, redis-tools).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
cargo build --release --workspace --bin lmcached --bin compare --bin l2-bench
bin="${CARGO_TARGET_DIR:-$root/target}/release"
place=${1:-$root/target}
mkdir -p -- "$place"
# Of our own: it is removed at the end, and in it all of each round.
dir=$(mktemp -d -- "$(realpath -- "$place")/l2-bench.XXXXXX")
rounds=${ROUNDS:-15}
bytes=$((8 << 20)) files=64 depth=8
value=$((1 << 20)) connections=8 values=64

redis=
trap 'if [ -n "$redis" ]; then kill "$redis" 2> /dev/null || true; fi; rm -rf "$dir"' EXIT

[ -n "${ONLY_STORES:-}" ] || "$bin/compare" l2 --daemon "$bin/lmcached"

# Buffered, no fsync, one file for each object, made anew for each round: what the tier does. Reads find the page cache
# as the writes left it, on both sides.
fio() {
  command fio --name=files --directory="$dir/fio" --rw="$1" --bs="$2" --filesize="$bytes" --nrfiles="$files" \
    --size=$((bytes * files)) --file_service_type=sequential --openfiles="$depth" --ioengine=io_uring --iodepth="$depth" --direct=0 \
    --fallocate=none --create_on_open="$3" --invalidate=0 --output-format=json 2> /dev/null |
    python3 -c "import json,sys; j=json.load(sys.stdin)['jobs'][0]['$1']; print(j['bw_bytes'] / 1e9)"
}

ours() { # JSON BYTES OBJECTS AT-A-TIME ROUNDS: GB/s of the last store and load
  "$bin/l2-bench" "$1" "$2" "$3" "$4" "$5" 2> /dev/null | tail -1 | sed -n 's/^round [0-9]*: store \([0-9.]*\) GB\/s, load \([0-9.]*\).*/\1 \2/p'
}

echo
echo "| round | fs store, GB/s | fio write | fs load | fio read |"
echo "|---|---|---|---|---|"
results=$(mktemp)
for round in $(seq "$rounds"); do
  rm -rf "$dir/fio" "$dir/ours"
  mkdir -p "$dir/fio" "$dir/ours"
  # Nothing is left to be written back from before, or the second of the two pays for the first.
  sync -f "$dir"
  read -r store load < <(ours "{\"type\":\"fs\",\"base_path\":\"$dir/ours\"}" "$bytes" "$files" "$depth" 1)
  rm -rf "$dir/ours"
  sync -f "$dir"
  write=$(fio write "$bytes" 1)
  read=$(fio read "$bytes" 0)
  printf '| %s | %.2f | %.2f | %.2f | %.2f |\n' "$round" "$store" "$write" "$load" "$read"
  echo "$store $write $load $read" >> "$results"
done
python3 - "$results" << 'EOF'
import statistics, sys
rows = [[float(x) for x in line.split()] for line in open(sys.argv[1])]
m = [round(statistics.median(column), 2) for column in zip(*rows)]
print(f"\nfs store {m[0] / m[1]:.2f} × fio, load {m[2] / m[3]:.2f} × fio, by the medians {m}")
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
  read -r _ load < <(ours "{\"type\":\"resp\",\"host\":\"127.0.0.1\",\"port\":$port,\"num_workers\":$connections}" "$value" "$values" "$connections" 2)
  redis-benchmark -p "$port" -t set -d "$value" -n 64 -c 1 -q > /dev/null
  get=$(redis-benchmark -p "$port" -t get -d "$value" -n 1500 -c "$connections" --csv 2> /dev/null |
    python3 -c "import csv,sys; rows=list(csv.DictReader(sys.stdin)); print(float(rows[-1]['rps']) * $value / 1e9)")
  printf '| %s | %.2f | %.2f |\n' "$round" "$load" "$get"
  echo "$load $get" >> "$results"
done
python3 - "$results" << 'EOF'
import statistics, sys
rows = [[float(x) for x in line.split()] for line in open(sys.argv[1])]
m = [round(statistics.median(column), 2) for column in zip(*rows)]
print(f"\nresp load {m[0] / m[1]:.2f} × redis-benchmark's GET, by the medians {m}")
EOF
rm -f "$results"
