"""Models of transformers as GGUF files, for llama.cpp. Needs gguf, numpy, safetensors and torch."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

LLAMA_NAMES = {
    r"model\.embed_tokens\.weight": "token_embd.weight",
    r"model\.norm\.weight": "output_norm.weight",
    r"lm_head\.weight": "output.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"blk.\1.attn_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"blk.\1.ffn_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.weight": r"blk.\1.attn_\2.weight",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight": r"blk.\1.attn_output.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight": r"blk.\1.ffn_\2.weight",
}
MAMBA_NAMES = {
    r"backbone\.embeddings\.weight": "token_embd.weight",
    r"backbone\.norm_f\.weight": "output_norm.weight",
    r"backbone\.layers\.(\d+)\.norm\.weight": r"blk.\1.attn_norm.weight",
    r"backbone\.layers\.(\d+)\.mixer\.(in|x|out)_proj\.weight": r"blk.\1.ssm_\2.weight",
    r"backbone\.layers\.(\d+)\.mixer\.dt_proj\.(weight|bias)": r"blk.\1.ssm_dt.\2",
    r"backbone\.layers\.(\d+)\.mixer\.conv1d\.(weight|bias)": r"blk.\1.ssm_conv1d.\2",
    r"backbone\.layers\.(\d+)\.mixer\.A_log": r"blk.\1.ssm_a",
    r"backbone\.layers\.(\d+)\.mixer\.D": r"blk.\1.ssm_d",
}


def names_of(config: dict) -> dict[str, str]:
    return MAMBA_NAMES if config["model_type"] == "mamba" else LLAMA_NAMES


def rename(name: str, names: dict[str, str]) -> str:
    for pattern, replacement in names.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)


def for_ggml(name: str, value: np.ndarray, config: dict) -> np.ndarray:
    """Values as llama.cpp wants them: interleaved rotary halves, -exp(A_log), a flat convolution."""
    if match := re.search(r"attn_([qk])\.weight", name):
        heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        return value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    if name.endswith("ssm_a"):
        return -np.exp(value)
    return value.squeeze(1) if value.ndim == 3 else value


def from_ggml(name: str, value: np.ndarray, config: dict) -> np.ndarray:
    """A matrix as transformers has it: `for_ggml` undone."""
    if match := re.search(r"attn_([qk])\.weight", name):
        heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        return value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return value


def read_matrices(path: Path, names: list[str], config: dict) -> dict[str, tuple[np.ndarray, int]]:
    """Matrices of a GGUF file, decoded to float32, and their bytes there, by the names that transformers has."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name in names:
        tensor = stored[rename(name, names_of(config))]
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[name] = (from_ggml(tensor.name, value, config), int(tensor.n_bytes))
    return found


def add_tokenizer(writer: gguf.GGUFWriter, file: Path, vocab_size: int) -> None:
    """The byte-level BPE of a tokenizer.json. Tokens of the model that it does not know are unused."""
    spec = json.loads(file.read_text())
    ids = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}
    tokens, types = [f"[unused{i}]" for i in range(vocab_size)], [gguf.TokenType.UNUSED] * vocab_size
    for token, i in ids.items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for token in spec["added_tokens"]:
        types[token["id"]] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_eos_token_id(spec["added_tokens"][0]["id"])


def write_gguf(
    dense: Path,
    path: Path,
    tokenizer: Path | None = None,
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> None:
    """A dense folder with matrices of that type (Q8_0 or F32), with a tokenizer.json where texts are wanted."""
    config = json.loads((dense / "config.json").read_text())
    mamba = config["model_type"] == "mamba"
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_context_length(2048)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", config.get("layer_norm_epsilon", 1e-5)))
    writer.add_vocab_size(config["vocab_size"])
    if tokenizer:
        add_tokenizer(writer, tokenizer, config["vocab_size"])
    else:
        writer.add_tokenizer_model("none")
    is_q8 = dtype == gguf.GGMLQuantizationType.Q8_0
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if is_q8 else gguf.LlamaFileType.ALL_F32)
    if mamba:
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config["conv_kernel"])
        writer.add_ssm_inner_size(config["intermediate_size"])
        writer.add_ssm_state_size(config["state_size"])
        writer.add_ssm_time_step_rank(config["time_step_rank"])
    else:
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
        # transformers 5 has it among others.
        writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    names = names_of(config)
    with safe_open(dense / "model.safetensors", "pt") as file:
        for key in file.keys():
            name = rename(key, names)
            value = for_ggml(name, file.get_tensor(key).float().numpy(), config)
            quantized = is_q8 and value.ndim == 2 and value.shape[1] % 32 == 0 and value.shape[1] > 32
            if quantized:
                writer.add_tensor(name, gguf.quants.quantize(value, dtype), raw_dtype=dtype)
            else:
                writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
