"""Writes the tiny dense Mamba whose compressed forms are kept in this folder, one per format.

    python make_model.py DENSE && hxq compress --sidecar 0.01 DENSE 1
    hxq compress --profile g4 --bits-for embedding=6 DENSE 2
    hxq compress --profile g4 --low-rank 2 DENSE 3

Every version stays readable for ever: folders are added here, never changed.
"""

import json
import pathlib
import sys

import numpy
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "mamba", "architectures": ["MambaForCausalLM"], "vocab_size": 64, "hidden_size": 48,
    "num_hidden_layers": 2, "state_size": 4, "expand": 2, "conv_kernel": 4, "time_step_rank": 3, "use_bias": False,
    "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}


def main(target: pathlib.Path) -> None:
    random = numpy.random.default_rng(1)

    def weights(*shape):
        return (random.standard_t(4, shape) / numpy.sqrt(shape[-1])).astype(numpy.float32)

    inner, rank, states, hidden = 96, 3, 4, CONFIG["hidden_size"]
    tensors = {"backbone.embeddings.weight": weights(64, hidden), "backbone.norm_f.weight": 1 + 0.1 * weights(hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"backbone.layers.{layer}."
        tensors |= {
            prefix + "norm.weight": 1 + 0.1 * weights(hidden),
            prefix + "mixer.in_proj.weight": weights(2 * inner, hidden),
            prefix + "mixer.conv1d.weight": weights(inner, 1, 4),
            prefix + "mixer.conv1d.bias": weights(inner),
            prefix + "mixer.x_proj.weight": weights(rank + 2 * states, inner),
            prefix + "mixer.dt_proj.weight": weights(inner, rank),
            prefix + "mixer.dt_proj.bias": weights(inner),
            prefix + "mixer.A_log": numpy.log(numpy.tile(numpy.arange(1, states + 1, dtype=numpy.float32), (inner, 1))),
            prefix + "mixer.D": weights(inner),
            prefix + "mixer.out_proj.weight": weights(hidden, inner),
        }
    target.mkdir(parents=True)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
