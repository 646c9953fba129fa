"""Writes the tiny random checkpoints of this folder and what transformers makes of them.

    python make_models.py [FOLDER]        needs torch and transformers 5

Each has a config.json, a model.safetensors and an expected.safetensors: `ids`, the `logits` and the `hidden` states
after the final norm of the last ones, and the mean of all hidden states, `hidden_mean`.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Mamba2Config, MambaConfig, Qwen2Config, Zamba2Config

TOKENS, KEPT_LOGITS, VOCABULARY = 150, 4, 64

ZAMBA2 = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=6, mamba_d_state=16, n_mamba_heads=4, chunk_size=32,
    layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba"], intermediate_size=24,
    num_attention_heads=2, adapter_rank=4, max_position_embeddings=512,
    time_step_min=1e-9)  # transformers' slow path clamps time steps there, which models were not trained with
MAMBA2 = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3, num_heads=4, head_dim=8, n_groups=1,
              state_size=16, chunk_size=32)
LLAMA = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3, intermediate_size=40, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=160)
QWEN2 = LLAMA | dict(use_sliding_window=True, sliding_window=40)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

# In widths of whole tiles, as those of trained models are.
QWEN2_TILES = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, intermediate_size=80,
                   num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096)
MAMBA = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, state_size=16, time_step_rank=32,
             conv_kernel=4)

MODELS = {
    "mamba-tiles": MambaConfig(**MAMBA),
    "qwen2-tiles": Qwen2Config(**QWEN2_TILES),
    "llama-bias": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, head_dim=10, tie_word_embeddings=True),
    "llama-linear": LlamaConfig(**LLAMA | dict(max_position_embeddings=40), rope_parameters=dict(
        rope_type="linear", factor=4.0, rope_theta=1000.0)),
    "llama-dynamic": LlamaConfig(**LLAMA | dict(max_position_embeddings=64), rope_parameters=dict(
        rope_type="dynamic", factor=3.0, rope_theta=1000.0)),
    "llama-llama3": LlamaConfig(**LLAMA | dict(num_key_value_heads=1), rope_parameters=LLAMA3),
    "qwen2-sliding": Qwen2Config(**QWEN2, max_window_layers=1, tie_word_embeddings=True),
    "qwen2-layer-types": Qwen2Config(**QWEN2 | dict(num_key_value_heads=4), layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"]),
    "zamba2-plain": Zamba2Config(**ZAMBA2, hidden_act="silu"),
    "zamba2-adapters": Zamba2Config(**ZAMBA2, num_mem_blocks=2, use_shared_attention_adapter=True, use_mem_rope=True),
    "zamba2-bias": Zamba2Config(**ZAMBA2, num_mem_blocks=3, add_bias_linear=True, mamba_ngroups=2),
    "mamba2-limit": Mamba2Config(**MAMBA2, time_step_limit=(0.05, 0.2), use_bias=True, tie_word_embeddings=True),
    "mamba2-no-conv-bias": Mamba2Config(**MAMBA2, use_conv_bias=False, layer_norm_epsilon=0.5),
}


@torch.no_grad()
def randomise(model) -> None:
    for name, values in model.named_parameters():
        noise = torch.randn_like(values)
        if name.endswith("A_log"):
            noise = 2.7 * torch.rand_like(values)
        elif name.endswith("dt_bias"):
            noise = noise - 2
        elif "norm" in name:
            noise = 1 + 0.1 * noise
        elif values.dim() > 1:
            noise = noise / values.shape[-1] ** 0.5
        values.copy_(noise.bfloat16())  # stored as such, computed in float


def spell_as_transformers_4(config: dict) -> dict:
    rope = config.pop("rope_parameters", {})
    config["rope_theta"] = rope.pop("rope_theta", 10000)
    config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "zamba2":
        kinds = ["mamba" if kind == "linear_attention" else kind for kind in config["layers_block_type"]]
        config |= {"layers_block_type": kinds, "time_step_limit": None}
    return config


def main(target: pathlib.Path) -> None:
    for name, config in MODELS.items():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config).eval()
        randomise(model)
        folder = target / name
        ids = torch.randint(VOCABULARY, (TOKENS,))
        with torch.no_grad():
            logits = model(ids[None]).logits[0, -KEPT_LOGITS:].contiguous()
            hidden = model.base_model(ids[None]).last_hidden_state[0]
        model.bfloat16().save_pretrained(folder)
        last = hidden[-KEPT_LOGITS:].contiguous()
        expected = {"ids": ids.int(), "logits": logits, "hidden": last, "hidden_mean": hidden.mean(0)}
        save_file(expected, folder / "expected.safetensors")
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name in ("zamba2-adapters", "llama-llama3"):
            file = folder / "config.json"
            file.write_text(json.dumps(spell_as_transformers_4(json.loads(file.read_text())), indent=2) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
