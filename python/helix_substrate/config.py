"""`HxqConfig`: the `quantization_config` of a compressed model, and the options for compressing one."""

from __future__ import annotations

import copy
from typing import Any, Optional

from transformers.utils.quantization_config import QuantizationConfigMixin

from . import _core
from .selection import check_patterns

#: Names that published folders use for the one format, and those of folders that its other readers must not try.
QUANT_METHODS = tuple(
    dict.fromkeys(("hxq", "helix", "cdna_v3", *(profile["quant_method"] for profile in _core.profiles().values())))
)

#: What is said of the stored matrices in a configuration, beside the options. What decides is the tensors.
_STATED = {"bits": 8, "n_clusters": 256, "vector_dim": 1}


def _check_profile(profile: str, sidecar_fraction: float) -> dict:
    known = _core.profiles()
    if profile not in known:
        raise ValueError(f"profile is {profile!r}, expected one of {', '.join(known)}")
    if known[profile]["group"] and sidecar_fraction != 0.001:
        raise ValueError(f"profile {profile!r} keeps no outliers, so sidecar_fraction has no effect")
    return known[profile]


def _check_modules(modules: list) -> list:
    """Entries are paths, or objects that name them."""
    if isinstance(modules, (list, tuple)):
        paths = [entry.get("module") if isinstance(entry, dict) else entry for entry in modules]
        if all(isinstance(path, str) for path in paths):
            return list(modules)
    raise TypeError(f"compressed_modules is {str(modules)[:80]}, expected a list of paths of modules")


class HxqConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed model, and the options for compressing one while it is loaded.

    sidecar_fraction: share of each matrix's weights kept exactly, 0 to 0.5. low_rank: rank of a term that is kept apart
    from each matrix, 0 to 64; None: one where it pays. modules_to_not_convert: modules that stay
    dense, as transformers means it ("lm_head", "model.layers.0", "down_proj", regular expressions) or as shell patterns
    of whole paths ("*.down_proj"). profile: how matrices are stored: "hxq" (the default), or "g8" to "g3", which
    take 8.1 to 3.3 bits per weight and keep no outliers, or "hxq-segments" or "g8-uniform", which are fast without
    AVX-512. compress_embeddings: also compress embeddings (and heads tied to them). accelerate_ssm: let the core
    run Mamba layers. precision: "fast" or "exact", how products treat their
    input; None: what is set (`helix_substrate.set_precision`). These two count also where a compressed folder is
    loaded, and override the folder's.

    Raises TypeError for an unknown option and ValueError for a value out of range. `from_dict` keeps whatever else a
    folder's configuration says, to be saved again.
    """

    def __init__(
        self,
        quant_method: str = "hxq",
        sidecar_fraction: float = 0.001,
        modules_to_not_convert: Optional[list[str]] = None,
        compress_embeddings: bool = True,
        accelerate_ssm: bool = True,
        precision: Optional[str] = None,
        compressed_modules: Optional[list] = None,
        profile: Optional[str] = None,
        low_rank: Optional[int] = None,
    ):
        if quant_method not in QUANT_METHODS:
            raise ValueError(f"quant_method is '{quant_method}', expected one of {', '.join(QUANT_METHODS)}")
        if isinstance(sidecar_fraction, bool) or not isinstance(sidecar_fraction, (int, float)):
            raise TypeError(f"sidecar_fraction is {sidecar_fraction!r}, expected a number from 0 to 0.5")
        if not 0 <= sidecar_fraction <= 0.5:
            raise ValueError(f"sidecar_fraction is {sidecar_fraction}, expected 0 to 0.5")
        _core.low_rank_code(low_rank)  # raises for what is none
        patterns = check_patterns("modules_to_not_convert", modules_to_not_convert)
        for name, value in (("compress_embeddings", compress_embeddings), ("accelerate_ssm", accelerate_ssm)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}, expected True or False")
        if precision is not None:
            _core.precision_code(precision)  # raises for another name
        self.stated = dict(_STATED)
        self.quant_method = quant_method
        self.profile = profile
        if profile is not None:
            form = _check_profile(profile, sidecar_fraction)
            if form["group"]:
                self.stated = {"bits": form["bits"], "group": form["group"]}
                self.quant_method = form["quant_method"]
        self.sidecar_fraction = sidecar_fraction
        self.low_rank = low_rank
        self.modules_to_not_convert = patterns or None
        self.compress_embeddings = compress_embeddings
        self.accelerate_ssm = accelerate_ssm
        self.precision = precision
        self.compressed_modules = _check_modules(compressed_modules or [])

    @classmethod
    def from_dict(cls, config_dict, return_unused_kwargs=False, **kwargs):
        """What a folder's config.json says; unknown entries are kept (`stated`)."""
        options = {key: value for key, value in config_dict.items() if key in _OPTIONS}
        config, unused = super().from_dict(options, return_unused_kwargs=True, **kwargs)
        config.stated.update({k: copy.deepcopy(v) for k, v in config_dict.items() if k not in _OPTIONS})
        return (config, unused) if return_unused_kwargs else config

    def __getattr__(self, name):
        if not name.startswith("_") and name in self.__dict__.get("stated", ()):
            return self.stated[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    @property
    def listed_modules(self) -> list[str]:
        """Paths that the configuration says are compressed; entries are strings or objects with `module`."""
        return [entry["module"] if isinstance(entry, dict) else entry for entry in self.compressed_modules]

    def get_loading_attributes(self) -> dict[str, Any]:
        """The options that count where a folder is compressed already."""
        said = {} if self.precision is None else {"precision": self.precision}
        return {"accelerate_ssm": self.accelerate_ssm, **said}

    def check_to_compress(self) -> None:
        """Raises TypeError where something beside the options was given to compress with: dicts can say anything."""
        plain = type(self)(profile=self.profile).stated
        for name, value in self.stated.items():
            if name in plain and plain[name] != value:
                raise TypeError(f"{name} is {value!r}: expected it to be left out, for the profile says it")
            if name not in plain:
                raise TypeError(f"{name} is no option of {type(self).__name__}")

    def without_effect(self, folder: "HxqConfig") -> list[str]:
        """Options of this configuration that differ from those of a compressed folder, and cannot change it."""
        plain = type(self)()
        return [
            name
            for name in ("sidecar_fraction", "low_rank", "modules_to_not_convert", "compress_embeddings", "profile")
            if getattr(self, name) not in (getattr(plain, name), getattr(folder, name))
        ]

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy({**{name: getattr(self, name) for name in _OPTIONS}, **self.stated})

    def __iter__(self):
        yield from self.to_dict().items()

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


_OPTIONS = (
    "quant_method",
    "sidecar_fraction",
    "low_rank",
    "modules_to_not_convert",
    "compress_embeddings",
    "accelerate_ssm",
    "precision",
    "compressed_modules",
    "profile",
)


class CDNAv3Config(HxqConfig):
    """The older package's name, which takes what it took: `bits`, `n_clusters`, ... are noted and saved."""

    def __init__(self, bits: int = 8, n_clusters: int = 256, compressed_modules: Optional[list] = None, **stated: Any):
        options = {key: stated.pop(key) for key in list(stated) if key in _OPTIONS}
        super().__init__(**{"quant_method": "cdna_v3", **options}, compressed_modules=compressed_modules)
        self.stated.update(bits=bits, n_clusters=stated.pop("codebook_size", None) or n_clusters, **stated)
