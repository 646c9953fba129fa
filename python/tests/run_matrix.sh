#!/bin/sh
# The tests on the oldest and the newest lines of transformers that are supported.
# Usage: python/tests/run_matrix.sh BUILD_FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for transformers in "transformers==4.56.*" "transformers==4.57.*" "transformers>=5,<6"; do
  "$here/run.sh" "$1" "$transformers"
done
