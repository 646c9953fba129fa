#!/bin/sh
# Builds the fuzz targets with clang and runs each for a while, from the repository's small files on. What they find stays
# in BUILD_FOLDER/corpus; an input that breaks a reader is written beside it and ends the run.
# Usage: scripts/fuzz.sh BUILD_FOLDER [SECONDS_EACH]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
seconds=${2:-60}

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++-14 \
  -DHXQ_BUILD_FUZZ=ON >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build"

mkdir -p "$build/corpus"
cp -r "$root"/fuzz/seeds/. "$build/corpus"
mkdir -p "$build/corpus/read_config"
for folder in "$root"/tests/golden/1 "$root"/tests/e2e/*/; do
  cp "$folder/config.json" "$build/corpus/read_config/$(basename "$folder")"
done
chmod -R u+w "$build/corpus"

cd "$build"
for target in fuzz/fuzz_*; do
  [ -x "$target" ] && [ -f "$target" ] || continue
  reader=${target#fuzz/fuzz_}
  printf '\n== %s\n' "$reader"
  "$target" -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=3000 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$build/" "corpus/$reader"
done
