#!/bin/sh
# The tests on the oldest and the newest transformers that are supported, each in an environment of its own.
# Usage: python/tests/run_matrix.sh [BUILD_FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for transformers in "transformers==4.56.*" "transformers==4.57.*" "transformers>=5,<6"; do
  echo "== $transformers"
  "$here/run.sh" "${1:-$here/../../build}" "$transformers"
done
