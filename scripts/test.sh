#!/bin/sh
# Builds everything with tests and runs them. Python runs in virtual environments inside the build folder.
# Usage: scripts/test.sh BUILD_FOLDER
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$1
mkdir -p "$build"
build=$(cd "$build" && pwd)
venv=$build/venv

if ! cmp -s "$root/tests/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --no-compile --disable-pip-version-check -r "$root/tests/requirements.txt"
  cp "$root/tests/requirements.txt" "$venv/requirements.txt"
fi

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHXQ_BUILD_TESTS=ON -DHXQ_BUILD_BENCH=OFF \
  -DHXQ_TEST_PYTHON="$venv/bin/python" >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure --parallel 2

# OpenAI's client of the major release before the one that the tests have.
older=$build/openai-1
[ -d "$older/openai" ] || "$venv/bin/pip" install -q --disable-pip-version-check --target "$older" "openai>=1,<2"
PYTHONPATH=$older "$venv/bin/python" -m pytest -q -p no:cacheprovider "$root/tests/serve/test_openai.py" --hxq "$build/hxq"

# The Python front: everything on the newest transformers, what depends on its release on the last of the 4 line.
"$root/python/tests/run.sh" "$build" "transformers>=5,<6"
"$root/python/tests/run.sh" "$build" "transformers==4.57.*" -m "not release_independent"

# A codec that the library does not have, through Python too: that needs torch.
newest=$build/python-$(echo "transformers>=5,<6" | tr -c 'A-Za-z0-9.\n' '_')/bin/python
toy=$build/tests/toy_codec
"$newest" -m pytest -q -p no:cacheprovider "$root/tests/toy_codec" -k python --hxq "$toy/hxq_command_with_row_int8" \
  --plain-hxq "$build/hxq" --library "$toy/libhxq_c_with_row_int8.so"
