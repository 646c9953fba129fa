#!/bin/sh
# Makes the Python environments of scripts/test.sh: the one of the C++ tests, and one for each line of transformers. Those
# that are there already stay.
# Usage: scripts/environments.sh BUILD_FOLDER TRANSFORMERS_REQUIREMENT...
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$1
shift
venv=$build/venv

if ! cmp -s "$root/tests/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --no-compile --disable-pip-version-check -r "$root/tests/requirements.txt"
  cp "$root/tests/requirements.txt" "$venv/requirements.txt"
fi
# OpenAI's client of the major release before the one that the tests have.
older=$build/openai-1
if ! [ -d "$older" ]; then
  rm -rf "$older.new"
  "$venv/bin/pip" install -q --disable-pip-version-check --target "$older.new" "openai>=1,<2"
  mv "$older.new" "$older"
fi

for transformers in "$@"; do "$root/python/tests/environment.sh" "$build" "$transformers"; done
