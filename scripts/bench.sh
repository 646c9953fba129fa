#!/bin/sh
# Prints the CPU figures that need no other program, those of products and of the encoder with a check of what was
# computed; those that are compared with other programs come from bench/*.py, which say what they need.
# Usage: scripts/bench.sh BUILD_FOLDER
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
models=$build/bench-models
mkdir -p "$models"

say() { printf '\n== %s\n' "$1"; }

say "products with a codebook: share of read bandwidth, share of OpenBLAS"
"$build/bench/kernel_bench"
say "encoder: rate"
"$build/bench/encoder_bench"
say "encoder: error against the percentile recipe"
"$build/bench/encoder_bench" "$root/models/wiki-mamba-7m"
for shape in mamba-130m tinyllama-1.1b; do
  [ -d "$models/$shape" ] || "$build/bench/make_model" --shape "$shape" "$models/$shape"
  say "random weights in the shape of $shape"
  "$build/hxq" bench "$models/$shape"
done
