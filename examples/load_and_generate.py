# %% [markdown]
# # Load a compressed model and let it write
# Usage: `python load_and_generate.py [FOLDER]`. A folder compressed by `hxq compress` or `python -m helix_substrate
# compress`, or one published in the same format. The lines below are all there is to it.

# %%
import sys

import helix_substrate  # noqa: F401  registers the quantizer
from transformers import AutoModelForCausalLM, AutoTokenizer

DIR = sys.argv[1] if len(sys.argv) > 1 else "wiki-mamba-7m-hxq"

# %%
model = AutoModelForCausalLM.from_pretrained(DIR)
tokenizer = AutoTokenizer.from_pretrained(DIR)

# %%
inputs = tokenizer("The city of London is", return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(out[0]))

# %% [markdown]
# Weights stay compressed while the model runs: this is what it holds.

# %%
print(helix_substrate.swap_summary(model))
