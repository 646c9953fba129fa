#!/bin/sh
# Installs the wheel with its extras into an environment of the build folder, and runs the tests there. Prints one line if
# they pass, everything if they do not.
# Usage: python/tests/run.sh BUILD_FOLDER [TRANSFORMERS_REQUIREMENT [PYTEST_ARGUMENT...]]
# HXQ_WHEEL: the wheel that python/tests/wheel.sh has built; without it, one is built.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
transformers=${2:-transformers>=5,<6}
[ $# -le 2 ] && set -- || shift 2
python=$("$here/environment.sh" "$build" "$transformers")
wheel=${HXQ_WHEEL:-$("$here/wheel.sh" "$build" "$python")}
install() { "$python" -m pip install -q --no-compile --disable-pip-version-check "$@"; }
install --no-deps --force-reinstall "$wheel" # the one before may have the same version
install "$wheel[hf,peft]"

cd "$build"
version=$("$python" -c 'import transformers, torch; print(f"transformers {transformers.__version__}, torch {torch.__version__}")')
log=${python%/bin/python}/pytest.log
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # threads that spin lose much where other programs run too
if ! "$python" -m pytest -q -p no:cacheprovider --durations=5 "$here" "$@" >"$log" 2>&1; then
  cat "$log"
  exit 1
fi
echo "python tests, $version: $(tail -n 1 "$log")"
