"""HXQ in vLLM: the plugin that `pip install helix-substrate` puts beside an installed vLLM (`vllm.general_plugins`).

vLLM loads it in each of its processes; `vllm serve FOLDER` then takes compressed folders. Nothing of vLLM is changed:
a quantization is registered, and replacements for three layer classes by the registry that vLLM has for them.
"""

from __future__ import annotations

import logging
import re

from .. import _core

logger = logging.getLogger("helix_substrate")

#: Releases of vLLM that the plugin was written against: from the first, below the second.
SUPPORTED = ((0, 26), (0, 34))


def check_release(version: str) -> None:
    """Raises ImportError for a release of vLLM that is not supported."""
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if not SUPPORTED[0] <= found < SUPPORTED[1]:
        first, last = SUPPORTED[0], (SUPPORTED[1][0], SUPPORTED[1][1] - 1)
        raise ImportError(
            f"vLLM {version} is not supported by helix_substrate {_core.version()}: it serves HXQ in vLLM "
            f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
        )


def register() -> None:
    """Registers HXQ with vLLM; a second call does nothing more. vLLM logs an exception of a plugin and goes on without
    it, so what is wrong is said once more in one line."""
    try:
        _register()
    except Exception as error:
        logger.error("HXQ is not available in vLLM: %s", error)
        raise


def _register() -> None:
    try:
        import vllm
    except ModuleNotFoundError as error:
        raise ImportError("vLLM is not installed in this environment") from error

    check_release(vllm.__version__)
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.quantization import register_quantization_config

    from ..config import QUANT_METHODS
    from .layers import REPLACEMENTS
    from .method import HxqQuantizationConfig

    for name in QUANT_METHODS:
        register_quantization_config(name)(HxqQuantizationConfig)
    for replaced, replacement in REPLACEMENTS.items():
        registered = op_registry_oot.get(replaced.__name__)
        if registered is None:
            replaced.register_oot(replacement)
        elif registered is not replacement:
            raise RuntimeError(
                f"{registered.__module__}.{registered.__name__} replaces {replaced.__name__} already: HXQ cannot"
            )
