#!/bin/sh
# Builds everything with tests and runs them. Python tests run in a virtual environment inside the build folder.
# Usage: scripts/test.sh BUILD_FOLDER
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$1
mkdir -p "$build"
build=$(cd "$build" && pwd)
venv=$build/venv

if ! cmp -s "$root/tests/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$root/tests/requirements.txt"
  cp "$root/tests/requirements.txt" "$venv/requirements.txt"
fi

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHXQ_BUILD_TESTS=ON -DHXQ_BUILD_BENCH=OFF \
  -DHXQ_TEST_PYTHON="$venv/bin/python" >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure --parallel 2
