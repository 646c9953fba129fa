"""Checks that includes between the folders of src/ point one way, and that public headers need nothing but std."""

import pathlib
import re
import sys

# A folder may include itself and everything before it. `jinja` and `text` need `io` alone; nothing below `model` needs
# them.
ORDER = ["io", "desc", "codec", "folder", "kernels", "layers", "jinja", "text", "model", "compress", "capi"]
ALLOWED = {folder: set(ORDER[: i + 1]) for i, folder in enumerate(ORDER)}
ALLOWED["jinja"] = {"io", "jinja"}
ALLOWED["text"] = {"io", "jinja", "text"}
ALLOWED["compress"] -= {"layers", "jinja", "text", "model"}
ALLOWED["capi"] -= {"jinja", "text"}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.M)


def faults(root: pathlib.Path):
    for path in sorted((root / "src").rglob("*")):
        if path.suffix not in (".h", ".cc") or path.name.endswith("_test.cc"):
            continue
        folder = path.relative_to(root / "src").parts[0]
        for kind, target in INCLUDE.findall(path.read_text()):
            target_folder = target.split("/")[0]
            if kind == '"' and target_folder in ORDER and target_folder not in ALLOWED[folder]:
                yield f"{path.relative_to(root)} includes {target}: {folder} may not use {target_folder}"
    for path in sorted((root / "include").rglob("*.h")):
        for kind, target in INCLUDE.findall(path.read_text()):
            own = kind == '"' and target.startswith("hxq/")
            standard = kind == "<" and "/" not in target and not target.endswith(".h")
            c_header = path.name == "c_api.h" and target in ("stddef.h", "stdint.h")
            if not (own or standard or c_header):
                yield f"{path.relative_to(root)} includes {target}: public headers need std and hxq alone"


def main() -> int:
    root = pathlib.Path(__file__).resolve().parents[2]
    found = list(faults(root))
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
