# %% [markdown]
# # Train LoRA adapters on a compressed model
# Usage: `python train_lora.py COMPRESSED_FOLDER TEXT_FILE [STEPS]`. The base stays compressed and as it is; PEFT trains
# and saves the adapters; merging gives a new compressed folder.

# %%
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import helix_substrate

folder, text_file = sys.argv[1:3]
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 200

# %%
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = torch.tensor(tokenizer(open(text_file, encoding="utf-8").read())["input_ids"])
held_out = ids[-len(ids) // 10 :]
train = ids[: -len(held_out)]
window = 128

# %%
torch.manual_seed(0)
targets = ["in_proj", "x_proj", "dt_proj", "out_proj"]  # of Mamba; any projection of any model will do
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
model.print_trainable_parameters()


# %%
@torch.no_grad()
def held_out_loss(windows=16):
    model.eval()
    count = min(windows, len(held_out) // window)
    batches = [held_out[None, i * window : (i + 1) * window] for i in range(count)]
    losses = [model(input_ids=batch, labels=batch).loss.item() for batch in batches]
    model.train()
    return sum(losses) / len(losses)


# %%
before = held_out_loss()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / steps))
for step in range(steps):
    starts = torch.randint(0, len(train) - window, (8,))
    batch = torch.stack([train[start : start + window] for start in starts])
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.3f}", flush=True)
after = held_out_loss()
print(f"held-out loss {before:.4f} -> {after:.4f} ({100 * (after / before - 1):+.2f} %)")

# %%
model.save_pretrained(folder + "-adapter")  # PEFT's own files
merged, report = helix_substrate.merge_adapter(model, folder + "-merged")
worst = min(report, key=lambda entry: entry["snr_db"])
print(f"merged {len(report)} matrices; the worst, {worst['module']}, is stored at {worst['snr_db']:.1f} dB")
