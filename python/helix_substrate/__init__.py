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
from pathlib import Path
from typing import TYPE_CHECKING

# torch's threads spin for milliseconds after each of its operations, on cores that the library's threads want
# (docs/python.md). The variable is read when torch is loaded, and whoever has set it keeps it.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

#: The command line (`python -m helix_substrate`, `helix-substrate`) compresses folders: it needs neither torch nor any
#: release of transformers, and does not wait for them.
_IS_COMMAND = ("-m", "helix_substrate") in zip(sys.orig_argv, sys.orig_argv[1:]) or (
    Path((sys.argv or [""])[0]).name == "helix-substrate"
)


def _has(package: str) -> bool:
    return not _IS_COMMAND and importlib.util.find_spec(package) is not None


# Before the library, so that the variable above is there when torch is loaded.
if _has("torch"):
    import torch as _torch  # noqa: F401

from ._core import HxqError, compress, decompress, inspect, precision, set_precision  # noqa: E402
from ._core import supported_targets, use_target, verify  # noqa: E402
from ._core import version as _version  # noqa: E402
from ._model import Model  # noqa: E402

__version__ = _version()

#: Names that need torch (and some of them transformers), by the module that has them.
_LAZY = {
    "HelixLinear": "modules",
    "HelixEmbedding": "modules",
    "HelixConv1D": "modules",
    "compress_model": "swap",
    "decompress_model": "swap",
    "accelerate_ssm": "ssm",
    "HxqConfig": "config",
    "HelixHfQuantizer": "quantizer",
    "merge_adapter": "adapters",
    "CDNAv3Config": "config",
    "CDNAv3Reader": "cdnav3_reader",
    "CDNAv3Writer": "cdnav3_writer",
    "HelixLinearSTE": "helix_linear_ste",
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
    "precision",
    "set_precision",
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


if TYPE_CHECKING:
    from .adapters import merge_adapter
    from .cdnav3_reader import CDNAv3Reader
    from .cdnav3_writer import CDNAv3Writer
    from .config import CDNAv3Config, HxqConfig
    from .helix_linear import load_cdna_factors, swap_summary, swap_to_helix
    from .helix_linear_ste import HelixLinearSTE
    from .modules import HelixConv1D, HelixEmbedding, HelixLinear
    from .quantizer import HelixHfQuantizer
    from .ssm import accelerate_ssm
    from .swap import compress_model, decompress_model

if _has("transformers") and _has("torch"):
    from .quantizer import register as _register

    _register()
