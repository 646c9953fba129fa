"""The package's edges: command line, older names, sentences for wrong use."""

import copy
import json
import logging
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import numpy
import pytest
import torch
from conftest import ROOT, load

import helix_substrate
from helix_substrate.__main__ import main
from helix_substrate.helix_linear import load_helix_linear_from_cdnav3

IDS = torch.tensor([[52, 258, 892, 280, 2133, 328]])


def run(*arguments, code=None, blocked=()):
    """A fresh interpreter in which the packages `blocked` cannot be imported."""
    script = code
    if blocked:
        hide = (
            "import sys, importlib.abc\n"
            "class Hide(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name.split('.')[0] in {blocked!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "import importlib.util\n"
            "real = importlib.util.find_spec\n"
            f"importlib.util.find_spec = lambda n, p=None: None if n.split('.')[0] in {blocked!r} else real(n, p)\n"
            "sys.meta_path.insert(0, Hide())\n"
        )
        script = hide + script
    command = (
        [sys.executable, "-c", script] if script else [sys.executable, "-m", "helix_substrate", *map(str, arguments)]
    )
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)


def test_command_line(dense_folder, tmp_path, capsys):
    folder = tmp_path / "hxq"

    def verb(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    done = run("compress", dense_folder, folder, "--threads", 2)
    assert done.returncode == 0 and "49 tensors compressed" in done.stdout
    code, out, _ = verb("verify", folder, "--source", dense_folder)
    assert code == 0 and out.startswith("ok:")
    code, out, _ = verb("inspect", folder)
    assert code == 0 and json.loads(out)["quant_method"] == "hxq"
    code, _, _ = verb("decompress", folder, tmp_path / "dense")
    assert code == 0 and (tmp_path / "dense" / "model.safetensors").exists()
    code, _, err = verb("compress", dense_folder, folder)
    assert code == 1 and err.startswith("error:") and err.count("\n") == 1
    for options, fault in (
        (("--bits", 4, "--bits", 5), "--bits: given twice"),
        (("--sidecar", 0, "--sidecar-fraction", 0), "--sidecar-fraction: given twice"),
        (("--low-rank", "some"), "expected auto, off or a rank"),
    ):
        with pytest.raises(SystemExit, match="2"):
            verb("compress", dense_folder, tmp_path / "no", *options)
        assert fault in capsys.readouterr().err
    for words in (("compress", dense_folder, "-"), ("decompress", folder, "-")):
        with pytest.raises(SystemExit, match="2"):
            verb(*words)
        assert "expected a folder to create" in capsys.readouterr().err
    plain = ("--low-rank", "off", "--sidecar", 0, "--keep", "*x*", "--keep", "*t*")
    assert verb("compress", dense_folder, tmp_path / "plain", *plain)[0] == 0
    receipt = json.loads((tmp_path / "plain" / "hxq_receipt.json").read_text())
    assert receipt["options"]["sidecar_fraction"] == 0


def test_the_first_page_as_it_is_printed(tmp_path):
    """The command and the first snippet of docs/python.md, in a folder that looks like a clone."""
    page = (ROOT / "docs" / "python.md").read_text()
    commands, snippet = (re.search(rf"```{kind}\n(.*?)```", page, re.S)[1] for kind in ("", "python"))
    (command,) = (line for line in commands.splitlines() if line.startswith("python -m "))
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=True)
    done = subprocess.run(["python", "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout.strip()
    assert text.startswith("The city of London is") and len(text.split()) > 20


def test_without_torch(dense_folder, tmp_path):
    code = (
        "import helix_substrate, sys\n"
        f"source, destination = {str(dense_folder)!r}, {str(tmp_path / 'x')!r}\n"
        "receipt = helix_substrate.compress(source, destination, only=['*dt_proj.weight'])\n"
        "assert receipt['totals']['tensors_compressed'] == 12, receipt['totals']\n"
        "assert 'torch' not in sys.modules\n"
        "try: helix_substrate.HelixLinear\n"
        "except ImportError as error: print(error)\n"
    )
    done = run(code=code, blocked=("torch", "transformers"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'helix_substrate.HelixLinear needs torch: run `pip install "helix-substrate[hf]"`\n'


def test_unsupported_transformers():
    code = "import transformers\ntransformers.__version__ = '4.49.0'\nimport helix_substrate\n"
    done = run(code=code)
    assert done.returncode != 0
    assert "transformers 4.49.0 is not supported by helix_substrate: it needs 4.56 or newer" in done.stderr


def test_sentences(hxq_folder):
    with pytest.raises(ValueError, match="device_map puts modules on xpu: helix_substrate computes on cpu and cuda"):
        load(hxq_folder, device_map="xpu")
    with pytest.raises(ValueError, match="quant_method is 'gguf'"):
        helix_substrate.HxqConfig(quant_method="gguf")
    with pytest.raises(helix_substrate.HxqError, match="/nowhere"):
        helix_substrate.inspect("/nowhere")
    layer = load(hxq_folder).backbone.layers[0].mixer.in_proj
    with pytest.raises(ValueError, match="input has 3 features, the weight .1024, 256. expects 256"):
        layer(torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="meta"):
        layer(torch.zeros(1, 256, device="meta"))


def test_cdnav3_writer_and_reader(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    writer = helix_substrate.CDNAv3Writer(tmp_path)
    stats = writer.write_tensor(weight, "a.b.weight")
    writer.write_tensor(weight[0], "a.norm.weight")
    assert stats["num_outliers"] == 3
    reader = helix_substrate.CDNAv3Reader(tmp_path / "a_b_weight.cdnav3")
    assert reader.shape == (64, 48) and reader.tensor_name == "a.b.weight" and reader.has_sidecar
    decoded = reader.reconstruct()
    assert np.abs(decoded - weight).max() == pytest.approx(stats["max_abs_diff"], rel=1e-6)
    assert np.array_equal(reader.reconstruct_block(3, 9), decoded[3:9])
    assert np.load(tmp_path / "a_b_weight.cdnav3" / "codebook.npy").dtype == np.float32
    sidecar = np.load(tmp_path / "a_b_weight.cdnav3" / "sidecar.npz")
    assert np.array_equal(weight.flatten()[sidecar["positions"]], sidecar["values"])
    assert np.array_equal(np.load(tmp_path / "a_norm_weight.npy"), weight[0])


def test_older_names(peer, dense_folder, tmp_path):
    import hashlib

    folder = peer / "cdnav3"
    expected = json.loads((folder / "expected.json").read_text())["coded"]
    entry = folder / "cdnav3" / "backbone_layers_0_mixer_in_proj_weight.cdnav3"
    reader = helix_substrate.CDNAv3Reader(entry)
    assert reader.verify_codebook()
    assert hashlib.sha256(reader.reconstruct().tobytes()).hexdigest() == expected[reader.tensor_name]["sha256_reader"]

    model = load(dense_folder)
    dense = model(IDS).logits
    factors = helix_substrate.load_cdna_factors(folder, model)
    helix_substrate.swap_to_helix(model, factors)
    summary = helix_substrate.swap_summary(model)
    assert summary["helix_modules"] == 48 and summary["linear_modules"] == 1 and summary["overall_ratio"] > 3.5
    helix_substrate.accelerate_ssm(model)
    logits = model(IDS).logits
    assert (logits - dense).abs().max() < 0.05 * dense.abs().max()


def test_a_reader_counts_channel_scales(tmp_path):
    helix_substrate.CDNAv3Writer(tmp_path).write_tensor(torch.randn(64, 32), "a.weight")
    folder, scales = tmp_path / "a_weight.cdnav3", numpy.linspace(0.5, 1.5, 32, dtype="f4")
    plain = helix_substrate.CDNAv3Reader(folder).reconstruct()
    numpy.save(folder / "channel_scales.npy", scales)
    reader = helix_substrate.CDNAv3Reader(folder)
    assert numpy.array_equal(reader.reconstruct(), plain / scales)
    assert numpy.array_equal(reader.reconstruct_block(3, 9), (plain / scales)[3:9])


def test_a_string_is_no_list_of_patterns(dense_folder, tmp_path):
    """It would be taken letter by letter."""
    with pytest.raises(TypeError, match="not a string"):
        helix_substrate.compress(dense_folder, tmp_path / "out", keep="lm_head")
    with pytest.raises(TypeError, match="expected a list"):
        helix_substrate.HxqConfig(modules_to_not_convert="lm_head")
    with pytest.raises(TypeError, match="expected a list"):
        helix_substrate.compress_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), keep="0")


def test_what_the_core_notices_is_logged(dense_folder, tmp_path, caplog):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").symlink_to(dense_folder / "model.safetensors")
    (source / "other.pt").write_text("weights")
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        helix_substrate.compress(source, tmp_path / "hxq", keep=["*norm*"])
    assert "does not know this architecture" in caplog.text and "left out: other.pt" in caplog.text
    assert "pattern '*norm*' has no effect" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "helix_substrate"):
        helix_substrate.compress(dense_folder, tmp_path / "known")
    assert not caplog.text


# ---- Names of the older package ----


@pytest.mark.parametrize("codewords, rank", [(256, 0), (64, 4), (512, 0), (512, 3), (4096, 0)])
def test_writer_options(codewords, rank, tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(96, 64)).astype(np.float32)
    writer = helix_substrate.CDNAv3Writer(tmp_path)
    policy = dict(n_clusters=codewords, svd_residual_rank=rank)
    stats = writer.write_tensor(weight, "a.b.weight", policy, source_artifact="model.safetensors")
    folder = tmp_path / "a_b_weight.cdnav3"
    reader = helix_substrate.CDNAv3Reader(folder)
    meta = reader.meta
    assert meta["n_clusters"] == codewords and meta["source_artifact"] == "model.safetensors"
    assert meta["index_dtype"] == ("uint16" if codewords > 256 else "uint8") and meta["svd_residual_rank"] == rank
    assert (folder / "indices.bin").stat().st_size == weight.size * (2 if codewords > 256 else 1)
    assert len(meta["codebook_sha256"]) == 64 and reader.verify_codebook() and reader.get_stats() == stats

    codebook = np.load(folder / "codebook.npy")
    indices = np.fromfile(folder / "indices.bin", meta["index_dtype"]).reshape(weight.shape)
    decoded = codebook[indices]

    def cosine(a):
        return float((a * weight).sum() / np.linalg.norm(a) / np.linalg.norm(weight))

    assert stats["cosine_no_sidecar"] == pytest.approx(cosine(decoded), abs=1e-6)
    sidecar = np.load(folder / "sidecar.npz")
    decoded.reshape(-1)[sidecar["positions"]] = sidecar["values"]
    assert stats["cosine_with_sidecar"] == pytest.approx(cosine(decoded), abs=1e-6)
    assert len(sidecar["values"]) == stats["num_outliers"] == 6
    if rank:
        u, s, vt = (np.load(folder / f"svd_{part}.npy") for part in ("U", "s", "Vt"))
        decoded = decoded + (u * s) @ vt
    assert stats["cosine_with_svd"] == pytest.approx(cosine(decoded), abs=1e-6)
    assert np.allclose(reader.reconstruct(), decoded, atol=1e-6)
    assert stats["max_abs_diff"] == pytest.approx(np.abs(decoded - weight).max(), rel=1e-4)
    assert stats["cosine_with_svd"] > {64: 0.999, 256: 0.9998, 512: 0.99995, 4096: 0.999999}[codewords]

    layer = load_helix_linear_from_cdnav3(folder, compute_dtype=torch.bfloat16)
    assert layer.compute_dtype is torch.bfloat16 and layer.has_svd == (rank > 0) and layer.has_sidecar
    assert layer.rank == rank and (f"svd_rank={rank}" in repr(layer)) == (rank > 0)
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ torch.as_tensor(decoded).T, atol=0.05)


def test_writer_refuses_what_it_does_not_write(tmp_path):
    writer = helix_substrate.CDNAv3Writer(tmp_path)
    for policy in (dict(vector_dim=2), dict(n_clusters=0), dict(n_clusters=10**6)):
        with pytest.raises(ValueError, match=next(iter(policy))):
            writer.write_tensor(np.zeros((64, 64), np.float32), "w", policy)
    assert writer.write_tensor(np.ones((4, 3, 8), np.float32), "w")["shape"] == [12, 8]


@pytest.mark.parametrize("clusters", [256, 300])
def test_writer_loses_nothing_in_silence(clusters, tmp_path, caplog):
    writer, policy = helix_substrate.CDNAv3Writer(tmp_path), dict(n_clusters=clusters)
    weight = torch.randn(40, 64)
    writer.write_tensor(weight, "a.b", policy)
    writer.write_tensor(weight[0], "a.norm")
    for name, wrong in (("a_b", "is of tensor 'a.b'"), ("a.norm", "a.norm")):
        with pytest.raises((ValueError, helix_substrate.HxqError), match=wrong):
            writer.write_tensor(weight, name, policy)
    with pytest.raises(helix_substrate.HxqError, match="a.b"):
        writer.write_tensor(weight, "a.b", dict(storage_mode="exact"))
    with pytest.raises((ValueError, helix_substrate.HxqError), match="not finite"):
        writer.write_tensor(torch.full((40, 64), float("nan")), "n", policy)
    with pytest.raises(ValueError, match="real"):
        writer.write_tensor(weight.cfloat(), "c", policy)
    for values in (torch.tensor([2**24 + 1]), torch.tensor([1 + 2**-40], dtype=torch.float64)):
        with pytest.raises(ValueError, match="float32"):
            writer.write_tensor(values, "v")
    for values in (torch.tensor([2**24, -3]), torch.tensor([0.5, float("nan")], dtype=torch.float64), weight[0] > 0):
        writer.write_tensor(values, "v")
    assert not caplog.messages
    writer.write_tensor(weight, "a.b", {**policy, "n_cluster": 4})
    assert caplog.messages == ["policy: n_cluster without effect"]
    assert [t["name"] for t in helix_substrate.inspect(tmp_path)["tensors"]] == ["a.b", "a.norm", "v"]


def test_twelve_bits():
    from helix_substrate.index_packing import pack_12bit, unpack_12bit, unpack_12bit_rows

    indices = torch.randint(0, 4096, (10, 6), generator=torch.Generator().manual_seed(0))
    packed = pack_12bit(indices)
    assert packed.dtype is torch.uint8 and packed.numel() == 90
    values = packed.tolist()
    assert (values[0] | (values[1] & 15) << 8, values[1] >> 4 | values[2] << 4) == tuple(indices[0, :2].tolist())
    assert torch.equal(unpack_12bit(packed, 60).long(), indices.flatten())
    assert torch.equal(unpack_12bit_rows(packed, 3, 7, 6).long(), indices[3:7])
    for wrong in (torch.tensor([1, 2, 3]), torch.tensor([4096, 0]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError):
            pack_12bit(wrong)
    with pytest.raises(ValueError):
        unpack_12bit(packed, 62)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_layer_from_scratch_is_trained(rank):
    from helix_substrate.helix_linear_ste import HelixLinearSTE

    torch.manual_seed(0)
    layer = HelixLinearSTE.from_scratch(64, 96, bias=True, svd_rank=rank)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == (
        {"codebook", "bias", "svd_U", "svd_s", "svd_Vt"} if rank else {"codebook", "bias"}
    )
    assert layer.codebook.shape == (256,) and layer.indices.dtype is torch.uint8 and layer.has_svd == (rank > 0)
    assert layer.codebook_utilization() > 0.9 and abs(layer.weight_kurtosis()) < 0.5
    x, target = torch.randn(128, 64), torch.randn(128, 96)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (layer(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is HelixLinearSTE and torch.equal(other(x), layer(x))
    before = layer.codebook.detach().clone()
    changed, total = layer.reassign_indices()
    assert 0 <= changed < total == 96 * 64 and torch.equal(layer.codebook, before)
    savings = layer.memory_savings()
    assert savings.keys() == {"compressed_bytes", "dense_bytes", "ratio", "savings_pct"}
    assert savings["savings_pct"] == pytest.approx(100 * (1 - 1 / savings["ratio"]))


def test_parts_that_are_not_there_are_none():
    layer = helix_substrate.HelixLinear.from_linear(torch.nn.Linear(64, 96), 0.0)
    assert layer.sidecar_positions is None and layer.svd_U is None and layer.channel_scales is None
    assert not layer.has_sidecar and not layer.has_svd and layer.vector_dim == 1
    layer.set_compute_dtype(torch.float16)
    assert layer.weight.dtype is torch.float16


@pytest.mark.release_independent
@pytest.mark.parametrize("version", ["4.20.0", "99.0.0"])
def test_the_command_line_needs_no_release_of_transformers(version, dense_folder, tmp_path):
    """A transformers that would not do, or breaks when it is imported, is none of its business."""
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text(f"__version__ = {version!r}\nraise RuntimeError('broken')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "helix_substrate", "inspect", str(dense_folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_type"] == "mamba"


def test_versions_agree():
    from importlib import metadata

    try:
        stated = metadata.version("helix-substrate")
    except metadata.PackageNotFoundError:
        pytest.skip("used from the source tree")
    assert stated == helix_substrate.__version__


def test_what_older_programs_rely_on(tmp_path):
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    writer = helix_substrate.CDNAv3Writer(tmp_path)
    classes = {
        "blk.2.ffn_down.weight": "ffn", "blk.0.attn_q.weight": "attention_qk", "output.weight": "lm_head",
        "model.layers.1.self_attn.v_proj.weight": "attention_vo", "model.embed_tokens.weight": "embedding",
        "backbone.layers.0.mixer.x_proj.weight": "unknown",
    }  # fmt: skip
    for name, kind in classes.items():
        writer.write_tensor(weight, name)
        folder = tmp_path / f"{name.replace('.', '_')}.cdnav3"
        assert json.loads((folder / "meta.json").read_text())["tensor_class"] == kind
    layer = load_helix_linear_from_cdnav3(folder)
    x = torch.randn(3, 32)
    decoded = torch.as_tensor(helix_substrate.CDNAv3Reader(folder).reconstruct())
    assert torch.allclose(layer(x), x @ decoded.T, atol=1e-5)
    layer.index_packing = None
    with pytest.raises(ValueError, match="index_packing is '12bit', but the indices are None"):
        layer.index_packing = "12bit"
