#!/usr/bin/env bash
# Builds libmicrohttpd without HTTPS from the distribution's source package into the cache, for -DINFERD_STATIC=ON: Debian's static
# archive drags in GnuTLS, parts of which have no static form. Does nothing when it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

out="${INFERD_MICROHTTPD_DIR:-$CACHE/microhttpd}"
[ -f "$out/lib/libmicrohttpd.a" ] && { echo "libmicrohttpd: $out"; exit 0; }
need_packages gcc make dpkg-dev pkg-config
work="$(mktemp -d "${TMPDIR:-/tmp}/microhttpd.XXXXXX")"
trap 'rm -rf "$work"' EXIT

step "fetch the source package of libmicrohttpd"
mkdir -p "$work/lists/partial" "$work/parts"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    [ -f "$file" ] || continue
    case "$file" in
    *.sources) sed 's/^Types:.*/Types: deb-src/' "$file" >"$work/parts/$(basename "$file")" ;;
    *) sed -n 's/^deb /deb-src /p' "$file" >"$work/parts/$(basename "$file" .list).list" ;;
    esac
done
options=(-qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/parts" -o Dir::State::Lists="$work/lists"
    -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
(cd "$work" && apt-get "${options[@]}" source libmicrohttpd >/dev/null)

step "build libmicrohttpd"
cd "$work"/libmicrohttpd-*/
./configure --quiet --prefix="$out" --disable-shared --enable-static --disable-https --disable-doc --disable-examples \
    --disable-curl --disable-nls --with-pic CFLAGS="-O2 -fstack-protector-strong" >/dev/null
make -s -j2 -C src/microhttpd >/dev/null
make -s -C src/microhttpd install >/dev/null
make -s -C src/include install >/dev/null
echo "libmicrohttpd: $out"
