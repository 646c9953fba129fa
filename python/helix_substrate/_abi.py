"""The C ABI of the hxq library (`hxq/c_api.h`), declared for ctypes: structs, functions, and the library itself.

A struct here has the fields of the C struct of the same name in the same order; fields that are not given are zero,
which means the default. On import the library is asked whether its version and the structs' sizes are these."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

ABI = 7

#: Statuses that calls are told apart by.
INVALID_ARGUMENT, OUT_OF_MEMORY, CANCELLED = 1, 3, 5
PREFILL, DECODE = 0, 1
LOGITS_LAST, LOGITS_ALL = 1, 2
STATE_CONV, STATE_SSM, STATE_KEYS, STATE_VALUES = range(4)

_P, _I, _N = c_void_p, c_int32, c_int64


def _struct(name: str, /, **fields) -> type[ctypes.Structure]:
    """`hxq_{name}`. fields: name=type."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items()), "__slots__": ()})


def _addresses(names: str) -> dict:
    return dict.fromkeys(names.split(), _P)


def _sizes(names: str) -> dict:
    return dict.fromkeys(names.split(), _N)


Tensor = _struct("tensor", name=c_char_p, dtype=_I, rank=_I, shape=_N * 4, data=_P)
Rows = _struct("rows", data=_P, dtype=_I, stride=_N)
OutputRows = _struct("output_rows", data=_P, dtype=_I, stride=_N)
FloatRows = _struct("float_rows", data=_P, stride=_N)
Report = ctypes.CFUNCTYPE(c_int32, c_char_p, c_int64, c_int64, c_void_p)
Notice = ctypes.CFUNCTYPE(None, c_char_p, c_void_p)
Progress = _struct("progress", report=Report, user=_P, notice=Notice)
MatrixInfo = _struct(
    "matrix_info", rows=_N, cols=_N, codewords=_I, vector_dim=_I, outliers=_N, rank=_N, bytes=_N
)  # fmt: skip
LinearArgs = _struct("linear_args", tokens=_N, x=Rows, y=OutputRows, bias=_P, phase=_I, precision=_I)
EncodeOptions = _struct(
    "encode_options", sidecar_fraction=c_double, max_codewords=_I, threads=_I, profile=c_char_p, bits=_I, group=_N,
    low_rank=_I,
)  # fmt: skip
Fidelity = _struct("fidelity", snr_db=c_double, cosine=c_double, max_error=c_double, outliers=_N)
ConvArgs = _struct(
    "conv_args", **_sizes("batch tokens channels width"), x=FloatRows, **_addresses("weight bias state"), state_rows=_N,
    y=_P,
)  # fmt: skip
ConvGradients = _struct("conv_gradients", **_addresses("g dx dweight dbias"))
ScanArgs = _struct(
    "scan_args", **_sizes("batch tokens channels state_size"), **_addresses("u dt dt_bias"), b=FloatRows, c=FloatRows,
    z=FloatRows, **_addresses("a d state y"),
)  # fmt: skip
ScanGradients = _struct("scan_gradients", **_addresses("g du ddt dz db dc da_log dd ddt_bias"))
SsdArgs = _struct(
    "ssd_args", **_sizes("batch tokens heads head_dim groups state_size"), xbc=FloatRows, dt=FloatRows, z=FloatRows,
    dt_bias=_P, dt_min=c_float, dt_max=c_float, **_addresses("a_log d state y"),
)  # fmt: skip
SsdGradients = _struct("ssd_gradients", **_addresses("g dxbc ddt dz da_log dd ddt_bias"))
MambaMixer = _struct(
    "mamba_mixer",
    **_addresses("in_proj x_proj dt_proj out_proj in_proj_bias dt_bias out_proj_bias conv_weight conv_bias a d"),
    **_sizes("width state_size"),
)
MambaMixerArgs = _struct(
    "mamba_mixer_args", **_sizes("batch tokens"), **_addresses("x conv_state ssm_state y"), phase=_I, precision=_I
)
ModelOptions = _struct("model_options", threads=_I, target=c_char_p, kv_cache=_I, precision=_I, device=c_char_p)
ModelInfo = _struct(
    "model_info",
    **_sizes(
        "vocab_size hidden_size blocks context_length parameters compressed_matrices dense_matrices bytes_per_token"
    ),
)
Segment = _struct("segment", sequence=_P, tokens=POINTER(_I), count=_N, phase=_I, wanted=_I, logits=_P, end=_N)
CudaCall = _struct("cuda_call", device=_I, measure=_I, stream=_P, workspace=_P, workspace_bytes=_N)
RoleBits = _struct("role_bits", role=c_char_p, bits=_I)
CompressOptions = _struct(
    "compress_options", sidecar_fraction=c_double, keep=POINTER(c_char_p), keep_count=c_size_t, only=POINTER(c_char_p),
    only_count=c_size_t, threads=_I, force=_I, resume=_I, max_shard_bytes=_N, profile=c_char_p, bits=_I, group=_N,
    low_rank=_I, bits_for=POINTER(RoleBits), bits_for_count=c_size_t,
)  # fmt: skip

#: The same operations of `hxq/cuda_c_api.h`, where a CudaCall stands for the context.
ON_CUDA = (
    "linear", "linear_transposed", "codebook_gradient", "gather_rows", "gather_gradient", "decode", "causal_conv1d",
    "causal_conv1d_gradient", "selective_scan", "selective_scan_gradient", "ssd", "ssd_gradient",
)  # fmt: skip

_STRUCTS = (
    Tensor, Rows, OutputRows, FloatRows, Progress, MatrixInfo, LinearArgs, EncodeOptions, Fidelity, ConvArgs,
    ConvGradients, ScanArgs, ScanGradients, SsdArgs, SsdGradients, MambaMixer, MambaMixerArgs, ModelOptions, ModelInfo,
    Segment, RoleBits, CompressOptions, CudaCall,
)  # fmt: skip

#: Functions that return a status, with their arguments.
_SIGNATURES = {
    "hxq_context_create": [_I, c_char_p, POINTER(_P)],
    "hxq_matrix_create": [c_char_p, POINTER(Tensor), c_size_t, _N, _N, POINTER(_P)],
    "hxq_matrix_get_info": [_P, POINTER(MatrixInfo)],
    "hxq_linear": [_P, _P, POINTER(LinearArgs)],
    "hxq_linear_transposed": [_P, _P, _N, POINTER(Rows), POINTER(OutputRows)],
    "hxq_codebook_gradient": [_P, _P, _N, _P, _P, _P],
    "hxq_gather_rows": [_P, _P, _N, _P, POINTER(OutputRows)],
    "hxq_gather_gradient": [_P, _P, _N, _P, _P, _P],
    "hxq_decode": [_P, _P, POINTER(OutputRows)],
    "hxq_knows_architecture": [c_char_p, POINTER(_I)],
    "hxq_would_compress": [c_char_p, POINTER(Tensor), c_char_p, POINTER(_I)],
    "hxq_profiles": [POINTER(_P)],
    "hxq_encode": [POINTER(Tensor), POINTER(EncodeOptions), POINTER(_P), POINTER(Fidelity)],
    "hxq_encoded_part": [_P, c_size_t, POINTER(Tensor)],
    "hxq_causal_conv1d": [_P, POINTER(ConvArgs)],
    "hxq_causal_conv1d_gradient": [_P, POINTER(ConvArgs), POINTER(ConvGradients)],
    "hxq_decay_rates": [_P, _P, _N, _N, _P],
    "hxq_selective_scan": [_P, POINTER(ScanArgs)],
    "hxq_selective_scan_gradient": [_P, POINTER(ScanArgs), POINTER(ScanGradients)],
    "hxq_ssd": [_P, POINTER(SsdArgs)],
    "hxq_ssd_gradient": [_P, POINTER(SsdArgs), POINTER(SsdGradients)],
    "hxq_mamba_mixer_forward": [_P, POINTER(MambaMixer), POINTER(MambaMixerArgs)],
    "hxq_cuda_check": [_I],
    "hxq_cuda_matrix_create": [c_char_p, POINTER(Tensor), c_size_t, _N, _N, POINTER(_P)],
    "hxq_cuda_matrix_arrays": [_P, POINTER(_P), POINTER(c_size_t)],
    "hxq_cuda_matrix_place": [_P, _P, _P],
    "hxq_cuda_model_create": [c_char_p, POINTER(Tensor), POINTER(_P), c_size_t, POINTER(ModelOptions), POINTER(_P)],
    "hxq_model_open": [c_char_p, POINTER(ModelOptions), POINTER(_P)],
    "hxq_model_create": [c_char_p, POINTER(Tensor), c_size_t, POINTER(ModelOptions), POINTER(_P)],
    "hxq_model_get_info": [_P, POINTER(ModelInfo)],
    "hxq_sequence_create": [_P, POINTER(_P)],
    "hxq_sequence_reset": [_P],
    "hxq_sequence_read": [_P, _N, _I, POINTER(_N), POINTER(_I), _P, _N],
    "hxq_forward": [_P, POINTER(Segment), c_size_t],
    "hxq_stored_modules": [POINTER(c_char_p), c_size_t, POINTER(_P)],
    "hxq_compress": [c_char_p, c_char_p, POINTER(CompressOptions), POINTER(Progress), POINTER(_P)],
    "hxq_verify": [c_char_p, c_char_p, POINTER(Progress), POINTER(_P)],
    "hxq_decompress": [c_char_p, c_char_p, _I, POINTER(Progress)],
    "hxq_inspect": [c_char_p, POINTER(_P)],
    "hxq_stored_parts": [c_char_p, c_char_p, POINTER(_P), POINTER(_P)],
    "hxq_cdnav3_write": [c_char_p, POINTER(Tensor), _I, POINTER(EncodeOptions), POINTER(_P)],
    "hxq_read_tensor": [c_char_p, c_char_p, POINTER(_N), POINTER(_I), _P, _N],
}


_HANDLES = ("context", "matrix", "cuda_matrix", "encoded", "model", "sequence")


def _check(library: ctypes.CDLL, path: Path) -> None:
    library.hxq_abi_version.restype = c_int32
    found = library.hxq_abi_version()
    if found != ABI:
        raise ImportError(f"{path} has ABI {found}, this package needs {ABI}: reinstall helix-substrate")
    library.hxq_struct_size.argtypes = [c_char_p]
    library.hxq_struct_size.restype = c_size_t
    for structure in _STRUCTS:
        name = f"hxq_{structure.__name__}"
        size = library.hxq_struct_size(name.encode())
        if size != ctypes.sizeof(structure):
            raise ImportError(
                f"{path}: {name} has {size} bytes, this package needs {ctypes.sizeof(structure)}: "
                "reinstall helix-substrate"
            )


def _load() -> ctypes.CDLL:
    path = Path(__file__).with_name("libhxq_c.so")
    override = os.environ.get("HELIX_SUBSTRATE_LIBRARY")
    if override:
        path = Path(override)
    if not path.exists():
        raise ImportError(f"{path} is missing: helix_substrate is used from a source tree; run `pip install .` there")
    library = ctypes.CDLL(str(path))
    _check(library, path)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int32
    for name in ON_CUDA:
        function = getattr(library, f"hxq_cuda_{name}")
        function.argtypes = [POINTER(CudaCall), *_SIGNATURES[f"hxq_{name}"][1:]]
        function.restype = c_int32
    for name in ("hxq_version", "hxq_last_error", "hxq_supported_targets"):
        getattr(library, name).restype = c_char_p
    for name, result in (("hxq_encoded_count", c_size_t), ("hxq_sequence_position", c_int64)):
        getattr(library, name).argtypes = [c_void_p]
        getattr(library, name).restype = result
    for name in (*(f"{kind}_destroy" for kind in _HANDLES), "free"):
        getattr(library, f"hxq_{name}").argtypes = [c_void_p]
        getattr(library, f"hxq_{name}").restype = None
    return library


library = _load()
