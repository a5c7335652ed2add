#!/usr/bin/env bash
# Checks everything in this folder: rules, dashboard, units, package, manifests, container. README.md says what needs what.
#
# Each part prints `ok PART`. A part that this machine cannot do prints `SKIP PART: why`, and only then.
#
# LMCACHED_BIN  package this binary, and the lmcached-keeper and lmcache-ctl beside it, instead of building them
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
export CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
work="$CARGO_TARGET_DIR/deploy"
tools="$CARGO_TARGET_DIR/tools"
PATH="$tools/bin:$PATH"
mkdir -p "$work"
cd "$root"

skipped=0
skip() {
  echo "SKIP $1: $2"
  skipped=$((skipped + 1))
}
am_root() { [ "$(id -u)" = 0 ]; }

# Debian's own tools, where we may install them.
need() {
  local missing=()
  local pair
  for pair in "$@"; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}"); done
  [ ${#missing[@]} = 0 ] && return
  am_root && command -v apt-get >/dev/null || return 0
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || true
}
need promtool:prometheus systemd-analyze:systemd buildah:buildah dpkg-shlibdeps:dpkg-dev python3:python3 setpriv:util-linux
command -v cargo-deb >/dev/null || cargo install cargo-deb --debug --locked --no-default-features --version '^3' --root "$tools"

# --- The daemon -----------------------------------------------------------------------------------------------------
if [ -z "${LMCACHED_BIN:-}" ]; then
  cargo build --release --locked --workspace --bin lmcached --bin lmcached-keeper --bin lmcache-ctl
  # What is shipped has no points at which a variable kills it.
  if grep -q LMCACHED_FAILPOINT "$CARGO_TARGET_DIR/release/lmcached"; then
    echo "the release was built with the feature failpoints" >&2
    exit 1
  fi
else
  mkdir -p "$CARGO_TARGET_DIR/release"
  [ "$(realpath "$LMCACHED_BIN")" = "$CARGO_TARGET_DIR/release/lmcached" ] ||
    cp "$LMCACHED_BIN" "$(dirname "$LMCACHED_BIN")"/{lmcached-keeper,lmcache-ctl} "$CARGO_TARGET_DIR/release/"
fi
binary="$CARGO_TARGET_DIR/release/lmcached"
ctl="$CARGO_TARGET_DIR/release/lmcache-ctl"
keeper="$CARGO_TARGET_DIR/release/lmcached-keeper"

pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -f /dev/shm/{,.}*"deploycheck$$"*
}
trap cleanup EXIT

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
get() { python3 -c 'import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=10).read().decode())' "$1"; }
# Waits until the daemon of process $1 is ready at port $2; the bound ends a hang.
ready() {
  for _ in $(seq 600); do
    get "http://127.0.0.1:$2/healthcheck" >/dev/null 2>&1 && return
    kill -0 "$1" 2>/dev/null || { echo "the daemon ended" >&2; return 1; }
    sleep 0.1
  done
  echo "the daemon does not get ready" >&2
  return 1
}

# --- Rules and dashboard --------------------------------------------------------------------------------------------
http=$(port)
"$binary" --port "$(port)" --http-port "$http" --prometheus-port 0 --l1-size-gb 0.0625 --discard-on-exit \
  --shm-name "deploycheck$$" 2>"$work/scrape.log" &
pids+=($!)
ready $! "$http"
get "http://127.0.0.1:$http/metrics" >"$work/scrape.txt"
kill $! && wait $! || true
python3 deploy/check_queries.py --scrape "$work/scrape.txt" --rules "$work/dashboard.yml"
echo "ok queries"
if command -v promtool >/dev/null; then
  promtool check rules deploy/prometheus/alerts.yml "$work/dashboard.yml"
  promtool check config --syntax-only deploy/prometheus/scrape.yml
  promtool test rules deploy/prometheus/alerts_test.yml
  promtool check metrics <"$work/scrape.txt" || {
    # 1: could not be read. 3: advice about names, which are LMCache's.
    [ $? = 3 ]
  }
  echo "ok prometheus"
else
  skip prometheus "no promtool, and not root to install Debian's prometheus"
fi

# --- Sample configuration -------------------------------------------------------------------------------------------
# As it is, and with every commented-out line in force.
sed -E 's/^#(\[\[|[a-z0-9_-]+ = )/\1/' deploy/lmcached.toml >"$work/all.toml"
for file in deploy/lmcached.toml "$work/all.toml"; do
  # Stops at the negative time, which is looked at last: everything in the file has been understood by then.
  line=$("$binary" --config "$file" --drain-seconds -1 2>&1) && { echo "a negative time was accepted" >&2; exit 1; }
  case "$line" in
    *"--drain-seconds -1"*) ;;
    *) echo "$file: $line" >&2; exit 1 ;;
  esac
done
echo "ok configuration"

# --- Package --------------------------------------------------------------------------------------------------------
rm -f "$work"/*.deb
cargo deb --quiet -p lmcached --no-build --output "$work/"
deb=$(ls "$work"/*.deb)
dpkg-deb --info "$deb" | sed -n 's/^ \(Package\|Version\|Depends\)/\1/p'
contents=$(dpkg-deb --contents "$deb")
for file in ./usr/bin/lmcached ./usr/bin/lmcached-keeper ./usr/bin/lmcache-ctl ./usr/share/man/man1/lmcache-ctl.1.gz \
  ./usr/share/bash-completion/completions/lmcache-ctl ./etc/lmcached/lmcached.toml ./usr/lib/systemd/system/lmcached.service \
  ./usr/lib/systemd/system/lmcached.socket ./usr/lib/sysusers.d/lmcached.conf ./usr/lib/tmpfiles.d/lmcached.conf \
  ./usr/share/doc/lmcached/guide/operating.md; do
  grep -q " $file\$" <<<"$contents" || { echo "$file is not in the package" >&2; exit 1; }
done
echo "ok package"

# Starts the installed daemon as its user, twice over the same pool.
twice_as_lmcached() {
  local run=(setpriv --reuid=lmcached --regid=lmcached --clear-groups --inh-caps=-all --bounding-set=-all /usr/bin/lmcached
    --config /etc/lmcached/lmcached.toml --shm-name "deploycheck$$" --l1-size-gb 0.0625 --prometheus-port 0
    --bind "ipc:///run/lmcached/check.sock")
  local pool="/dev/shm/lmcache_l1_pool_deploycheck$$" inode= http pid
  for round in first second; do
    http=$(port)
    "${run[@]}" --http-port "$http" 2>"$work/$round.log" &
    pid=$!
    pids+=("$pid")
    ready "$pid" "$http"
    /usr/bin/lmcache-ctl --url "http://127.0.0.1:$http" ping
    [ -S /run/lmcached/check.sock ]
    [ "$(stat -c %U "$pool")" = lmcached ]
    [ -z "$inode" ] || [ "$inode" = "$(stat -c %i "$pool")" ]
    inode=$(stat -c %i "$pool")
    kill "$pid"
    wait "$pid"
  done
  grep -q "taken_over=true" "$work/second.log"
}

if am_root && command -v dpkg >/dev/null; then
  was_there=no
  dpkg-query -W -f '${Status}' lmcached 2>/dev/null | grep -q "ok installed" && was_there=yes
  dpkg -i "$deb" >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; exit 1; }
  /usr/bin/lmcached --version
  getent passwd lmcached >/dev/null
  twice_as_lmcached
  echo "ok installed"
  if command -v systemd-analyze >/dev/null; then
    for unit in lmcached.service lmcached.socket; do
      said=$(systemd-analyze verify "/usr/lib/systemd/system/$unit" 2>&1) || true
      # About other units of this machine it may say what it likes.
      if grep -q "lmcached" <<<"$said"; then echo "$said" >&2; exit 1; fi
    done
    systemd-analyze security --offline=true --threshold=35 lmcached.service | tail -1
    echo "ok units"
  else
    skip units "no systemd-analyze"
  fi
  if [ "$was_there" = no ]; then dpkg --purge lmcached >>"$work/dpkg.log" 2>&1; fi
else
  skip installed "not root: the package is only unpacked"
  rm -rf "$work/unpacked"
  dpkg-deb -x "$deb" "$work/unpacked"
  "$work/unpacked/usr/bin/lmcached" --version
  "$work/unpacked/usr/bin/lmcache-ctl" --version
  if command -v systemd-analyze >/dev/null; then
    mkdir -p "$work/units"
    for unit in lmcached.service lmcached.socket; do
      sed "s|/usr/bin/lmcached|$work/unpacked/usr/bin/lmcached|" "deploy/systemd/$unit" >"$work/units/$unit"
    done
    said=$(systemd-analyze verify "$work"/units/* 2>&1) || true
    if grep -q "lmcached" <<<"$said"; then echo "$said" >&2; exit 1; fi
    echo "ok units"
  else
    skip units "no systemd-analyze"
  fi
fi

# --- Manifests ------------------------------------------------------------------------------------------------------
if ! [ -x "$tools/kubernetes/bin/kubernetes-validate" ]; then
  python3 -m venv "$tools/kubernetes"
  "$tools/kubernetes/bin/pip" install --quiet --disable-pip-version-check 'kubernetes-validate==1.37.*'
fi
# The schemas are in the package: no cluster and no network. Unknown fields are errors.
"$tools/kubernetes/bin/kubernetes-validate" --strict deploy/kubernetes/*.yaml
grep -RnE 'host(IPC|PID|Network): *true|privileged: *true' deploy/kubernetes && { echo "that is more than is needed" >&2; exit 1; }
# The configuration in the manifest is one that the daemon reads.
"$tools/kubernetes/bin/python" - "$work/pod.toml" <<'PYTHON'
import sys, yaml
for document in yaml.safe_load_all(open("deploy/kubernetes/daemonset.yaml")):
    if document["kind"] == "ConfigMap":
        open(sys.argv[1], "w").write(document["data"]["lmcached.toml"])
PYTHON
line=$("$binary" --config "$work/pod.toml" --drain-seconds -1 2>&1) || true
grep -q -- "--drain-seconds -1" <<<"$line" || { echo "$line" >&2; exit 1; }
echo "ok manifests"

# --- Container ------------------------------------------------------------------------------------------------------
deploy/container/stage.sh "$work/container" "$binary" "$keeper" "$ctl"
# The file system is whole: the binary runs with nothing else there.
if am_root && command -v chroot >/dev/null; then
  chroot "$work/container/rootfs" /usr/bin/lmcached --version
  # As the container starts it.
  chroot "$work/container/rootfs" /usr/bin/lmcached-keeper /usr/bin/lmcached --version
  chroot "$work/container/rootfs" /usr/bin/lmcache-ctl --version
elif command -v unshare >/dev/null && unshare --user --map-root-user true 2>/dev/null; then
  unshare --user --map-root-user chroot "$work/container/rootfs" /usr/bin/lmcached --version
else
  skip rootfs "neither root nor user namespaces to try the file system with"
fi
if command -v buildah >/dev/null; then
  storage=(--root "$work/buildah" --runroot "$work/buildah-run" --storage-driver vfs)
  if timeout 120 buildah "${storage[@]}" build --isolation chroot --quiet --file deploy/container/Containerfile \
    --tag lmcached "$work/container" >"$work/buildah.log" 2>&1; then
    buildah "${storage[@]}" inspect --type image lmcached |
      python3 -c 'import json, sys; c = json.load(sys.stdin)["OCIv1"]["config"]; assert c["Entrypoint"] == ["/usr/bin/lmcached-keeper", "/usr/bin/lmcached"] and c["StopSignal"] == "SIGTERM", c'
    buildah "${storage[@]}" rmi --all >/dev/null 2>&1 || true
    rm -rf "$work/buildah" "$work/buildah-run"
    echo "ok container"
  elif grep -qiE "operation not permitted|newuidmap|user namespace|unshare" "$work/buildah.log"; then
    skip container "this machine does not let buildah work: $(tail -1 "$work/buildah.log")"
  else
    cat "$work/buildah.log" >&2
    exit 1
  fi
else
  skip container "no buildah, and not root to install Debian's"
fi

[ "$skipped" = 0 ] || echo "$skipped parts were skipped on this machine; see above"
