"""`compress --profile`, `--bits`, `--group` and `--bits-for`, and every verb on what they write. Decoded here by the
definition in docs/format.md, with numpy."""

import json
import sys

import numpy
import pytest
from conftest import MODEL, ROOT
from safetensors import safe_open

sys.path.insert(0, str(ROOT / "tests" / "golden"))
from expect import decoded_tensors  # noqa: E402

TEXT = ROOT / "models" / "wikitext2-excerpt.txt"
EMBEDDING = "backbone.embeddings.weight"
#: Name, bits, group, least SNR of the bundled model's matrices in dB: 6 dB a bit, less what few levels lose at the ends.
PROFILES = [("g8", 8, 64, 44), ("g8-uniform", 8, 32, 44), ("g6", 6, 32, 33), ("g5", 5, 32, 27), ("g4", 4, 32, 21), ("g3", 3, 32, 14.5)]


@pytest.fixture(scope="session")
def g4(hxq, tmp_path_factory):
    target = tmp_path_factory.mktemp("g4") / "model"
    assert hxq("compress", MODEL, target, "--profile", "g4").code == 0
    return target


def receipt_of(folder):
    return json.loads((folder / "hxq_receipt.json").read_text())


@pytest.mark.parametrize("name, bits, group, snr", PROFILES)
def test_a_profile_has_the_bits_that_it_says(hxq, tmp_path, name, bits, group, snr):
    assert hxq("compress", MODEL, tmp_path / "out", "--profile", name).code == 0
    receipt = receipt_of(tmp_path / "out")
    assert (receipt["options"]["bits"], receipt["options"]["group"]) == (bits, group)
    assert receipt["options"].get("levels") == ("uniform" if name == "g8-uniform" else None)
    for tensor in receipt["tensors"]:
        if tensor["codec"] == "exact":
            continue
        rows, cols = tensor["shape"]
        sizes = {key["key"].rpartition(".grouped_")[2]: key["bytes"] for key in tensor["stored"]}
        assert sizes["indices"] == rows * -(-cols * bits // 8)
        assert sizes["scales"] == rows * -(-cols // group)
        assert sizes["levels"] == 4 * 2**bits and sizes["scale_levels"] <= 1024
        assert sizes["shape"] == (24 if tensor["name"] == EMBEDDING else 16), "the embedding has a term"
        assert tensor["snr_db"] > snr, tensor["name"]
    result = json.loads(hxq("verify", tmp_path / "out", "--source", MODEL, "--json").out)
    assert result["ok"] and result["fidelities_checked"] == result["compressed"] == 49


def test_levels_in_segments_are_of_the_published_format(hxq, tmp_path):
    assert hxq("compress", MODEL, tmp_path / "out", "--profile", "hxq-segments").code == 0
    assert receipt_of(tmp_path / "out")["options"]["levels"] == "segments"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "hxq"
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as stored:
        codebooks = [stored.get_tensor(key) for key in stored.keys() if key.endswith(".codebook")]
        for codebook in codebooks:
            steps = numpy.diff(codebook.astype(numpy.float64).reshape(32, 8))
            assert (steps == steps[:, :1]).all() and (steps > 0).all()
    result = json.loads(hxq("verify", tmp_path / "out", "--source", MODEL, "--json").out)
    assert result["ok"] and result["compressed"] == len(codebooks) == 49


def test_uniform_levels_are_of_a_profile_alone(hxq, tmp_path):
    options = ("--profile", "g8-uniform", "--group", 64, "--bits-for", "embedding=6")
    assert hxq("compress", MODEL, tmp_path / "out", *options).code == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as stored:
        levels = stored.get_tensor("backbone.layers.0.mixer.in_proj.grouped_levels")
        assert (levels == numpy.arange(-128, 128)).all()
        assert stored.get_tensor("backbone.embeddings.grouped_levels").shape == (64,)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["levels"] == "uniform"


def test_readers_of_the_published_format_are_told(g4):
    config = json.loads((g4 / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "hxq_grouped" and (config["bits"], config["group"]) == (4, 32)
    with safe_open(g4 / "model.safetensors", "numpy") as stored:
        assert not [key for key in stored.keys() if key.endswith((".codebook", ".indices"))]


def test_inspect_and_decompress(hxq, g4, tmp_path):
    tensors = {tensor["name"]: tensor for tensor in json.loads(hxq("inspect", g4, "--json").out)["tensors"]}
    assert (tensors[EMBEDDING]["codewords"], tensors[EMBEDDING]["group"]) == (16, 32)
    assert "16 levels, groups of 32" in hxq("inspect", g4).out
    assert hxq("decompress", g4, tmp_path / "dense").code == 0
    with safe_open(tmp_path / "dense" / "model.safetensors", "numpy") as dense:
        decoded = dict(decoded_tensors(g4))
        assert EMBEDDING in decoded
        for name, expected in decoded.items():
            numpy.testing.assert_array_equal(dense.get_tensor(name), expected)


def test_it_runs_as_the_dense_model_does(hxq, g4, tmp_path):
    assert hxq("decompress", g4, tmp_path / "dense").code == 0
    options = ("--prompt", "The river", "--max-tokens", "24", "--precision", "exact", "--json")
    tokens = [json.loads(hxq("generate", folder, *options).out)["tokens"] for folder in (g4, tmp_path / "dense")]
    assert tokens[0] == tokens[1]
    scored = ("--text", TEXT, "--window", 256, "--windows", 3, "--against", MODEL, "--json")
    assert 0.001 < json.loads(hxq("perplexity", g4, *scored).out)["mean_kl"] < 0.1


def test_low_rank_terms(hxq, tmp_path):
    """A rank that is asked for, none, and where it pays: with less error, and bits by which no groups get that far."""
    found = {}
    for rank in ("auto", "off", "2"):
        folder = tmp_path / rank
        assert hxq("compress", MODEL, folder, "--profile", "g4", "--only", "*embed*", "--low-rank", rank).code == 0
        receipt = receipt_of(folder)
        assert receipt["options"]["low_rank"] == {"auto": None, "off": 0, "2": 2}[rank]
        (tensor,) = (tensor for tensor in receipt["tensors"] if tensor["codec"] != "exact")
        (inspected,) = (t for t in json.loads(hxq("inspect", folder, "--json").out)["tensors"] if t["codec"] != "exact")
        assert (" + rank" in hxq("inspect", folder).out) == (rank != "off")
        result = json.loads(hxq("verify", folder, "--source", MODEL, "--json").out)
        assert result["ok"] and result["fidelities_checked"] == 1
        found[rank] = (inspected["low_rank"], tensor["snr_db"], tensor["bits_per_weight"])
    assert [found[rank][0] for rank in ("auto", "off", "2")] == [1, 0, 2]
    _, gain, bits = (a - b for a, b in zip(found["auto"], found["off"]))
    assert gain > 0.9 and bits < 0.07 and gain > 8 * bits


def test_readers_without_terms_refuse_them(g4, tmp_path):
    """Those take columns and group from `grouped_shape`, which has three numbers where there is a term."""
    with safe_open(g4 / "model.safetensors", "numpy") as stored:
        shapes = {key: stored.get_tensor(key) for key in stored.keys() if key.endswith(".grouped_shape")}
        terms = {key.rpartition(".")[0] for key in stored.keys() if key.endswith(".svd_s")}
    assert terms == {"backbone.embeddings"}
    for key, shape in shapes.items():
        assert len(shape) == (3 if key.rpartition(".")[0] in terms else 2)


def test_threads_and_resuming_do_not_change_bytes(hxq, g4, tmp_path):
    for threads in (1, 3):
        out = tmp_path / str(threads)
        assert hxq("compress", MODEL, out, "--profile", "g4", "--threads", threads).code == 0
        assert (out / "model.safetensors").read_bytes() == (g4 / "model.safetensors").read_bytes()


def test_bits_and_groups_of_ones_own(hxq, tmp_path):
    done = hxq("compress", MODEL, tmp_path / "out", "--bits", 4, "--group", 16, "--bits-for", "embedding=6")
    assert done.code == 0
    tensors = {tensor["name"]: tensor for tensor in json.loads(hxq("inspect", tmp_path / "out", "--json").out)["tensors"]}
    assert (tensors[EMBEDDING]["codewords"], tensors[EMBEDDING]["group"]) == (64, 16)
    projection = tensors["backbone.layers.0.mixer.in_proj.weight"]
    assert (projection["codewords"], projection["group"]) == (16, 16)
    assert receipt_of(tmp_path / "out")["options"]["bits_for"] == {"embedding": 6}
    plan = json.loads(hxq("compress", MODEL, tmp_path / "no", "--profile", "g4", "--dry-run", "--json").out)["tensors"]
    assert {(t["bits"], t["group"]) for t in plan if t["codec"] != "exact"} == {(4, 32)}


@pytest.mark.parametrize(
    "options, code, says",
    [
        (["--profile", "g9"], 2, "g4"),
        (["--bits", "9"], 2, "9"),
        (["--bits", "2"], 2, "2"),
        (["--group", "12"], 1, "a multiple of 8"),
        (["--profile", "g4", "--bits", "5"], 1, "how many bits"),
        (["--profile", "g4", "--codec", "codebook"], 1, "profile 'g4'"),
        (["--profile", "hxq", "--group", "32"], 1, "no choice of bits or groups"),
        (["--codec", "codebook", "--bits", "4"], 1, "no choice of bits or groups"),
        (["--bits-for", "embedding=4"], 1, "no choice of bits or groups"),
        (["--profile", "g4", "--bits-for", "embedding"], 2, "ROLE=N"),
        (["--profile", "g4", "--bits-for", "embedding=4x"], 2, "ROLE=N"),
        (["--profile", "g4", "--bits-for", "embedding=2"], 1, "expected one of"),
        (["--profile", "g4", "--bits-for", "norm=8"], 1, "embedding, projection or head"),
        (["--profile", "g4", "--bits-for", "head=8"], 1, "no effect"),
        (["--profile", "g4", "--bits-for", "embedding=8", "--bits-for", "embedding=8"], 2, "twice"),
        (["--profile", "g4", "--sidecar", "0.01"], 1, "no outliers"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(hxq, tmp_path, options, code, says):
    done = hxq("compress", MODEL, tmp_path / "out", *options)
    assert done.code == code and says in done.err, done.err
    assert not (tmp_path / "out").exists()
