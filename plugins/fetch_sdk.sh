#!/bin/sh
# Bring the headers that the plugins are compiled against into build/sdk; a part that cannot be had
# is a message, since CMake leaves out what needs it.
#
#   TensorRT      the Python package kernel-lens, which carries the public headers
#   ONNX Runtime  Debian's package libonnxruntime-dev, from trixie: bookworm has none
#
# TENSORRT_INCLUDE_DIR and ONNXRUNTIME_INCLUDE_DIR name headers that are here already.
set -u
PIP=${PIP:-"python3 -m pip"}
root=$(cd "$(dirname "$0")/.." && pwd)
sdk=${1:-"$root/build/sdk"}

tensorrt() {
    $PIP install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$sdk/tensorrt" 'kernel-lens==2.0.1'
}

onnxruntime() {
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] || return 1
    apt=$sdk/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" || return 1
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian trixie main" >"$apt/trixie.list"
    set -- -qq -o "Dir::Etc::sourcelist=$apt/trixie.list" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=
    (cd "$apt" && apt-get "$@" update && apt-get "$@" download libonnxruntime-dev) || return 1
    dpkg -x "$apt"/libonnxruntime-dev_*.deb "$sdk/onnxruntime" && rm -rf "$apt"
}

mkdir -p "$sdk"
[ -n "${TENSORRT_INCLUDE_DIR:-}" ] || [ -d "$sdk/tensorrt/kernel_lens" ] || tensorrt \
    || echo "no TensorRT headers: set TENSORRT_INCLUDE_DIR" >&2
[ -n "${ONNXRUNTIME_INCLUDE_DIR:-}" ] || [ -d "$sdk/onnxruntime/usr" ] || onnxruntime \
    || echo "no ONNX Runtime headers: set ONNXRUNTIME_INCLUDE_DIR" >&2
