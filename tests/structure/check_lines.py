"""Checks that source files have at most 500 lines of at most 120 columns."""

import pathlib
import sys

FOLDERS = ("bench", "examples", "fuzz", "include", "python", "scripts", "src", "tests", "tools")
SUFFIXES = {".cc", ".cu", ".cuh", ".h", ".html", ".js", ".py"}
#: Here commands, messages and templates stand as they are: their lines may be longer.
QUOTING = ("tests/chat/", "tests/cli/", "tests/serve/", "tests/tokenizer/", "tests/toy_codec/")


def faults(root: pathlib.Path):
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file():
                continue
            file = str(path.relative_to(root))
            lines = path.read_text(encoding="utf-8").splitlines()
            if len(lines) > 500:
                yield f"{file}: {len(lines)} lines"
            if not file.startswith(QUOTING):
                yield from (f"{file}:{i}: {len(line)} columns" for i, line in enumerate(lines, 1) if len(line) > 120)


def main() -> int:
    found = list(faults(pathlib.Path(__file__).resolve().parents[2]))
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
