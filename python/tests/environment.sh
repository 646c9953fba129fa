#!/bin/sh
# Makes an environment of the build folder for the Python tests, kept while what it is made of stays the same: torch, a
# transformers, and what the package's extras need. The package itself comes into it with run.sh. Prints its python.
# Usage: python/tests/environment.sh BUILD_FOLDER [TRANSFORMERS_REQUIREMENT]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
transformers=${2:-transformers>=5,<6}
torch=${HXQ_TORCH:-torch==2.13.0}
environment=$build/python-$(echo "$transformers" | tr -c 'A-Za-z0-9.\n' '_')
python=$environment/bin/python
# Most modules of torch are never imported: those that are, Python compiles then.
install() { "$python" -m pip install -q --no-compile --disable-pip-version-check "$@" >&2; }

made_of=$(echo "$torch $transformers" && cat "$root/pyproject.toml")
if [ "$(cat "$environment/made_of" 2>/dev/null)" != "$made_of" ]; then
  rm -rf "$environment"
  python3 -m venv "$environment" >&2
  # torch first: a range in another package's requirements could take a build for GPUs.
  install "$torch"
  install "$transformers" accelerate peft pytest # what else the extras name comes with the package
  echo "$made_of" >"$environment/made_of"
fi
echo "$python"
