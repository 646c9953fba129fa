"""Prints the table of docs/cuda-notes.md: registers, stack and shared memory of kernels, as cuobjdump reports them.

    scripts/cuda_resources.py build/libhxq_cuda.so
    scripts/cuda_resources.py --check build/libhxq_cuda.so      # fails where a hot kernel keeps anything on a stack

Hot are those that a step of a model launches for aligned matrices with levels of 16 bits; not the product of 128
columns, whose bringing warps keep a few bytes on a stack.
"""

import re
import subprocess
import sys

#: Each must be there.
HOT = [
    r"gemv_kernel<\d, true, \d+>",
    r"grouped_gemv_kernel<.*>",
    r"gemm_kernel<(8|16|32|64), \d, false, true>",
    r"batch_gemv_kernel<.*>",
    r"skinny_gemm_kernel<.*>",
    r"tile_gemm_kernel<.*>",
    r"pack_kernel<.*, false>",
    r"attention_kernel",
    r"attention_hopper_kernel<.*>",
    r"attention_prefill_kernel<.*>",
    r"attention_step_kernel<.*>",
    r"mamba_layers_kernel<.*>",
    r"mamba_spread_kernel<.*>",
    r"mamba_step_kernel",
    r"most_likely_kernel",
    r"step_kernel",
    r"extend_tile_kernel",
    r"few_tokens_kernel<16, true>",
    r"join_hopper_kernel",
    r"place_cache_kernel<.*>",
    r"round_cache_kernel<.*>",
    r"scan_kernel<2, \d, true>",
    r"conv_kernel<4, \d+>",
    r"rms_norm_kernel<true, true>",
    r"ssd_chunks_kernel<.*>",
    r"ssd_kernel<.*>",
    r"ssd_scores_kernel<(128|256), \d+>",
    r"transformer_layers_kernel<.*>",
]
FUNCTION = re.compile(r"Function (\S+):\s*\n?\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def short_name(mangled: str) -> str:
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"hxq::cuda::(\w+::)*\(anonymous namespace\)::", "", name)
    return name.replace("void ", "").split("(")[0]


def main() -> int:
    checks = "--check" in sys.argv
    if len(sys.argv) != 2 + checks:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    command = ["cuobjdump", "--dump-resource-usage", sys.argv[-1]]
    found = FUNCTION.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = sorted({(short_name(name), *map(int, numbers)) for name, *numbers in found})
    if checks:
        faults, count = [], 0
        for pattern in HOT:
            found = [row for row in rows if re.fullmatch(pattern, row[0])]
            count += len(found)
            faults += [f"{name} keeps {stack} bytes on its stack" for name, _, stack, _ in found if stack > 0]
            faults += [] if found else [f"no kernel is called {pattern}"]
        print(*(faults or [f"{count} hot kernels, none with a stack"]), sep="\n")
        return 1 if faults else 0
    print("| kernel | registers | stack bytes | static shared bytes |\n|---|---|---|---|")
    for name, registers, stack, shared in rows:
        print(f"| `{name}` | {registers} | {stack} | {shared} |")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
