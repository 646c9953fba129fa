"""The Python front, measured: against the hxq command, against the dense models, against transformers' own Mamba code.

    python bench/python_bench.py [--build build] [generate] [perplexity] [speed] [lora]

Run with the Python of an environment that has helix_substrate[hf,peft] (python/tests/run.sh makes one in the build
folder), after `make bench` has built the command and bench/make_model. Every part checks what it computed; the exit
code is 1 if a check or a bound does not hold. Speeds are medians of interleaved rounds in this one process.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import helix_substrate

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "wiki-mamba-7m"

failures = []


def report(name: str, found: str, bound: str, holds: bool) -> None:
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {found} (must be {bound})", flush=True)
    if not holds:
        failures.append(name)


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def ids_of(folder, text: str) -> torch.Tensor:
    # The file as it is: AutoTokenizer may put a class's own rules in its place.
    return torch.tensor([Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).encode(text).ids])


# ---- generate ----


@torch.no_grad()
def generate(arguments) -> None:
    """The same tokens and logits as the command's, from the same folder."""
    prompt = "The city of London is"
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "hxq"
        helix_substrate.compress(MODEL, folder)
        command = [
            arguments.build / "hxq",
            "generate",
            folder,
            "--prompt",
            prompt,
            "--max-tokens",
            "48",
            "--ignore-eos",
        ]
        expected = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)
        model, ids = load(folder), ids_of(folder, prompt)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=48, max_new_tokens=48, do_sample=False
        )
        same = sum(a == b for a, b in zip(out[0, ids.shape[1] :].tolist(), expected["tokens"]))
        report("greedy tokens equal to `hxq generate`", f"{same} of 48", "48", same == 48 == len(expected["tokens"]))
        for target in reversed(helix_substrate.supported_targets()):
            helix_substrate.use_target(target)
            native = torch.frombuffer(helix_substrate.Model(folder).forward(out[0].tolist()), dtype=torch.float32)
            difference = (model(out).logits[0].flatten() - native).abs().max().item()
            report(
                f"logits against hxq's, {target}, largest difference",
                f"{difference:.2e}",
                "<= 1e-3",
                difference <= 1e-3,
            )
        helix_substrate.use_target(None)


# ---- perplexity ----


@torch.no_grad()
def window_losses(model, ids: torch.Tensor, windows: int, window: int = 2048, stride: int = 512) -> list[float]:
    """Summed negative log likelihoods of the tokens that each window is the first to hold."""
    losses, scored = [], 1
    for start in range(0, windows * stride, stride):
        piece = ids[0, start : start + window]
        log_probabilities = model(piece[None]).logits[0, :-1].log_softmax(-1)
        new = log_probabilities.gather(1, piece[1:, None])[scored - start - 1 :]
        losses.append(-new.double().sum().item())
        scored = start + len(piece)
    return losses


def perplexity(arguments) -> None:
    """What compression while loading costs."""
    text = arguments.shared / "data" / "wikitext2-test.txt"
    if not text.exists():
        print(f"     perplexity skipped: {text} is not there")
        return
    for name in ("wiki-llama", "wiki-qwen2", "wiki-mamba2", "wiki-zamba2"):
        folder = arguments.shared / "models" / name
        ids = ids_of(folder, text.read_text(encoding="utf-8"))
        dense = load(folder)
        helix_substrate.accelerate_ssm(dense)  # the same semantics, at a bearable speed
        before = window_losses(dense, ids, arguments.windows)
        stated = json.loads((arguments.shared / "reference" / f"{name}.json").read_text())["windows"]
        off = max(abs(found / row[3] - 1) for found, row in zip(before, stated))
        report(
            f"{name}, dense windows against stored ones, largest relative difference",
            f"{off:.1e}",
            "<= 1e-4",
            off <= 1e-4,
        )
        model = load(folder, quantization_config=helix_substrate.HxqConfig())
        after = window_losses(model, ids, arguments.windows)
        tokens = sum(row[2] for row in stated[: arguments.windows])
        change = 100 * (torch.tensor((sum(after) - sum(before)) / tokens).exp().item() - 1)
        report(
            f"{name}, perplexity on {arguments.windows} windows",
            f"{torch.tensor(sum(before) / tokens).exp():.4f} dense, {change:+.3f} % compressed", "<= +0.15 %",
            change <= 0.15,
        )  # fmt: skip


# ---- speed ----


def timed(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@torch.no_grad()
def speed(arguments) -> None:
    """A Mamba of mamba-130m's shape: compressed, served by the core, against dense in transformers' own torch code."""
    folder = arguments.build / "bench-models" / "mamba-130m"
    if not folder.is_dir():
        subprocess.run([arguments.build / "bench" / "make_model", "--shape", "mamba-130m", folder], check=True)
    with tempfile.TemporaryDirectory() as work:
        helix_substrate.decompress(folder, Path(work) / "dense")
        dense = load(Path(work) / "dense")
    model = load(folder)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, model.config.vocab_size, (1, 512), generator=generator)
    expected = dense(prompt).logits
    difference = (model(prompt).logits - expected).norm() / expected.norm()
    report("mamba-130m shape, logits against dense, relative", f"{difference:.1e}", "<= 1e-2", difference <= 1e-2)

    def decode(which, count):
        start = prompt[:, :8]
        which.generate(
            start, attention_mask=torch.ones_like(start), min_new_tokens=count, max_new_tokens=count, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip

    measured = {name: [] for name in ("prompt dense", "prompt hxq", "decode dense", "decode hxq")}
    for _ in range(arguments.rounds):
        measured["prompt dense"].append(512 / timed(lambda: dense(prompt)))
        measured["prompt hxq"].append(512 / timed(lambda: model(prompt)))
        measured["decode dense"].append(16 / timed(lambda: decode(dense, 16)))
        measured["decode hxq"].append(64 / timed(lambda: decode(model, 64)))
    for kind, what in (("prompt", "prompt of 512 tokens"), ("decode", "decoding through generate()")):
        ratios = [a / b for a, b in zip(measured[f"{kind} hxq"], measured[f"{kind} dense"])]
        hxq, slow = (statistics.median(measured[f"{kind} {name}"]) for name in ("hxq", "dense"))
        ratio = statistics.median(ratios)
        report(
            what, f"{hxq:.1f} tokens/s, {slow:.1f} dense: {ratio:.2f}x [{min(ratios):.2f} .. {max(ratios):.2f}]",
            ">= 4x", ratio >= 4,
        )  # fmt: skip


# ---- LoRA ----


def unseen_text() -> str:
    """English that no WikiText holds and every Python brings: the language reference behind `help()`."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def hash_of_base(model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted((name.replace(".base_layer", ""), t) for name, t in model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def lora(arguments) -> None:
    """Rank 8 on the bundled Mamba: the loss on text held out from what the adapters are trained on."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        helix_substrate.compress(MODEL, Path(work) / "hxq")
        model = load(Path(work) / "hxq")
    before_hash = hash_of_base(model)
    ids = ids_of(MODEL, unseen_text())[0]
    window, held_out, train = 128, ids[-len(ids) // 10 :], ids[: -len(ids) // 10]
    model = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["in_proj", "x_proj", "dt_proj", "out_proj"])
    )

    @torch.no_grad()
    def held_out_loss():
        batches = held_out[: 32 * window].reshape(-1, 8, window)
        return statistics.mean(model(input_ids=batch, labels=batch).loss.item() for batch in batches)

    begin, before = time.perf_counter(), held_out_loss()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()
    for step in range(arguments.steps):
        starts = torch.randint(0, len(train) - window, (8,))
        batch = torch.stack([train[start : start + window] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 10) * (1 - step / arguments.steps)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    after, seconds = held_out_loss(), time.perf_counter() - begin
    change = 100 * (after / before - 1)
    report(
        f"LoRA rank 8, {arguments.steps} steps in {seconds:.0f} s, held-out loss",
        f"{before:.4f} -> {after:.4f}, {change:+.2f} %", "<= -3 %", change <= -3,
    )  # fmt: skip
    report("base after training", "unchanged" if hash_of_base(model.get_base_model()) == before_hash else "changed",
           "unchanged", hash_of_base(model.get_base_model()) == before_hash)  # fmt: skip


PARTS = {part.__name__: part for part in (generate, perplexity, speed, lora)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="build folder with hxq and bench/make_model")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with models and texts")
    parser.add_argument("--windows", type=int, default=40, help="of perplexity (40)")
    parser.add_argument("--rounds", type=int, default=5, help="of speed (5)")
    parser.add_argument("--steps", type=int, default=200, help="of LoRA (200)")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for part in arguments.parts or PARTS:
        PARTS[part](arguments)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
