# %% [markdown]
# # Compress a model of your own
# Usage: `python compress_your_own.py MODEL_FOLDER NEW_FOLDER`. Three ways, from a folder to any module in memory; none
# needs calibration data.

# %%
import sys

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import helix_substrate

source, destination = sys.argv[1:3]

# %% [markdown]
# A folder into a folder: one tensor in memory at a time, with a receipt of what became of each.

# %%
receipt = helix_substrate.compress(source, destination)
worst = min((t for t in receipt["tensors"] if t["snr_db"]), key=lambda t: t["snr_db"])
print(f"{receipt['totals']['bits_per_weight']:.2f} bits per weight; worst {worst['name']}: {worst['snr_db']:.1f} dB")
print("verified:", helix_substrate.verify(destination, source)["ok"])

# %% [markdown]
# While loading, also for architectures that the command does not know. `save_pretrained` writes a compressed folder.

# %%
config = helix_substrate.HxqConfig(sidecar_fraction=0.001, modules_to_not_convert=["lm_head"])
model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
model.save_pretrained(destination + "-saved")

# %% [markdown]
# Any network: every `nn.Linear` is swapped in place.

# %%
network = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 256), nn.ReLU(), nn.Linear(256, 10)
)
images = torch.randn(4, 3, 32, 32)
before = network(images)
report = helix_substrate.compress_model(network)
print([(entry["module"], round(entry["snr_db"], 1)) for entry in report["modules"]])
print("relative change of the output:", ((network(images) - before).norm() / before.norm()).item())
