#!/usr/bin/env bash
# Compiles inferd with the CUDA backend for sm_80, 86, 89 and 90a: build/cuda-all/inferd. Needs no GPU.
# Uses nvcc 13 from PATH or /usr/local/cuda; else installs the compiler's Python packages into the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

CUDA_WHEELS="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3"

nvcc_is_13() { [ -x "$1" ] && "$1" --version | grep -q 'release 13\.'; }

find_nvcc() {
    local n
    for n in "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        nvcc_is_13 "$n" && { echo "$n"; return 0; }
    done
    local venv="$CACHE/cuda"
    if [ ! -x "$venv/bin/python" ]; then python3 -m venv "$venv" >&2; fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps $CUDA_WHEELS >&2
    n="$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)"
    # The wheels have lib/ where the toolkit has lib64/.
    [ -e "${n%/bin/nvcc}/lib64" ] || ln -s lib "${n%/bin/nvcc}/lib64"
    nvcc_is_13 "$n" || die "no nvcc 13: install the CUDA toolkit, or see why its Python packages did not install"
    echo "$n"
}

need_packages $BUILD_PACKAGES g++ python3-venv
nvcc="$(find_nvcc)"
echo "nvcc: $nvcc"
cmake --preset cuda-all -DINFERD_TESTS=OFF ${INFERD_CUDA_OPTIONS:-} -DCMAKE_CUDA_COMPILER="$nvcc" "-DCUDAToolkit_ROOT=${nvcc%/bin/nvcc}" >/dev/null
cmake --build --preset cuda-all -- --quiet inferd
ls -l build/cuda-all/inferd
