"""vLLM's own layers in worlds of 1, 2 and 4 ranks: each rank's compressed share decodes to the bits that the layer
loads of the decompressed matrix."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

WORLDS = (1, 2, 4)
HIDDEN = 64


def layers(config) -> dict:
    """{kind: (layer, {shard: rows of its matrix in the folder}, its columns there)}, with or without compression."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer
    from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    name = "hxq" if config is not None else "dense"

    def made(kind, *arguments, **named):
        return kind(*arguments, **named, quant_config=config, prefix=f"{name}.{kind.__name__}")

    def qkv(heads, kv_heads):
        layer = made(linear.QKVParallelLinear, HIDDEN, 8, heads, kv_heads, bias=False)
        return layer, {"q": heads * 8, "k": kv_heads * 8, "v": kv_heads * 8}, HIDDEN

    sizes = dict(hidden_size=HIDDEN, ssm_state_size=8, conv_kernel_size=4, use_conv_bias=True, use_bias=False)
    mixer = MambaMixer(**sizes, intermediate_size=96, time_step_rank=32, use_rms_norm=False, prefix=f"{name}.mixer")
    groups = {
        n: MambaMixer2(
            **sizes, intermediate_size=128, n_groups=n, num_heads=8, head_dim=16, quant_config=config,
            prefix=f"{name}.mixer2.{n}",
        )
        for n in (1, 4)
    }  # fmt: skip
    return {
        "replicated": (made(linear.ReplicatedLinear, HIDDEN, 24, bias=False), {None: 24}, HIDDEN),
        "column": (made(linear.ColumnParallelLinear, HIDDEN, 52, bias=False), {None: 52}, HIDDEN),
        "gate and up": (made(linear.MergedColumnParallelLinear, HIDDEN, [44, 44], bias=False), {0: 44, 1: 44}, HIDDEN),
        "fused": (made(linear.MergedColumnParallelLinear, HIDDEN, [44, 44], bias=False), {None: 88}, HIDDEN),
        "qkv": qkv(8, 4),
        "qkv, fewer key heads than ranks": qkv(8, 2),
        "qkv, one key head": qkv(4, 1),
        "row": (made(linear.RowParallelLinear, 352, 12, bias=False), {None: 12}, 352),
        "embedding": (made(VocabParallelEmbedding, 77, HIDDEN), {None: 77}, HIDDEN),
        "embedding of few rows": (made(VocabParallelEmbedding, 17, HIDDEN), {None: 17}, HIDDEN),
        "head": (made(ParallelLMHead, 1001, HIDDEN), {None: 1001}, HIDDEN),
        "mamba in_proj": (mixer.in_proj, {None: 192}, HIDDEN),
        "mamba x_proj": (mixer.x_proj, {None: 48}, 96),
        "mamba dt_proj": (mixer.dt_proj, {None: 96}, 32),
        "mamba out_proj": (mixer.out_proj, {None: HIDDEN}, 96),
        "mamba2 in_proj, one group": (groups[1].in_proj, {None: 2 * 128 + 2 * 8 + 8}, HIDDEN),
        "mamba2 in_proj": (groups[4].in_proj, {None: 2 * 128 + 8 * 8 + 8}, HIDDEN),
        "mamba2 out_proj": (groups[1].out_proj, {None: HIDDEN}, 128),
    }


def load(layer, part: str, tensor: torch.Tensor, shard) -> None:
    parameter = getattr(layer, part)
    parameter.weight_loader(parameter, tensor, *(() if shard is None else (shard,)))


def compare(kind: str, compressed, dense, sources: dict, cols: int, make) -> None:
    from test_vllm_shares import decompressed

    rng = np.random.default_rng(0)
    dense.weight.data.zero_()
    for shard, rows in sources.items():
        parts, whole = make(rng, rows, cols)
        for part, tensor in parts.items():
            load(compressed, part, tensor, shard)
        if "weight" in parts:
            whole = parts["weight"]
        else:
            whole = decompressed(parts, whole.shape)
        load(dense, "weight", whole, shard)
    share = dense.weight.data.clone()
    made = compressed.hxq.finish()  # vLLM may lay out anew what is dense
    assert torch.equal(made.data if "weight" in parts else made.decode(), share)
    compressed.quant_method.process_weights_after_loading(compressed)
    if "weight" in parts:
        assert type(compressed.quant_method).__name__.startswith("Unquantized")
    else:
        assert compressed.hxq_stacked is made
        assert torch.equal(compressed.quant_method.dequantize_weight(compressed), share)


def check_other_activations() -> None:
    from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer

    with pytest.raises(ValueError, match="gelus.mixer has activation 'gelu'"):
        MambaMixer(
            HIDDEN, 8, 4, 96, 32, use_conv_bias=True, use_bias=False, use_rms_norm=False, activation="gelu",
            prefix="gelus.mixer",
        )  # fmt: skip


def run_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    from test_vllm_shares import STORED
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment
    from vllm.distributed.parallel_state import initialize_model_parallel

    from helix_substrate.vllm import register
    from helix_substrate.vllm.method import HxqQuantizationConfig

    register()
    register()  # as vLLM does in some processes
    failures, config, done = [], HxqQuantizationConfig.from_config({"quant_method": "hxq"}), 0
    for number, (stored, make) in enumerate(STORED.items()):
        current = VllmConfig()
        with set_current_vllm_config(current):
            if number == 0:
                os.environ["VLLM_DIST_IDENT"] = f"hxq{world}"  # the group's name, as vLLM's workers set it
                init_distributed_environment(world, rank, f"file://{folder}/meeting{world}", rank, "gloo")
                initialize_model_parallel(world)
            dense = layers(None)
            current.quant_config = config  # what layers that are given none find
            for kind, (layer, sources, cols) in layers(config).items():
                try:
                    compare(kind, layer, dense[kind][0], sources, cols, make)
                    done += 1
                except Exception as error:
                    failures.append(f"{kind}, {stored}, rank {rank} of {world}: {type(error).__name__} {error}"[:500])
            if number == 0:
                check_other_activations()
    with open(os.path.join(folder, f"{world}.{rank}"), "w") as file:
        file.write("\n".join(failures) or f"{done} alike")


def test_every_rank_holds_what_vllm_loads_dense(tmp_path):
    from test_vllm_shares import STORED

    for world in WORLDS:
        mp.spawn(run_rank, args=(world, str(tmp_path)), nprocs=world)
    said = {(tmp_path / f"{world}.{rank}").read_text() for world in WORLDS for rank in range(world)}
    assert said == {f"{18 * len(STORED)} alike"}


def test_states_of_texts_in_decode():
    from helix_substrate.vllm.layers import decode_slots

    def slots(indices, texts=2, tokens=2):
        metadata = SimpleNamespace(
            num_decodes=texts, num_decode_tokens=tokens, state_indices_tensor_d=torch.tensor(indices)
        )
        return decode_slots(metadata).tolist()

    assert slots([7, 3]) == slots([[7], [3]]) == [7, 3]
    assert slots([7, 3, 0, 0]) == slots([[7, 5], [3, 6], [0, 0], [0, 0]]) == [7, 3]
    with pytest.raises(ValueError, match="4 tokens are decoded for 2 texts"):
        slots([7, 3], tokens=4)


def test_options():
    from helix_substrate.vllm.method import options_of

    def options(additional):
        return options_of(SimpleNamespace(additional_config=additional))

    assert options({}) == options({"hxq": {}}) == {}
    assert options({"hxq": {"precision": "exact"}}) == {"precision": "exact"}
    for wrong in (None, "exact", ["precision"]):
        with pytest.raises(ValueError, match=r"additional_config\['hxq'\] is .*, expected options"):
            options({"hxq": wrong})
    for wrong in (None, "double", ["exact"]):
        with pytest.raises(ValueError, match="precision is .*, expected one of fast, exact"):
            options({"hxq": {"precision": wrong}})
