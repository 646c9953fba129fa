"""Checks that a codec is named in its own folder, its kernels and its rows alone, and that the command names no codec,
architecture or device."""

import pathlib
import re
import sys

#: Rows of the tables that codecs are listed in.
ROWS = {"src/codec/codecs.cc", "src/codec/encoders.cc", "src/kernels/cpu/prepare.cc"}
#: What may name one codec's parts besides, and why.
OTHERS = {
    "src/codec/low_rank": "a low-rank term has the same parts with every codec that has one",
    "src/io/cdnav3": "the format of .cdnav3 trees has a file for each part of that one codec",
    "src/compress/cdnav3_write": "writes that format",
    "src/capi/cdnav3": "writes that format",
    "src/capi/encode": "options of that codec's encoder",
    "src/capi/matrix.cc": "gradients of a codebook are operations of that codec",
    "src/capi/cuda_matrix.cc": "as above, and the kernels for GPUs take that codec's matrices",
    "include/hxq/c_api.h": "declares them",
    "include/hxq/cuda_c_api.h": "declares them",
}
DEVICES = {"cuda", "gpu", "rocm", "metal"}
#: The bundled model, in examples.
MODEL = "wiki-mamba-7m"
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*")', re.S)


def code_of(path: pathlib.Path) -> str:
    """The file without comments."""
    return COMMENT.sub(lambda match: match.group(1) or " ", path.read_text())


def names_in(path: pathlib.Path, pattern: str) -> set:
    return set(re.findall(pattern, code_of(path)))


def words(names) -> re.Pattern:
    return re.compile(r"(?<![A-Za-z0-9_])(" + "|".join(map(re.escape, sorted(names))) + r")(?![A-Za-z0-9_])")


def sources(folder: pathlib.Path):
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".cc") and not path.name.endswith(("_test.cc", "_test_data.h")):
            yield path


def may_name(file: str, codec: str) -> bool:
    if file.startswith((f"src/codec/{codec}/", *OTHERS)) or file in ROWS:
        return True
    if file.startswith(("src/jinja/", "src/text/")):  # know no tensors, and use some of the words for other things
        return True
    # Kernels: everything but the headers that layers see, which are for any codec.
    path = pathlib.PurePosixPath(file)
    return file.startswith("src/kernels/") and (
        path.suffix == ".cc" or path.parent.name != "kernels" or path.name.startswith(("cpu_", codec))
    )


def codec_faults(root: pathlib.Path):
    parts_of = {}
    for row in sorted((root / "src" / "codec").glob("*/codec.cc")):
        (codec,) = names_in(row, r'\.id = "(\w+)"')
        parts_of[codec] = names_in(row, r'\{"(\w+)",\s*Kind::')
        parts_of[codec] |= names_in(row, r'\{"\w+",\s*Kind::\w+,\s*"(\w+)"')
        assert len(parts_of[codec]) > 1, row
    for codec, parts in parts_of.items():
        named = re.compile(rf"\w*{codec}\w*", re.I)
        for folder in ("include", "src", "tools"):
            for path in sources(root / folder):
                file = str(path.relative_to(root))
                if may_name(file, codec):
                    continue
                others = [parts_of[other] for other in parts_of if other != codec and may_name(file, other)]
                code = code_of(path)
                found = {match.group(0) for match in named.finditer(code)}
                found |= set(words(parts.difference(*others)).findall(code))
                if found:
                    yield f"{file} names what is codec {codec}'s alone: {', '.join(sorted(found))}"


def tool_faults(root: pathlib.Path):
    architectures = names_in(root / "src" / "desc" / "model_desc.cc", r'\{"(\w+)",\s*describe_\w+\}')
    assert len(architectures) >= 5
    names = words(architectures | DEVICES)
    for path in sources(root / "tools"):
        found = set(names.findall(code_of(path).replace(MODEL, "").lower()))
        if found:
            yield f"{path.relative_to(root)} names an architecture or a device: {', '.join(sorted(found))}"


def main() -> int:
    root = pathlib.Path(__file__).resolve().parents[2]
    found = [*codec_faults(root), *tool_faults(root)]
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
