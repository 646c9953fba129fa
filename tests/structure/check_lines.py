"""Checks that files of the Python package and of its tests, those in vLLM too, have at most 500 lines of at most 120 columns."""

import pathlib
import sys

root = pathlib.Path(__file__).resolve().parents[2]
faults = []
for path in sorted([*(root / "python").rglob("*.py"), *(root / "tests" / "vllm").rglob("*.py")]):
    lines = path.read_text(encoding="utf-8").splitlines()
    faults += [f"{path}: {len(lines)} lines"] * (len(lines) > 500)
    faults += [f"{path}:{i}: {len(line)} columns" for i, line in enumerate(lines, 1) if len(line) > 120]
print(*faults, sep="\n")
sys.exit(bool(faults))
