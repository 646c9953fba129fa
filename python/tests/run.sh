#!/bin/sh
# Builds the wheel, installs it with its extras into a fresh environment, runs the example a reader would type, and the
# tests. Usage: python/tests/run.sh [BUILD_FOLDER [TRANSFORMERS_REQUIREMENT]]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build}
transformers=${2:-transformers}
environment=$build/python-$(echo "$transformers" | tr -c 'A-Za-z0-9.\n' '_')
python=$environment/bin/python

rm -rf "$environment"
mkdir -p "$build"
python3 -m venv "$environment"
"$python" -m pip install -q --disable-pip-version-check "${HXQ_TORCH:-torch==2.13.0}" "$transformers" pytest
(cd "$root/python" && "$python" -m pip install -q --disable-pip-version-check ".[hf,peft]")
"$python" -m pip list --disable-pip-version-check 2>/dev/null | grep -Ei '^(helix|torch|transformers|peft|accelerate|safetensors) '

cd "$build"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m helix_substrate compress "$root/models/wiki-mamba-7m" "$work/hxq"
"$python" "$root/examples/load_and_generate.py" "$work/hxq"
"$python" -m pytest -q -x -p no:cacheprovider "$root/python/tests"
