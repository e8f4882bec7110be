#!/usr/bin/env bash
# Puts together the root file system of the CPU image: the two binaries, the C library they need, a passwd entry, licences.
#   scripts/image_root.sh BUILD_DIR OUT_DIR       prints its size; fails above the budget of 40 MB
set -euo pipefail
cd "$(dirname "$0")/.."
build="$1" out="$2" budget_bytes=$((40 * 1000 * 1000))

rm -rf "$out"
mkdir -p "$out"/{usr/bin,etc,tmp,usr/share/doc/inferd,lib64}
for program in inferd inferctl; do
    [ -x "$build/$program" ] || continue
    strip -o "$out/usr/bin/$program" "$build/$program"
    ldd "$build/$program" | awk '$2 == "=>" && $3 ~ /^\// {print $3} $1 ~ /^\// {print $1}' | sort -u |
        while read -r library; do
            mkdir -p "$out$(dirname "$library")"
            cp -Lu "$library" "$out$library"
        done
done
# Names are resolved with the C library's own plug-ins.
for plugin in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2; do
    path="$(ldconfig -p | awk -v n="$plugin" '$1 == n {print $NF; exit}')"
    [ -n "$path" ] && mkdir -p "$out$(dirname "$path")" && cp -Lu "$path" "$out$path"
done
echo 'inferd:x:65532:65532::/:/sbin/nologin' >"$out/etc/passwd"
echo 'inferd:x:65532:' >"$out/etc/group"
echo 'hosts: files dns' >"$out/etc/nsswitch.conf"
cp NOTICE "$out/usr/share/doc/inferd/"
scripts/sbom.sh "$build/inferd" >"$out/usr/share/doc/inferd/sbom.spdx.json"

size="$(du -sb "$out" | cut -f1)"
echo "image root: $size bytes (budget $budget_bytes)"
[ "$size" -le "$budget_bytes" ]
