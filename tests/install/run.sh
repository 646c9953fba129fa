#!/bin/sh
# Installs the build and uses it from a project of its own. Usage: run.sh BUILD_FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$1" --prefix "$work/prefix" >/dev/null
cmake -S "$here" -B "$work/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/build" >/dev/null
"$work/build/consumer" "$here/../../models/wiki-mamba-7m" "$work/out"

cmake -S "$here" -B "$work/runtime" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" -DHXQ_RUNTIME_ALONE=ON >/dev/null
cmake --build "$work/runtime" >/dev/null
"$work/runtime/runner" "$work/out"
if ldd "$work/runtime/runner" | grep -E 'pcre2|utf8proc'; then
  echo "the runtime alone links what only text needs" >&2
  exit 1
fi

# The README's program, as it stands there.
sed -n '/^```cpp$/,/^```$/{/^```/!p}' "$here/../../README.md" >"$work/program.cc"
cmake -S "$here" -B "$work/readme" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" \
  -DHXQ_README_EXAMPLE="$work/program.cc" >/dev/null
cmake --build "$work/readme" >/dev/null
mkdir "$work/build-folder" "$work/build-folder/build"
ln -s "$work/out" "$work/build-folder/build/mine"
(cd "$work/build-folder" && "$work/readme/program") | grep -q .
