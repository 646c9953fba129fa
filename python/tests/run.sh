#!/bin/sh
# Builds the wheel, installs it with its extras into an environment of the build folder (kept while what it is made of stays
# the same), and runs the tests there. Prints one line if they pass, everything if they do not.
# Usage: python/tests/run.sh BUILD_FOLDER [TRANSFORMERS_REQUIREMENT [PYTEST_ARGUMENT...]]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
transformers=${2:-transformers>=5,<6}
torch=${HXQ_TORCH:-torch==2.13.0}
[ $# -le 2 ] && set -- || shift 2
environment=$build/python-$(echo "$transformers" | tr -c 'A-Za-z0-9.\n' '_')
python=$environment/bin/python
# Most modules of torch are never imported: those that are, Python compiles then.
install() { "$python" -m pip install -q --no-compile --disable-pip-version-check "$@"; }
# In the folder of the C++ tests the wheel is built from what is compiled there. Elsewhere, HXQ_CUDA=ON where there is a
# GPU: without one the kernels would be compiled, for minutes, and not be used.
install_package() {
  if [ -f "$build/CMakeCache.txt" ]; then
    # By the long name: Debian 12's pip has no other.
    (cd "$root" && install --config-settings=build-dir="$build" --config-settings=cmake.define.HXQ_BUILD_TOOLS=ON \
      --config-settings=cmake.define.HXQ_BUILD_TESTS=ON "$@")
    cmake -U 'SKBUILD*' "$build" >/dev/null # or the folder would go on building the library as a wheel has it
  else
    (cd "$root" && install --config-settings=cmake.define.HXQ_CUDA="${HXQ_CUDA:-OFF}" "$@")
  fi
}

made_of=$(echo "$torch $transformers" && cat "$root/pyproject.toml")
if [ "$(cat "$environment/made_of" 2>/dev/null)" != "$made_of" ]; then
  rm -rf "$environment"
  python3 -m venv "$environment"
  # torch first: a range in another package's requirements could take a build for GPUs.
  install "$torch"
  install "$transformers" pytest
  install_package ".[hf,peft]"
  echo "$made_of" >"$environment/made_of"
else
  install_package --no-deps .
fi

cd "$build"
version=$("$python" -c 'import transformers, torch; print(f"transformers {transformers.__version__}, torch {torch.__version__}")')
log=$environment/pytest.log
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # threads that spin lose much where other programs run too
if ! "$python" -m pytest -q -p no:cacheprovider --durations=5 "$root/python/tests" "$@" >"$log" 2>&1; then
  cat "$log"
  exit 1
fi
echo "python tests, $version: $(tail -n 1 "$log")"
