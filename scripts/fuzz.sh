#!/bin/sh
# Builds the fuzz targets with clang and runs each for a while, as many side by side as there are processors, from the
# repository's small files on. What they find stays in BUILD_FOLDER/corpus; an input that breaks a reader is written to
# BUILD_FOLDER, with the target's log beside it, and makes the exit code 1.
# Usage: scripts/fuzz.sh BUILD_FOLDER [SECONDS_EACH [EXECUTIONS_EACH]]     EXECUTIONS_EACH: however long they take
# With 0 seconds the targets are built, not run.
# FUZZ_TARGETS="read_npy read_meta" runs those alone; FUZZ_JOBS: targets side by side.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
limit=-max_total_time=${2:-60}
[ -z "${3:-}" ] || limit=-runs=$3

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER=clang++-14 \
  -DHXQ_BUILD_FUZZ=ON >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build"
[ "$limit" != -max_total_time=0 ] || exit 0

mkdir -p "$build/corpus"
cp -r "$root"/fuzz/seeds/. "$build/corpus"
mkdir -p "$build/corpus/read_config"
for folder in "$root"/tests/golden/1 "$root"/tests/e2e/*/; do
  cp "$folder/config.json" "$build/corpus/read_config/$(basename "$folder")"
done
chmod -R u+w "$build/corpus"

cd "$build"
targets=${FUZZ_TARGETS:-$(find fuzz -maxdepth 1 -type f -executable -name 'fuzz_*' | sed 's,.*/fuzz_,,' | sort)}
# Readers of whole folders write their input to a file for each execution: into memory, where there is such a folder.
[ -d /dev/shm ] && [ -w /dev/shm ] && export TMPDIR=/dev/shm
export limit
run='"fuzz/fuzz_$1" "$limit" -max_len=8192 -timeout=20 -rss_limit_mb=3000 -print_final_stats=1 -verbosity=0 -print_funcs=0 \
       -artifact_prefix="$PWD/$1-" "corpus/$1" >"$1.log" 2>&1 || { echo "fuzz_$1 failed:"; cat "$1.log"; exit 1; }
     count() { sed -n "s/^stat::$1: *//p" "$2"; }
     printf "%-24s %9s executions, %6s a second, %5s new inputs, no finding\n" "$1" \
       "$(count number_of_executed_units "$1.log")" "$(count average_exec_per_sec "$1.log")" \
       "$(count new_units_added "$1.log")"'
printf '%s\n' $targets | xargs -P "${FUZZ_JOBS:-$(nproc)}" -I '{}' sh -c "$run" fuzz '{}'
