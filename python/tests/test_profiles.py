"""Profiles with fewer bits: loaded, saved, compressed while loading, trained with LoRA. Checked against the decoded
weights, which are those of the definition in docs/format.md."""

import json

import pytest
import torch
from test_models import IDS, save_dense, tiny
from test_saving import helix_modules, logits
from torch import nn

import helix_substrate
from helix_substrate import HxqConfig, compress_model
from helix_substrate.__main__ import main
from helix_substrate.compressed import encode

PROFILES = {"g8": (8, 64), "g8-uniform": (8, 32), "g6": (6, 32), "g4": (4, 32), "g3": (3, 32)}


def decoded_by_definition(parts):
    """W[r, c] = scale_levels[scales[r, c / g]] * levels[index(r, c)] + sum over j of U[r, j] * s[j] * Vt[j, c]."""
    columns, group, *rank = parts["grouped_shape"].tolist()
    levels = parts["grouped_levels"]
    bits = levels.numel().bit_length() - 1
    shifts = torch.arange(8)
    ones_and_zeros = (parts["grouped_indices"][..., None] >> shifts & 1).flatten(1)[:, : columns * bits]
    indices = (ones_and_zeros.unflatten(1, (columns, bits)).long() << torch.arange(bits)).sum(-1)
    scales = parts["grouped_scale_levels"][parts["grouped_scales"].long()].repeat_interleave(group, 1)[:, :columns]
    weights = scales * levels[indices]
    if rank:
        u, s, vt = (parts[name].double() for name in ("svd_U", "svd_s", "svd_Vt"))
        assert s.shape == (rank[0],)
        weights = (weights.double() + u * s @ vt).float()
    return weights


@pytest.mark.parametrize("profile", PROFILES)
def test_a_layer_is_what_its_parts_say(profile):
    torch.manual_seed(0)
    dense = nn.Linear(200, 96)
    parts, fidelity = encode(dense.weight, profile=profile)
    bits, group = PROFILES[profile]
    assert parts["grouped_levels"].shape == (1 << bits,) and parts["grouped_shape"].tolist() == [200, group]
    layer = nn.Sequential(nn.Linear(200, 96))
    layer[0].load_state_dict(dense.state_dict())
    report = compress_model(layer, profile=profile)
    assert report["modules"][0]["snr_db"] == pytest.approx(fidelity["snr_db"])
    weight = decoded_by_definition(layer[0].stored_tensors())
    assert torch.equal(layer[0].decode_weight(), weight)
    x = torch.randn(3, 200)
    with helix_substrate.precision("exact"):
        torch.testing.assert_close(layer(x), x @ weight.T + dense.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_on_the_fly_saved_and_loaded_again(kind, tmp_path):
    dense = tiny(kind)
    save_dense(dense, tmp_path / "dense")
    config = HxqConfig(profile="g4")
    model = type(dense).from_pretrained(tmp_path / "dense", quantization_config=config, dtype=torch.float32)
    assert helix_modules(model) and all("grouped_levels" in m.stored_tensors() for m in helix_modules(model))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert (saved["quant_method"], saved["bits"], saved["group"]) == ("hxq_grouped", 4, 32)
    again = type(dense).from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))
    assert helix_substrate.verify(tmp_path / "saved")["ok"]


def test_a_folder_of_the_command_loads_and_trains(tmp_path):
    dense = tiny("llama")
    save_dense(dense, tmp_path / "dense")
    receipt = helix_substrate.compress(tmp_path / "dense", tmp_path / "g6", profile="g6")
    assert receipt["options"]["bits"] == 6
    model = type(dense).from_pretrained(tmp_path / "g6", dtype=torch.float32)
    layer = next(m for m in helix_modules(model) if hasattr(m, "enable_lora"))
    before = layer.decode_weight().clone()
    layer.enable_lora(2)
    with torch.no_grad():
        layer.lora_B.normal_(std=0.1)
    model(IDS, labels=IDS).loss.backward()
    assert layer.lora_A.grad.abs().sum() > 0
    x = torch.randn(3, layer.in_features, requires_grad=True)
    g = torch.randn(3, layer.out_features)
    (dx,) = torch.autograd.grad(layer(x), x, g)
    torch.testing.assert_close(dx, g @ layer.merged_weight(), rtol=1e-4, atol=1e-4)
    wanted = layer.merged_weight().detach().clone()
    assert not torch.equal(wanted, before)
    fidelity = layer.merge_lora()
    assert layer.stored_tensors()["grouped_levels"].shape == (64,), "merging keeps the bits"
    error = (layer.decode_weight() - wanted).square().sum() / wanted.square().sum()
    assert -10 * torch.log10(error).item() == pytest.approx(fidelity["snr_db"], abs=1e-3) and fidelity["snr_db"] > 30


def test_bits_by_role(tmp_path, capfd):
    save_dense(tiny("llama"), tmp_path / "dense")
    command = ["compress", str(tmp_path / "dense"), str(tmp_path / "out"), "--bits", "4", "--group", "16"]
    assert main([*command, "--bits-for", "embedding=6", "--bits-for", "head=8"]) == 0
    tensors = helix_substrate.inspect(tmp_path / "out")["tensors"]
    levels = {tensor["name"]: tensor["codewords"] for tensor in tensors if tensor["codec"] == "grouped"}
    assert (levels.pop("model.embed_tokens.weight"), levels.pop("lm_head.weight")) == (64, 256)
    assert len(levels) >= 14 and set(levels.values()) == {16}
    saved = json.loads((tmp_path / "out" / "hxq_receipt.json").read_text())["options"]
    assert (saved["bits"], saved["group"], saved["bits_for"]) == (4, 16, {"embedding": 6, "head": 8})
    capfd.readouterr()
    assert main([*command[:2], str(tmp_path / "twice"), "--bits", "4", *["--bits-for", "head=8"] * 2]) == 1
    assert "names a role twice" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--bits-for", "embedding=x"])
    assert "expected ROLE=N" in capfd.readouterr().err


def offset_layer():
    """A column far from zero, which is worth a term."""
    torch.manual_seed(0)
    dense = nn.Linear(200, 96)
    with torch.no_grad():
        dense.weight[:, 70] += 1
    return dense


def test_a_low_rank_term_beside_groups():
    dense = offset_layer()
    parts, fidelity = encode(dense.weight, profile="g4")
    plain, without = encode(dense.weight, profile="g4", low_rank=0)
    assert parts["grouped_shape"].tolist() == [200, 32, 1] and plain["grouped_shape"].tolist() == [200, 32]
    assert fidelity["snr_db"] > without["snr_db"] + 4
    layer = nn.Sequential(nn.Linear(200, 96))
    layer[0].load_state_dict(dense.state_dict())
    compress_model(layer, profile="g4")
    layer = layer[0]
    assert layer.has_svd and layer.rank == 1
    weight = decoded_by_definition(layer.stored_tensors())
    assert torch.equal(layer.decode_weight(), weight)
    for x in (torch.randn(1, 200), torch.randn(3, 1, 200), torch.randn(5, 200, requires_grad=True)):
        torch.testing.assert_close(layer(x), x @ weight.T + layer.bias, rtol=1e-3, atol=5e-3)  # x is rounded
    with helix_substrate.precision("exact"):
        torch.testing.assert_close(layer(x), x @ weight.T + layer.bias, rtol=1e-5, atol=1e-5)
    g = torch.randn(5, 96)
    (dx,) = torch.autograd.grad(layer(x), x, g)
    torch.testing.assert_close(dx, g @ weight, rtol=1e-4, atol=1e-4)
    layer.enable_lora(2).freeze_base()
    with pytest.raises(ValueError, match="svd_U cannot be trained"):
        layer.freeze_base(freeze_svd=False)
    layer.merge_lora()
    assert layer.rank == 1, "merging keeps the column apart"


def test_low_rank_terms_are_saved_and_loaded(tmp_path):
    dense = tiny("llama")
    with torch.no_grad():
        dense.model.embed_tokens.weight[:, 3] += 2
    save_dense(dense, tmp_path / "dense")
    config = HxqConfig(profile="g6", low_rank=2)
    model = type(dense).from_pretrained(tmp_path / "dense", quantization_config=config, dtype=torch.float32)
    assert all(m.stored_tensors()["svd_s"].numel() == 2 for m in helix_modules(model))
    table = model.model.embed_tokens
    torch.testing.assert_close(table(torch.arange(4)), decoded_by_definition(table.stored_tensors())[:4])
    model.save_pretrained(tmp_path / "saved")
    again = type(dense).from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))
    helix_substrate.compress(tmp_path / "dense", tmp_path / "g6", profile="g6", low_rank=2)
    assert torch.equal(logits(type(dense).from_pretrained(tmp_path / "g6", dtype=torch.float32)), logits(model))


@pytest.mark.parametrize("profile", ["g8-uniform", "hxq-segments"])
def test_weights_are_replaced_in_the_same_form(profile):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(320, 96))
    compress_model(layer, profile=profile)
    fidelity = layer[0].replace_weight(torch.randn(96, 320))
    assert fidelity["snr_db"] > 40
    if profile == "g8-uniform":
        assert layer[0].stored_tensors()["grouped_levels"].tolist() == list(range(-128, 128))
    else:
        steps = layer[0].stored_tensors()["codebook"].double().view(32, 8).diff()
        assert torch.equal(steps, steps[:, :1].expand_as(steps))


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="expected one of hxq, hxq-segments, g8"):
        HxqConfig(profile="g9")
    with pytest.raises(ValueError, match="no outliers"):
        HxqConfig(profile="g4", sidecar_fraction=0.01)
    assert HxqConfig(profile="hxq").quant_method == "hxq"
    assert HxqConfig(quant_method="hxq_grouped", profile="g5").to_dict()["bits"] == 5
