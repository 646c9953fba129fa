#!/bin/sh
# Builds everything with tests and runs them. Python runs in virtual environments inside the build folder, which are made
# while the compiler works.
# Usage: scripts/test.sh BUILD_FOLDER
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$1
mkdir -p "$build"
build=$(cd "$build" && pwd)
# Python keeps what it compiles: torch and transformers take seconds, and many tests start them anew.
unset PYTHONDONTWRITEBYTECODE
newest="transformers>=5,<6"
older="transformers==4.57.*"

# What runs in the background is a session of its own, which ends as a whole with this script.
background=""
trap 'for session in $background; do kill -- "-$session" 2>/dev/null || true; done' EXIT
trap 'exit 130' HUP INT TERM
setsid "$root/scripts/environments.sh" "$build" "$newest" "$older" >"$build/environments.log" 2>&1 &
environments=$!
background=$environments

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHXQ_BUILD_TESTS=ON -DHXQ_BUILD_BENCH=OFF \
  -DHXQ_TEST_PYTHON="$build/venv/bin/python" >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build"
wait "$environments" || { cat "$build/environments.log"; exit 1; }
ctest --test-dir "$build" --output-on-failure --parallel 2 || {
  echo "What failed in them:"  # once more: above, it stands before a thousand lines about tests that were skipped
  grep -E '^(FAILED|ERROR) |^E  |^\[  FAILED  \]|Failure$|^terminate called|Sanitizer:' "$build/Testing/Temporary/LastTest.log" | tail -n 40
  exit 1
}

# The Python front: everything on the newest transformers and, beside that, what depends on its release on the last of the
# 4 line. Either keeps one processor busy.
python=$("$root/python/tests/environment.sh" "$build" "$newest")
HXQ_WHEEL=$("$root/python/tests/wheel.sh" "$build" "$python")
export HXQ_WHEEL
setsid "$root/python/tests/run.sh" "$build" "$newest" >"$build/python.log" 2>&1 &
suite=$!
background=$suite
"$root/python/tests/run.sh" "$build" "$older" -m "not release_independent"

# OpenAI's client of another major release, and a codec that the library does not have through Python, which needs torch.
pytest="-m pytest -q -p no:cacheprovider"
PYTHONPATH=$build/openai-1 "$build/venv/bin/python" $pytest "$root/tests/serve/test_openai.py" --hxq "$build/hxq"
toy=$build/tests/toy_codec
"$python" $pytest "$root/tests/toy_codec" -k python --hxq "$toy/hxq_command_with_row_int8" \
  --plain-hxq "$build/hxq" --library "$toy/libhxq_c_with_row_int8.so"
wait "$suite" || failed=1
cat "$build/python.log"
exit "${failed:-0}"
