"""Reads and rewrites safetensors files at the level of bytes, to damage them on purpose."""

import json
import pathlib
import struct


class SafetensorsFile:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        data = self.path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        self.header = json.loads(data[8 : 8 + length])
        self.body = bytearray(data[8 + length :])

    def bytes_of(self, key):
        begin, end = self.header[key]["data_offsets"]
        return bytes(self.body[begin:end])

    def replace(self, key, data):
        """New bytes of the same length."""
        begin, end = self.header[key]["data_offsets"]
        assert len(data) == end - begin
        self.body[begin:end] = data

    def append(self, key, dtype, shape, data):
        """A tensor more, after all others."""
        self.header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(self.body), len(self.body) + len(data)]}
        self.body += data

    def save(self):
        header = json.dumps(self.header).encode()
        header += b" " * (-len(header) % 8)
        self.path.write_bytes(struct.pack("<Q", len(header)) + header + self.body)
