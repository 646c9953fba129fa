#!/bin/sh
# Compresses the bundled model, checks it, lets it write, and measures what compression cost.
# Usage: scripts/demo.sh HXQ_COMMAND OUTPUT_FOLDER
set -eu
hxq=$1
out=$2
root=$(cd "$(dirname "$0")/.." && pwd)
model=$root/models/wiki-mamba-7m
text=$root/models/wikitext2-excerpt.txt
compressed=$out/wiki-mamba-7m-hxq
mkdir -p "$out"

say() { printf '\n== %s\n' "$1"; }

say "hxq compress models/wiki-mamba-7m $compressed"
"$hxq" compress --force "$model" "$compressed"

say "hxq verify $compressed --source models/wiki-mamba-7m"
"$hxq" verify "$compressed" --source "$model"

say "hxq generate $compressed --prompt \"The city of London is\""
"$hxq" generate "$compressed" --echo --stream --prompt "The city of London is" --max-tokens 64 --repetition-penalty 1.3

say "hxq perplexity $compressed --text models/wikitext2-excerpt.txt --against models/wiki-mamba-7m"
"$hxq" perplexity "$compressed" --text "$text" --against "$model"
