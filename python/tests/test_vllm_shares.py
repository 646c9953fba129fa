"""What a rank of vLLM holds of compressed matrices, in worlds of 1, 2 and 4 processes over gloo, without vLLM: the
layers of `vllm_layers` stand for its own. `tests/vllm/test_layers.py` does the same with vLLM's."""

import multiprocessing
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from vllm_layers import Column, Layer, Qkv, Replicated, Row, all_gather, layers

import helix_substrate
from helix_substrate import HxqError, ops
from helix_substrate.index_packing import pack_12bit
from helix_substrate.ops.stacked import Stacked
from helix_substrate.vllm import check_release, register
from helix_substrate.vllm.folder import check_folder
from helix_substrate.vllm.weights import LayerWeights

pytestmark = pytest.mark.release_independent

WORLDS = (1, 2, 4)


# ---- Stored matrices of every kind, made by hand, and what they decode to by the formulas of docs/format.md ----


def codebook_parts(rng, rows, cols, k=256, width=1, dtype=torch.uint8):
    codebook = np.sort(rng.standard_normal((k, width)).astype(np.float32), axis=0)
    indices = rng.integers(0, k, (rows, cols // width))
    dense = codebook[indices].reshape(rows, cols)
    stored = torch.from_numpy(indices.astype(np.uint16).view(np.int16) if k > 256 else indices.astype(np.uint8))
    return {"codebook": torch.from_numpy(codebook[:, 0] if width == 1 else codebook), "indices": stored}, dense


def scalar(rng, rows, cols):
    return codebook_parts(rng, rows, cols)


def outliers(rng, rows, cols):
    """Outliers at both ends of every row, at the edges of shares, and some elsewhere."""
    parts, dense = codebook_parts(rng, rows, cols)
    edges = {r * cols + c for r in range(rows) for c in (0, cols - 1)}
    for world in WORLDS:
        for rank in range(world):
            begin = rank * (cols // world)
            edges |= {r * cols + c for r in range(0, rows, 5) for c in (begin, begin + cols // world - 1)}
    positions = np.array(sorted(edges | set(rng.integers(0, rows * cols, 40).tolist())))
    values = rng.standard_normal(positions.size).astype(np.float32) * 5
    dense.reshape(-1)[positions] = values
    return {
        **parts,
        "sidecar_positions": torch.from_numpy(positions),
        "sidecar_values": torch.from_numpy(values),
    }, dense


def unsorted_outliers(rng, rows, cols):
    """In any order, some twice: of these the last counts."""
    parts, dense = codebook_parts(rng, rows, cols)
    positions = rng.integers(0, rows * cols, 60)
    positions[30:40] = positions[:10]
    values = rng.standard_normal(60).astype(np.float16)
    for position, value in zip(positions, values):
        dense.reshape(-1)[position] = value
    return {**parts, "sidecar_indices": torch.from_numpy(positions), "sidecar_values": torch.from_numpy(values)}, dense


def low_rank(rng, rows, cols):
    return with_term(rng, *outliers(rng, rows, cols))


def with_term(rng, parts, dense):
    rows, cols = dense.shape
    u, vt = (rng.standard_normal(shape).astype(np.float16) for shape in ((rows, 3), (3, cols)))
    s = np.array([2.0, 1.0, 0.5], np.float32)
    for j in range(3):
        dense = dense + u[:, j, None].astype(np.float32) * s[j] * vt[j].astype(np.float32)
    return {**parts, "svd_U": torch.from_numpy(u), "svd_s": torch.from_numpy(s), "svd_Vt": torch.from_numpy(vt)}, dense


def channel_scales(rng, rows, cols):
    """dense: what decompression writes, W / scales."""
    parts, dense = low_rank(rng, rows, cols)
    scales = rng.uniform(0.5, 2, cols).astype(np.float32)
    return {**parts, "channel_scales": torch.from_numpy(scales)}, dense / scales


def pairs(rng, rows, cols):
    return codebook_parts(rng, rows, cols, k=512, width=2)


def packed(rng, rows, cols):
    parts, dense = codebook_parts(rng, rows, cols, k=1024)
    return {**parts, "indices": pack_12bit(parts["indices"])}, dense


def grouped(bits, group):
    def make(rng, rows, cols):
        k = 1 << bits
        levels = np.sort(rng.integers(-40, 40, k)).astype(np.float32)
        scales = np.arange(1, 33, dtype=np.float32) / 64
        indices, of_group = rng.integers(0, k, (rows, cols)), rng.integers(0, 32, (rows, -(-cols // group)))
        flags = (indices[..., None] >> np.arange(bits) & 1).reshape(rows, -1)
        stored = np.packbits(flags.astype(np.uint8), axis=1, bitorder="little")
        dense = scales[of_group[:, np.arange(cols) // group]] * levels[indices]
        parts = {
            "grouped_levels": levels, "grouped_indices": stored, "grouped_scales": of_group.astype(np.uint8),
            "grouped_scale_levels": scales, "grouped_shape": np.array([cols, group]),
        }  # fmt: skip
        return {name: torch.from_numpy(part) for name, part in parts.items()}, dense

    return make


def grouped_low_rank(rng, rows, cols):
    parts, dense = with_term(rng, *grouped(4, 32)(rng, rows, cols))
    return {**parts, "grouped_shape": torch.tensor([cols, 32, 3])}, dense


def dense_only(rng, rows, cols):
    dense = rng.standard_normal((rows, cols)).astype(np.float32)
    return {"weight": torch.from_numpy(dense)}, dense


STORED = {
    "scalar": scalar, "outliers": outliers, "unsorted outliers": unsorted_outliers, "low rank": low_rank,
    "channel scales": channel_scales, "pairs": pairs, "packed": packed, "grouped 3": grouped(3, 32),
    "grouped 4": grouped(4, 32), "grouped 8": grouped(8, 64), "grouped, term": grouped_low_rank, "dense": dense_only,
}  # fmt: skip


# ---- Loading them into layers ----


def weights_of(layer: Layer, world: int) -> LayerWeights:
    def load_of(shard):
        return lambda parameter, loaded: layer.load(parameter, loaded, shard)

    return LayerWeights(
        layer.rows, layer.cols, layer.local_cols, load_of, name_of, torch.float32, torch.device("cpu"),
        whole=world == 1, last=layer.rank == world - 1,
        expected=tuple(shard for shard in layer.sources if shard is not None),
    )  # fmt: skip


def name_of(shard) -> str:
    return "block.layer" if shard is None else f"block.layer.{shard}"


def sources_of(layer: Layer, make, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {shard: make(rng, rows, layer.cols) for shard, rows in layer.sources.items()}


def filled(layer: Layer, world: int, sources: dict) -> LayerWeights:
    weights = weights_of(layer, world)
    for shard, (parts, _) in sources.items():
        for part, tensor in parts.items():
            weights.take(part, tensor, shard)
    return weights


def decoded(made) -> torch.Tensor:
    return made.decode() if isinstance(made, Stacked) else made.data


def dense_share(layer: Layer, sources: dict) -> torch.Tensor:
    """What the layer's own loader takes of the decoded matrices: a parameter that starts as zeros."""
    parameter = torch.nn.Parameter(torch.zeros(layer.rows, layer.local_cols), requires_grad=False)
    for shard, (parts, dense) in sources.items():
        whole = torch.from_numpy(np.ascontiguousarray(dense, np.float32))
        if "weight" not in parts:
            # The core's whole matrix is the reference for bits, the formula for the core.
            core = decompressed(parts, dense.shape)
            torch.testing.assert_close(core, whole, rtol=1e-5, atol=1e-5)
            whole = core
        layer.load(parameter, whole, shard)
    return parameter.data


def plain(parts: dict) -> dict:
    return {"sidecar_positions" if name == "sidecar_indices" else name: part for name, part in parts.items()}


def decompressed(parts: dict, shape) -> torch.Tensor:
    """The core's rows of the stored matrix, channel scales in them, as decompression writes it."""
    return ops.gather_forward(ops.matrix_of(ops.parts_of(plain(parts)), *shape), torch.arange(shape[0]), torch.float32)


def check_share(layer: Layer, world: int, sources: dict, group=None) -> None:
    made = filled(layer, world, sources).finish()
    expected = dense_share(layer, sources)
    assert torch.equal(decoded(made), expected)
    if isinstance(made, Stacked) and group is not None:
        check_product(layer, world, made, expected, group)


def check_product(layer: Layer, world: int, made: Stacked, share: torch.Tensor, group) -> None:
    """Products of all ranks together against those of dense shares in float64."""
    for tokens in (1, 20):
        x = torch.randn(tokens, layer.cols, generator=torch.Generator().manual_seed(tokens))
        if isinstance(layer, Row):
            width = layer.local_cols
            x = x[:, layer.rank * width : (layer.rank + 1) * width]
        y, exact = made.linear(x, None, "exact"), x.double() @ share.double().T
        if isinstance(layer, Row):
            dist.all_reduce(y, group=group)
            dist.all_reduce(exact, group=group)
        else:
            y, exact = torch.cat(all_gather(y, group, world), 1), torch.cat(all_gather(exact, group, world), 1)
        bound = 4e-7 * layer.cols * (1 + exact.abs().max())
        assert (y.double() - exact).abs().max() <= bound


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    helix_substrate.use_target("scalar")  # multiplies floats, whatever the codec
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=max(WORLDS))
    groups = {world: dist.new_group(list(range(world))) for world in WORLDS}
    failures = []
    for world in WORLDS:
        if rank >= world:
            continue
        for kind, layer in layers(rank, world).items():
            for stored, make in STORED.items():
                try:
                    check_share(layer, world, sources_of(layer, make), groups[world])
                except Exception as error:
                    failures.append(f"{kind}, {stored}, rank {rank} of {world}: {type(error).__name__} {error}"[:600])
    with open(os.path.join(folder, f"rank{rank}"), "w") as file:
        file.write("\n".join(failures))
    dist.barrier()
    dist.destroy_process_group()


def test_every_rank_holds_what_vllm_loads_dense(tmp_path, monkeypatch):
    # Ranks are forks of a process that has imported all this and done nothing yet: importing takes longer than that.
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    multiprocessing.set_forkserver_preload([Path(__file__).stem])
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=max(WORLDS), start_method="forkserver")
    assert "".join((tmp_path / f"rank{rank}").read_text() for rank in range(max(WORLDS))) == ""


# ---- One rank: mixtures, look-ups, errors ----


@pytest.fixture
def scalar_target():
    """Kernels that multiply floats, whatever the codec."""
    helix_substrate.use_target("scalar")
    yield
    helix_substrate.use_target(None)


def test_dense_and_compressed_matrices_of_one_layer(scalar_target):
    layer = Qkv(1, 2, 8, 4, 8, 64)
    sources = sources_of(layer, outliers)
    sources["k"] = sources_of(layer, dense_only, 1)["k"]
    sources["v"] = sources_of(layer, grouped(4, 32), 2)["v"]
    made = filled(layer, 2, sources).finish()
    share = dense_share(layer, sources)
    assert torch.equal(decoded(made), share)
    x, bias = torch.randn(3, 64), torch.randn(layer.rows)
    torch.testing.assert_close(made.linear(x, bias, "exact"), x @ share.T + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_what_layers_call(dtype):
    layer = Column(0, 1, {0: 44, 1: 20}, 64, [44, 20])
    made = filled(layer, 1, sources_of(layer, low_rank)).finish()
    x, bias = torch.randn(5, 64, dtype=dtype), torch.randn(64, dtype=dtype)
    found = torch.ops.hxq.linear_parts(x, made.tensors, made.layout, bias, 64)
    assert torch.equal(found, made.linear(x, bias)) and found.dtype is dtype
    ids = torch.tensor([[0, 43, 44], [63, 1, 2]])
    rows = torch.ops.hxq.embedding_parts(ids, made.tensors, made.layout, 64, dtype)
    assert torch.equal(rows, made.embedding(ids, dtype))
    torch.testing.assert_close(rows, made.decode()[ids].to(dtype))
    with pytest.raises(RuntimeError, match="were copied or moved"):  # what the core has copies of is not among them
        torch.ops.hxq.linear_parts(x, [tensor.clone() for tensor in made.tensors], made.layout, bias, 64)
    made = filled(layer, 1, sources_of(layer, grouped(4, 32))).finish()
    for name, arguments in (
        ("linear_parts", (x, made.tensors, made.layout, bias, 64)),
        ("embedding_parts", (ids, made.tensors, made.layout, 64, dtype)),
    ):
        torch.library.opcheck(getattr(torch.ops.hxq, name).default, arguments, test_utils="test_faketensor")


def test_a_share_keeps_nothing_of_others():
    layer = Row(1, 4, {None: 24}, 64)
    sources = sources_of(layer, low_rank)
    for parts, _ in sources.values():  # of rank 1, a cut of the factor is contiguous as it is
        parts.update(svd_U=parts["svd_U"][:, :1].contiguous(), svd_s=parts["svd_s"][:1], svd_Vt=parts["svd_Vt"][:1])
    made = filled(layer, 4, sources).finish()
    assert [tensor.shape for tensor in made.tensors] == [(24, 16), (24, 1), (1, 16)]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in made.tensors)


def test_padding_of_a_vocabulary_is_zero():
    layer = layers(1, 2)["odd vocabulary"]
    made = filled(layer, 2, sources_of(layer, outliers)).finish()
    x = torch.randn(2, 64)
    assert made.rows == 64 and not made.linear(x, None)[:, 13:].any()
    assert not made.embedding(torch.tensor([13, 63]), torch.float32).any()
    empty = layers(3, 4)["vocabulary of fewer rows than ranks need"]
    made = filled(empty, 4, sources_of(empty, outliers)).finish()
    assert not made.linear(x, None).any() and not made.embedding(torch.tensor([0]), torch.float32).any()


def refused(layer: Layer, sources: dict, world: int = 1) -> str:
    with pytest.raises((ValueError, HxqError)) as caught:
        filled(layer, world, sources).finish()
    return str(caught.value)


@pytest.mark.parametrize("missing", ["codebook", "indices", "sidecar_values", "sidecar_positions", "svd_U", "svd_Vt"])
def test_missing_halves_name_the_module(missing):
    layer = Replicated(0, 1, {None: 24}, 64)
    parts, dense = low_rank(np.random.default_rng(0), 24, 64)
    del parts[missing]
    message = refused(layer, {None: (parts, dense)})
    assert message.startswith("block.layer") and "\n" not in message
    parts, dense = grouped(4, 32)(np.random.default_rng(0), 24, 64)
    del parts["grouped_scales"]
    assert "block.layer.grouped_scales was not loaded" in refused(layer, {None: (parts, dense)})


def test_missing_matrices_name_the_module():
    layer = Column(0, 1, {0: 44, 1: 44}, 64)
    sources = sources_of(layer, scalar)
    del sources[1]
    assert re.search(r"block\.layer\.1 was not loaded: .* lack 44 of the 88 rows", refused(layer, sources))
    assert "block.layer was not loaded" in refused(layer, {})


LAYERS = {
    "one rank": (Replicated(0, 1, {None: 24}, 64), 1),
    "rows cut": (Column(1, 2, {None: 24}, 64), 2),
    "columns cut": (Row(0, 2, {None: 24}, 64), 2),
}


def refused_changed(kind: str, make, change) -> str:
    """What is said of a changed matrix [24, 64]."""
    layer, world = LAYERS[kind]
    parts, dense = make(np.random.default_rng(0), 24, 64)
    change(parts)
    return refused(layer, {None: (parts, dense)}, world)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.update(indices=parts["indices"][:, :-1]),
        lambda parts: parts.update(indices=parts["indices"][:-1]),
        lambda parts: parts.update(indices=torch.cat([parts["indices"], parts["indices"]])),
        lambda parts: parts.update({name: torch.cat([parts[name], parts[name][:6]]) for name in ("indices", "svd_U")}),
        lambda parts: parts.update(codebook=parts["codebook"][:100]),
        lambda parts: parts.update(codebook=parts["codebook"].view(128, 2)),
        lambda parts: parts.update(sidecar_positions=parts["sidecar_positions"] + 24 * 64),
        lambda parts: parts.update(sidecar_positions=parts["sidecar_positions"].double()),
        lambda parts: parts.update(sidecar_values=parts["sidecar_values"][1:]),
        lambda parts: parts.update(svd_U=parts["svd_U"][1:]),
        lambda parts: parts.update(svd_Vt=parts["svd_Vt"][:, 1:]),
        lambda parts: parts.update(svd_Vt=torch.zeros(3, 70)),
        lambda parts: parts.update(channel_scales=torch.ones(70)),
        lambda parts: parts.update(channel_scales=torch.ones(1, 64)),
        lambda parts: parts.update(grouped_levels=torch.zeros(16)),
    ],
)
def test_what_does_not_fit_names_the_module(change, kind):
    message = refused_changed(kind, low_rank, change)
    assert "block.layer" in message and "\n" not in message


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.update(grouped_scales=parts["grouped_scales"].repeat(1, 2)),
        lambda parts: parts.update(grouped_scales=parts["grouped_scales"][:, :1]),
        lambda parts: parts.update(grouped_scales=parts["grouped_scales"][:, 0]),
        lambda parts: parts.update(grouped_indices=parts["grouped_indices"].repeat(1, 2)),
        lambda parts: parts.update(grouped_levels=parts["grouped_levels"][:15]),
        lambda parts: parts.update(grouped_shape=torch.tensor([64, 0])),
        lambda parts: parts.update(grouped_shape=torch.tensor([64.0, 32.0])),
        lambda parts: parts.update(grouped_shape=torch.tensor(64)),
        lambda parts: parts.update(grouped_shape=torch.tensor([70, 32])),
    ],
)
def test_groups_that_do_not_fit_name_the_module(change, kind):
    message = refused_changed(kind, grouped(4, 32), change)
    assert "block.layer" in message and "\n" not in message


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_indices_that_do_not_fit_name_the_module(kind):
    for change in (
        lambda parts: parts.update(indices=parts["indices"][:-1]),
        lambda parts: parts.update(codebook=torch.zeros(2, 1024)),
    ):
        message = refused_changed(kind, packed, change)
        assert "block.layer" in message and "\n" not in message


def test_rows_that_no_rank_takes_are_refused():
    for make in (scalar, grouped(4, 32), dense_only):
        sources = {None: make(np.random.default_rng(0), 60, 64)}
        assert "has 60 rows" in refused(Column(1, 2, {None: 48}, 64), sources, 2)
    layer = Qkv(3, 4, 8, 2, 8, 64)
    sources = sources_of(layer, scalar)
    sources["v"] = scalar(np.random.default_rng(0), 24, 64)
    assert "block.layer.v" in refused(layer, sources, 4)


def test_a_cut_through_what_cannot_be_cut_is_refused():
    layer = Row(1, 2, {None: 12}, 72)  # 36 columns for each rank: no multiple of 8
    said = refused(layer, sources_of(layer, grouped(4, 32)), 2)
    assert "block.layer" in said and "use fewer ranks, or a profile without groups" in said
    layer = Row(1, 2, {None: 12}, 70)  # 35: through a pair
    said = refused(layer, sources_of(layer, pairs), 2)
    assert "block.layer" in said and "use fewer ranks" in said


def test_the_same_tensor_may_come_twice_but_not_another():
    layer = Replicated(0, 1, {None: 24}, 64)
    sources = sources_of(layer, scalar)
    weights = filled(layer, 1, sources)
    weights.take("indices", sources[None][0]["indices"].clone())
    with pytest.raises(ValueError, match="block.layer.indices .* twice"):
        weights.take("indices", sources[None][0]["indices"] ^ 1)


# ---- Folders, releases ----


def test_folders_that_lack_what_their_receipt_lists(hxq_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    check_folder(hxq_folder)
    folder = tmp_path / "changed"
    tensors = load_file(hxq_folder / "model.safetensors")
    layer = "backbone.layers.3"

    def message(receipt: bool, **changes) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(hxq_folder, folder)
        kept = {**tensors, **changes}
        kept = {key: tensor for key, tensor in kept.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        if not receipt:
            (folder / "hxq_receipt.json").unlink()
        with pytest.raises(ValueError) as caught:
            check_folder(folder)
        return str(caught.value)

    assert f"{layer}.norm.weight is missing" in message(True, **{f"{layer}.norm.weight": None})
    shorter = tensors[f"{layer}.norm.weight"][1:]
    assert f"{layer}.norm.weight is" in message(True, **{f"{layer}.norm.weight": shorter.clone()})
    unknown = {f"{layer}.mixer.in_proj.levels": torch.zeros(4)}
    assert f"{layer}.mixer.in_proj.levels is no part" in message(False, **unknown)
    unknown = {f"{layer}.mixer.in_proj._sidecar_levels": torch.zeros(4)}
    assert f"{layer}.mixer.in_proj._sidecar_levels is no part" in message(False, **unknown)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: "):
        check_folder(folder)


@pytest.mark.parametrize(
    "installed, said",
    [
        (None, "vLLM is not installed in this environment"),
        ("0.25.1", f"vLLM 0.25.1 is not supported by helix_substrate {helix_substrate.__version__}: it serves HXQ in"),
        ("0.34.0", f"vLLM 0.34.0 is not supported by helix_substrate {helix_substrate.__version__}: it serves HXQ in"),
    ],
)
def test_an_absent_or_other_vllm_is_said_in_one_line(installed, said, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm", installed and SimpleNamespace(__version__=installed))
    with pytest.raises(ImportError, match=f"^{said}"):
        register()
    assert [record.message[: 30 + len(said)] for record in caplog.records] == [f"HXQ is not available in vLLM: {said}"]
    assert "\n" not in caplog.text.strip()


def test_releases_of_vllm():
    for version in ("0.26.0", "0.32.0+cpu", "0.33.1"):
        check_release(version)
    for version in ("0.25.1", "0.34.0", "1.0.0"):
        with pytest.raises(ImportError, match=f"vLLM {version} is not supported by helix_substrate .* 0.26 to 0.33"):
            check_release(version)
