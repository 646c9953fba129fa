"""Prints a Markdown table of the CUDA kernels: registers, stack and shared memory, as cuobjdump reports them.

    scripts/cuda_resources.py build/src/kernels/cuda/libhxq_cuda.so
"""

import re
import subprocess
import sys

FUNCTION = re.compile(r"Function (\S+):\s*\n?\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def short_name(mangled: str) -> str:
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = name.replace("hxq::cuda::(anonymous namespace)::", "").replace("void ", "")
    return name.split("(")[0].replace("(int)", "")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    report = subprocess.run(["cuobjdump", "--dump-resource-usage", sys.argv[1]], capture_output=True, text=True, check=True)
    rows = sorted({(short_name(name), int(reg), int(stack), int(shared)) for name, reg, stack, shared in FUNCTION.findall(report.stdout)})
    print("| kernel | registers | stack bytes | static shared bytes |\n|---|---|---|---|")
    for name, registers, stack, shared in rows:
        print(f"| `{name}` | {registers} | {stack} | {shared} |")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
