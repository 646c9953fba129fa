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

for reader in safetensors config npy tokenizer template; do mkdir -p "$build/corpus/$reader"; done
for folder in "$root"/tests/golden/1 "$root"/tests/e2e/*/; do
  name=$(basename "$folder")
  cp "$folder/config.json" "$build/corpus/config/$name"
  cp "$folder/model.safetensors" "$build/corpus/safetensors/$name"
done
cp "$root/fuzz/tokenizer.json" "$build/corpus/tokenizer"
cp "$root/fuzz/chat_template.jinja" "$build/corpus/template"
chmod -R u+w "$build/corpus"

cd "$build"
for reader in safetensors config npy tokenizer template; do
  fuzz/fuzz_read_$reader -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -artifact_prefix="$build/" "corpus/$reader"
done
