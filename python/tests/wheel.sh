#!/bin/sh
# Builds the wheel that the Python tests install, and prints where it is.
# Usage: python/tests/wheel.sh BUILD_FOLDER PYTHON     PYTHON: of an environment with pip
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
python=$2
wheels=$build/python-wheel
rm -rf "$wheels"
# By the long name: Debian 12's pip has no other.
wheel() { (cd "$root" && "$python" -m pip wheel -q --disable-pip-version-check --no-deps -w "$wheels" "$@" . >&2); }

# In the folder of the C++ tests the wheel is built from what is compiled there. Elsewhere, HXQ_CUDA=ON where there is a
# GPU: without one the kernels would be compiled, for minutes, and not be used.
if [ -f "$build/CMakeCache.txt" ]; then
  rm -f "$build/.skbuild-info.json" # of the wheel before, whose pip was elsewhere: everything would be compiled anew
  wheel --config-settings=build-dir="$build" --config-settings=cmake.define.HXQ_BUILD_TOOLS=ON \
    --config-settings=cmake.define.HXQ_BUILD_TESTS=ON
  cmake -U 'SKBUILD*' "$build" >/dev/null # or the folder would go on building the library as a wheel has it
else
  wheel --config-settings=cmake.define.HXQ_CUDA="${HXQ_CUDA:-OFF}"
fi
echo "$wheels"/*.whl
