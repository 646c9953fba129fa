"""read_safetensors_sample.py WRITER: runs WRITER and checks its file with Python's safetensors package."""

import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy
    from safetensors import deserialize, safe_open
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

# In the order in which write_safetensors_sample.cc adds them.
EXPECTED = [
    ("small.odd", "U8", [3], 1), ("large.indices", "U8", [512, 256], 1), ("large.odd", "U8", [333, 777], 1),
    ("codebook", "F32", [256], 4), ("positions", "I64", [5], 8), ("bf16", "BF16", [7], 2), ("f16", "F16", [3, 1], 2),
    ("f64", "F64", [2], 8), ("i32", "I32", [3], 4), ("i16", "I16", [3], 2), ("u16", "U16", [70001], 2),
    ("i8", "I8", [5], 1), ("empty", "F32", [0, 4], 4), ("scalar", "F32", [], 4), ("large.f32", "F32", [300, 100], 4),
]

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "sample.safetensors"
    subprocess.run([sys.argv[1], str(path)], check=True)
    content = path.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    assert (8 + header_size) % 64 == 0, header_size
    tensors = dict(deserialize(content))
    assert sorted(tensors) == sorted(name for name, *_ in EXPECTED), sorted(tensors)
    for n, (name, dtype, shape, size) in enumerate(EXPECTED):
        tensor = tensors[name]
        assert tensor["dtype"] == dtype and tensor["shape"] == shape, (name, tensor["dtype"], tensor["shape"])
        count = int(numpy.prod(shape)) * size
        want = ((numpy.arange(count) + n) % 256).astype(numpy.uint8).tobytes()
        assert bytes(tensor["data"]) == want, name
        assert (8 + header_size + header[name]["data_offsets"][0]) % size == 0, name
    with safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("large.indices").shape == (512, 256)
        assert opened.get_tensor("codebook").dtype == numpy.float32
print("ok")
