#!/usr/bin/env bash
# Puts binaries and what they need to run into DIR/rootfs: stage.sh DIR BINARY...
set -euo pipefail
root=$(realpath -m "$1")/rootfs
shift
rm -rf "$root"
mkdir -p "$root"/{usr/bin,etc,dev/shm,run/lmcached,var/lib/lmcached,tmp,proc,sys,lib64}
chmod 1777 "$root/tmp" "$root/dev/shm"
install -m 0755 "$@" "$root/usr/bin/"
# A tenth of the size; the names of functions in backtraces stay.
if command -v strip >/dev/null; then strip --strip-debug "$root"/usr/bin/*; fi
# The loader, the C library and what Rust links besides, where the loader looks for them.
for binary in "$@"; do ldd "$binary"; done | grep -oE '/[^ ]+' | sort -u | while read -r library; do
  install -D -m 0755 "$(realpath "$library")" "$root$library"
done
# Names of hosts, with the C library's own resolver.
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
# Certificates, for L2 stores behind TLS.
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
  install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
fi
