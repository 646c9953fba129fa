#!/bin/bash
# Builds the CUDA kernels on a machine with nvcc, CMake, ninja, Python and torch, checks them and times them beside
# torch. Needs no network; the unit tests are built where GTest is there. Prints rows for bench/results.csv.
#
#     bench/gpu.sh [FOLDER]     FOLDER (default: build-gpu) gets the build, the rows and a log
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-build-gpu}" && cd "${1:-build-gpu}" && pwd)

arch=${HXQ_CUDA_ARCH:-90a}
shopt -s extglob
sources=("$root"/src/kernels/cuda/*.cu "$root"/src/kernels/cuda/!(*_test).cc)
objects=()
jobs=()
for source in "${sources[@]}" "$root"/bench/{gpu_bench,gpu_sequences}.cu; do
  object=$out/$(basename "$source").o
  [[ $source == "$root"/bench/* ]] || objects+=("$object")
  nvcc -std=c++20 -O3 "-gencode=arch=compute_$arch,code=sm_$arch" -Xptxas -v -I"$root/include" -I"$root/src" \
    -c "$source" -o "$object" 2> "$object.log" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
for program in gpu_bench gpu_sequences; do
  nvcc -o "$out/$program" "$out/$program.cu.o" "${objects[@]}" -ldl
done

# torch's own cuBLAS serves the prefill of both sides.
cublas=$(python3 -c 'import glob, os, sys
found = [p for d in sys.path for p in glob.glob(os.path.join(d, "nvidia", "*", "lib", "libcublas.so.1*"))]
print(os.path.dirname(found[0]) if found else "")')
export LD_LIBRARY_PATH=${cublas:+$cublas:}${LD_LIBRARY_PATH:-}
"$out/gpu_bench" > "$out/results.csv"
"$out/gpu_sequences" | tail -n +3 >> "$out/results.csv"  # without the heading and R again
python3 "$root/bench/gpu_torch.py" >> "$out/results.csv"
# The Python package, where python3 finds it with its libraries.
if python3 -c 'import helix_substrate, peft, transformers' 2> "$out/python.log"; then
  python3 "$root/bench/gpu_python.py" >> "$out/results.csv" 2>> "$out/python.log"
else
  echo "helix_substrate, peft or transformers is missing: the Python package is not measured" >&2
fi
cat "$out"/*.log > "$out/log"
cat "$out/results.csv"
