"""Writes a model folder as large as a user's: Llama's shapes, sharded bf16, random weights, index and configuration.

The default is a 7B: 13.5 GB in shards of 5 GB. `--layers 2` makes a small one of the same kind. For measuring what `hxq
compress` takes in time and memory: /usr/bin/time -v build/hxq compress FOLDER OUT

Usage: python3 bench/make_large_folder.py FOLDER [--layers 32] [--hidden 4096] [--inner 11008] [--vocab 32000]
Needs numpy.
"""

import argparse
import json
import pathlib
import struct

import numpy

SHARD_BYTES = 5_000_000_000


def tensors(layers, hidden, inner, vocab):
    """Names and shapes, in the order in which they are written."""
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            yield f"{prefix}self_attn.{name}_proj.weight", (hidden, hidden)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def size_of(shape):
    return 2 * int(numpy.prod(shape))


def shards_of(all_tensors):
    shards = [[]]
    filled = 0
    for name, shape in all_tensors:
        if filled and filled + size_of(shape) > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size_of(shape)
    return shards


def weights(shape, block):
    """bf16 bytes of normal weights, a block of rows at a time."""
    if len(shape) == 1:
        yield numpy.full(shape, 0x3F80, "<u2").tobytes()
        return
    scale = numpy.float32(shape[1] ** -0.5)
    for begin in range(0, shape[0], 512):
        rows = min(512, shape[0] - begin)
        values = block.standard_normal((rows, shape[1]), numpy.float32) * scale
        yield (values.view(numpy.uint32) >> 16).astype("<u2").tobytes()


def write_shard(path, shard, generator):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shard:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size_of(shape)]}
        offset += size_of(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shard:
            for data in weights(shape, generator):
                file.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    for name, value in (("layers", 32), ("hidden", 4096), ("inner", 11008), ("vocab", 32000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    sizes = parser.parse_args()
    sizes.folder.mkdir(parents=True)
    shards = shards_of(tensors(sizes.layers, sizes.hidden, sizes.inner, sizes.vocab))
    generator = numpy.random.default_rng(7)
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(sizes.folder / name, shard, generator)
        index.update((tensor, name) for tensor, _ in shard)
    total = sum(size_of(shape) for shard in shards for _, shape in shard)
    (sizes.folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.hidden // 128,
        "num_key_value_heads": sizes.hidden // 128,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (sizes.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{sizes.folder}: {total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    main()
