"""Checks that includes between the folders of src/ point one way, that what belongs to one device or codec is included
where it may be known, that the command uses the public headers, that these need nothing but std, and that files include
what they would have from precompiled headers."""

import pathlib
import re
import sys

# A folder may include itself and everything before it. `jinja` and `text` need `io` alone; nothing below `model` needs
# them.
ORDER = ["io", "desc", "codec", "folder", "kernels", "layers", "jinja", "text", "model", "compress", "capi", "serve"]
ALLOWED = {folder: set(ORDER[: i + 1]) for i, folder in enumerate(ORDER)}
ALLOWED["jinja"] = {"io", "jinja"}
ALLOWED["text"] = {"io", "jinja", "text"}
ALLOWED["codec"] -= {"desc"}
ALLOWED["kernels"] -= {"folder"}
ALLOWED["compress"] -= {"kernels", "layers", "jinja", "text", "model"}
ALLOWED["capi"] -= {"jinja", "text"}
ALLOWED["serve"] = {"io", "serve"}
#: Headers of these folders are for these files alone (beginnings of paths). A codec's folder: its rows, its kernels,
#: the container format that has a file for each of its parts, and the C functions that only it has.
INNER = {
    "kernels/cpu/": ("src/kernels/", "src/capi/"),
    "kernels/cuda/": ("src/kernels/", "src/capi/cuda_"),
    "kernels/cuda_device/": ("src/kernels/", "src/capi/cuda_", "src/capi/model.cc"),
    "codec/codebook/": (
        "src/codec/codebook/",
        "src/codec/codecs.cc",
        "src/codec/encoders.cc",
        "src/kernels/",
        "src/compress/cdnav3_write.",
        "src/capi/encode",
        "src/capi/cuda_matrix.cc",
        "src/capi/matrix.cc",
    ),
}
#: What the command includes of src/: the yardstick that `bench` measures the machine with.
TOOLS_MAY_INCLUDE = {"kernels/cpu_context.h", "kernels/read_bandwidth.h"}
#: Names from the precompiled headers (cmake/HxqTargets.cmake), where they are: a file includes them, or a header of the
#: project that it includes does.
PRECOMPILED = {
    "algorithm": r"std::(ranges::)?(sort|find_if|any_of|all_of|none_of|count_if|min|max|minmax|min_element|max_element"
    r"|clamp|equal|fill|fill_n|reverse)\b",
    "cmath": r"std::(sqrt|pow|log2?|exp|abs|isfinite|isnan|lround|round|floor|ceil)\b",
    "filesystem": r"std::filesystem\b",
    "fmt/": r"\bfmt::",
    "functional": r"std::function\b",
    "gtest/": r"\bTEST(_F|_P)?\(",
    "map": r"std::map\b",
    "memory": r"std::(unique_ptr|shared_ptr|make_unique|make_shared)\b",
    "optional": r"std::(optional|nullopt)\b",
    "span": r"std::span\b",
    "string": r"std::string\b",
    "vector": r"std::vector\b",
}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.M)


def project_includes(folder: pathlib.Path):
    """Files that are no tests, with what they include in quotes."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".cc", ".cu", ".cuh") and not path.name.endswith(("_test.cc", "_test_data.h")):
            for kind, target in INCLUDE.findall(path.read_text()):
                if kind == '"':
                    yield path, target


def includes_of(path: pathlib.Path, folders, known={}):
    """What the file and the project's headers that it includes have in angle brackets."""
    if path not in known:
        known[path] = found = set()
        for kind, target in INCLUDE.findall(path.read_text()):
            if kind == "<":
                found.add(target)
                continue
            for folder in (path.parent, *folders):
                if (folder / target).is_file():
                    found |= includes_of(folder / target, folders)
                    break
    return known[path]


def missing_includes(root: pathlib.Path):
    folders = [root, *(root / name for name in ("include", "src", "tests"))]
    for folder in ("fuzz", "include", "src", "tests", "tools"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".h", ".cc"):
                text, included = path.read_text(), includes_of(path, folders)
                for header, names in PRECOMPILED.items():
                    name = re.search(names, text)
                    is_folder = header.endswith("/")
                    if name and not any(one.startswith(header) if is_folder else one == header for one in included):
                        yield f"{path.relative_to(root)} uses {name[0]} without <{header}>"


def faults(root: pathlib.Path):
    yield from missing_includes(root)
    for path, target in project_includes(root / "src"):
        file = path.relative_to(root)
        folder, target_folder = file.parts[1], target.split("/")[0]
        if target_folder in ORDER and target_folder not in ALLOWED[folder]:
            yield f"{file} includes {target}: {folder} may not use {target_folder}"
        for inner, users in INNER.items():
            if target.startswith(inner) and not str(file).startswith(users):
                yield f"{file} includes {target}: src/{inner} is for {', '.join(users)} alone"
    for path, target in project_includes(root / "tools"):
        if "/" in target and not target.startswith("hxq/") and target not in TOOLS_MAY_INCLUDE:
            yield f"{path.relative_to(root)} includes {target}: the command uses the public headers"
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
