#!/usr/bin/env bash
# Builds a current gRPC C core (1.85.1, hash-pinned) into the cache, for -DINFERD_GRPC=bundled: about 4 minutes on two cores.
# Does nothing when it is there already, built by the same recipe (cmake/grpc).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

out="${INFERD_GRPC_DIR:-$CACHE/grpc-1.85.1}"
if [ -f "$out/lib/libgrpc_core.a" ] && diff -rq cmake/grpc "$out/share/recipe" >/dev/null 2>&1; then
    echo "gRPC core: $out"
    exit 0
fi

need_packages $BUILD_PACKAGES clang g++ zlib1g-dev python3-venv
work="$CACHE/grpc-build"
mkdir -p "$work"

step "fetch the gRPC source package"
if ! ls "$work"/grpcio-1.85.1.tar.gz >/dev/null 2>&1; then
    [ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check 'setuptools>=77' Cython
    "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary grpcio --no-build-isolation \
        -d "$work" grpcio==1.85.1
fi

step "build the gRPC core"
cmake -G Ninja -S cmake/grpc -B "$work/build" -DGRPC_SOURCE_PACKAGE="$work/grpcio-1.85.1.tar.gz" \
    -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ >/dev/null
cmake --build "$work/build" -- --quiet
cmake --install "$work/build" --prefix "$out" >/dev/null
rm -rf "$work/build"
echo "gRPC core: $out"
