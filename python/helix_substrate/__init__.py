"""Models whose weights stay compressed (HXQ), in the Hugging Face world.

    import helix_substrate                                   # registers quant method "hxq" with transformers
    model = AutoModelForCausalLM.from_pretrained(DIR)        # a compressed folder

All computing is done by the C++ core. Compressing, checking and decompressing folders needs nothing else; modules need
torch, and `from_pretrained` needs transformers: `pip install "helix-substrate[hf]"`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

# Threads wait for each other by spinning; libgomp's default of some milliseconds costs a factor of ten on a busy
# machine (docs/python.md). It is read when the runtime is loaded, and whoever has set it keeps it.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

# torch brings an OpenMP runtime along. Loaded first, it is the one that the core uses too.
if importlib.util.find_spec("torch") is not None:
    import torch as _torch  # noqa: F401

from ._core import HxqError, Model, compress, decompress, inspect, supported_targets, use_target, verify  # noqa: E402
from ._core import version as _version  # noqa: E402

__version__ = _version()

#: Names that need torch (and some of them transformers), by the module that has them.
_LAZY = {
    "HelixLinear": "modules",
    "HelixEmbedding": "modules",
    "compress_model": "swap",
    "decompress_model": "swap",
    "accelerate_ssm": "ssm",
    "HxqConfig": "config",
    "HelixHfQuantizer": "quantizer",
    "merge_adapter": "adapters",
    "CDNAv3Config": "config",
    "CDNAv3Reader": "cdnav3_reader",
    "CDNAv3Writer": "cdnav3_writer",
    "load_cdna_factors": "helix_linear",
    "swap_to_helix": "helix_linear",
    "swap_summary": "helix_linear",
}

__all__ = [
    "HxqError",
    "Model",
    "compress",
    "decompress",
    "inspect",
    "supported_targets",
    "use_target",
    "verify",
    *_LAZY,
]


def __getattr__(name: str):
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'helix_substrate' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "transformers"):
            raise ImportError(
                f'helix_substrate.{name} needs {error.name}: run `pip install "helix-substrate[hf]"`'
            ) from None
        raise


if importlib.util.find_spec("transformers") is not None and importlib.util.find_spec("torch") is not None:
    from .quantizer import register as _register

    _register()
