"""What a low-rank term is worth on models that others trained: the error of outputs with and without.

    python bench/others_models.py FOLDER [--old HXQ] [--rounds 5]

FOLDER has the models that `packaged_models.py` makes, of which every one found is measured. Each is compressed to the
published format by the command (`make build`), by default (a term where it pays) and without any (`--low-rank off`;
with --old, by another command and its default). Outputs of the decompressed weights are compared with those of the
originals, in float32 and on the same inputs: mean KL where a model has a vocabulary, else the sum of squared
differences over that of squares. SmolLM2 is run by `hxq perplexity` on a text.

With is to be at most 0.75 times without where the columns of a coded matrix have offsets (their means hold a quarter
of the sum of squares or more), and nowhere above it. --rounds decodes with SmolLM2 in interleaved rounds, where with is
to have 0.98 times the speed: only on a machine that does nothing else. The exit code is 1 where one of these fails.
Needs `pip install safetensors torch transformers`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

Tensors = dict[str, torch.Tensor]
ROOT = Path(__file__).parents[1]
OFFSETS, WITH_OFFSETS, OTHERS, SPEED = 0.25, 0.75, 1.0, 0.98


def minilm(tensors: Tensors) -> torch.Tensor:
    shape = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(BertConfig(**shape)).eval()
    model.load_state_dict({name: value for name, value in tensors.items() if "position_ids" not in name})
    tokens = torch.randint(1000, 30522, (32, 64), generator=torch.Generator().manual_seed(1))
    return model(tokens).last_hidden_state


def resemblyzer(tensors: Tensors) -> torch.Tensor:
    """Resemblyzer's VoiceEncoder: embeddings of utterances of 160 frames."""
    lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    names = lstm.state_dict()
    lstm.load_state_dict({name: tensors[f"lstm.{name}{'.weight' * name.startswith('weight')}"] for name in names})
    mel = torch.rand(64, 160, 40, generator=torch.Generator().manual_seed(1)) ** 4
    last = lstm(mel)[1][0][-1]
    return F.normalize(F.relu(F.linear(last, tensors["linear.weight"], tensors["linear.bias"])))


def g2p(tensors: Tensors) -> torch.Tensor:
    """The logits of g2p-en's decoder for letters and phonemes of words drawn at random."""
    random = torch.Generator().manual_seed(1)
    letters = torch.randint(3, 29, (256, 8), generator=random)
    phonemes = torch.randint(4, 74, (256, 8), generator=random)

    def run(part: str, inputs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        gru = torch.nn.GRU(256, 256, batch_first=True)
        weights = {f"weight_{kind}_l0": tensors[f"{part}_w_{kind}.weight"] for kind in ("ih", "hh")}
        gru.load_state_dict(weights | {f"bias_{kind}_l0": tensors[f"{part}_b_{kind}"] for kind in ("ih", "hh")})
        return gru(F.embedding(inputs, tensors[f"{part}_emb.weight"]), state)

    outputs, _ = run("dec", phonemes, run("enc", letters, None)[1])
    return F.linear(outputs, tensors["fc_w.weight"], tensors["fc_b"])


def whisper(tensors: Tensors) -> torch.Tensor:
    """The logits of whisper-base for 64 tokens after 30 seconds of noise."""
    heads, layers = 8, 6

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.gamma"], tensors[f"{name}.beta"])

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(0, 1).flatten(1)

    def layer(name: str, x: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
        part = f"{name}.self_attention"
        q, k, v = linear(f"{part}.linear_0", norm(f"{part}.layer_norm", x)).chunk(3, -1)
        x = x + linear(f"{part}.linear_1", attend(q, k, v, heard is not None))
        if heard is not None:
            part = f"{name}.attention"
            q = linear(f"{part}.linear_0", norm(f"{part}.layer_norm", x))
            x = x + linear(f"{part}.linear_2", attend(q, *linear(f"{part}.linear_1", heard).chunk(2, -1), False))
        part = f"{name}.ffn"
        return x + linear(f"{part}.linear_1", F.gelu(linear(f"{part}.linear_0", norm(f"{part}.layer_norm", x))))

    random = torch.Generator().manual_seed(1)
    mel, tokens = torch.rand(80, 3000, generator=random) * 2 - 1, torch.randint(0, 50257, (64,), generator=random)
    x = F.gelu(F.conv1d(mel, tensors["encoder.conv1.weight"], tensors["encoder.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, tensors["encoder.conv2.weight"], tensors["encoder.conv2.bias"], padding=1, stride=2)).T
    x = x + tensors["encoder.position_encodings.encodings.weight"]
    for i in range(layers):
        x = layer(f"encoder.layer_{i}", x, None)
    heard = norm("encoder.layer_norm", x)
    tokens = torch.cat([torch.tensor([50258, 50259, 50359, 50363]), tokens])
    x = F.embedding(tokens, tensors["decoder.embeddings.weight"])
    x = x + tensors["decoder.position_encodings.encodings.weight"][: len(tokens)]
    for i in range(layers):
        x = layer(f"decoder.layer_{i}", x, heard)
    return F.linear(norm("decoder.layer_norm", x), tensors["decoder.embeddings.weight"])


def divergence(outputs: torch.Tensor, of_original: torch.Tensor) -> float:
    """Mean KL from the original's distribution."""
    p, q = (torch.log_softmax(x.double().flatten(0, -2), -1) for x in (of_original, outputs))
    return float((p.exp() * (p - q)).sum(-1).mean())


def relative_error(outputs: torch.Tensor, of_original: torch.Tensor) -> float:
    return float((outputs - of_original).double().square().sum() / of_original.double().square().sum())


#: A model's outputs from its tensors, and how they are compared.
OUTPUTS: dict[str, tuple[Callable[[Tensors], torch.Tensor], Callable[[torch.Tensor, torch.Tensor], float]]] = {
    "whisper-base": (whisper, divergence),
    "g2p-en": (g2p, divergence),
    "all-MiniLM-L6-v2": (minilm, relative_error),
    "resemblyzer": (resemblyzer, relative_error),
}
LANGUAGE_MODEL = "SmolLM2-135M-Instruct"


def read(folder: Path) -> Tensors:
    return {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}


def offsets(dense: Path, compressed: Path) -> float:
    """The largest share of the sum of squares of a coded matrix that the means of its columns hold."""
    tensors = load_file(dense / "model.safetensors")
    coded = json.loads((compressed / "hxq_receipt.json").read_text())["tensors"]
    matrices = [tensors[tensor["name"]].double() for tensor in coded if tensor["codec"] != "exact"]
    return max(float(matrix.shape[0] * matrix.mean(0).square().sum() / matrix.square().sum()) for matrix in matrices)


def error_of(hxq: Path, dense: Path, compressed: Path, arguments: argparse.Namespace) -> float:
    if dense.name == LANGUAGE_MODEL:
        options = ["--text", arguments.text, "--against", dense, "--windows", "4", "--precision", "exact", "--json"]
        command = [hxq, "perplexity", compressed, *options, "--window", "1024", "--stride", "1024"]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return found["mean_kl"]
    outputs_of, compare = OUTPUTS[dense.name]
    with tempfile.TemporaryDirectory(prefix="others_models-") as decoded:
        subprocess.run([hxq, "decompress", compressed, Path(decoded) / "dense"], check=True, stdout=subprocess.DEVNULL)
        return compare(outputs_of(read(Path(decoded) / "dense")), outputs_of(read(dense)))


def speed_ratio(hxq: Path, folders: list[Path], rounds: int) -> float:
    """Decoding speed of the second over the first: the middle of the rounds' ratios."""
    ratios = []
    for turn in range(rounds):
        speeds = {}
        for folder in folders if turn % 2 else folders[::-1]:
            command = [hxq, "bench", folder, "--rounds", "1", "--decode-tokens", "128", "--json"]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            speeds[folder] = found["decode_tokens_per_second"]
        ratios.append(speeds[folders[1]] / speeds[folders[0]])
    return statistics.median(ratios)


def measure(dense: Path, arguments: argparse.Namespace) -> bool:
    hxq = arguments.hxq.absolute()
    with tempfile.TemporaryDirectory(prefix="others_models-") as temporary:
        without, by_default = Path(temporary) / "without", Path(temporary) / "default"
        commands = [[arguments.old.absolute()], [hxq]] if arguments.old else [[hxq, "--low-rank", "off"], [hxq]]
        for (command, *options), folder in zip(commands, (without, by_default), strict=True):
            subprocess.run([command, "compress", dense, folder, *options], check=True, stdout=subprocess.DEVNULL)
        errors = [error_of(hxq, dense, folder, arguments) for folder in (without, by_default)]
        share, ratio = offsets(dense, by_default), errors[1] / errors[0]
        bound = WITH_OFFSETS if share >= OFFSETS else OTHERS
        kept = ratio <= bound
        line = f"{dense.name}: column means hold {100 * share:.0f} % at most; error {errors[0]:.3g} without, "
        print(f"{line}{errors[1]:.3g} with, {ratio:.3f}x ({bound}): {'kept' if kept else 'MISSED'}", flush=True)
        if dense.name == LANGUAGE_MODEL and arguments.rounds:
            speed = speed_ratio(hxq, [without, by_default], arguments.rounds)
            kept &= speed >= SPEED
            print(f"{dense.name}: decodes at {speed:.3f}x ({SPEED}): {'kept' if speed >= SPEED else 'MISSED'}")
        return kept


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hxq", type=Path, default=ROOT / "build/hxq")
    parser.add_argument("--old", type=Path, help="the command that compresses without a term")
    parser.add_argument("--text", type=Path, default=ROOT / "models/wikitext2-excerpt.txt")
    parser.add_argument("--rounds", type=int, default=0, help="of decoding with SmolLM2")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    models = [arguments.folder / name for name in (*OUTPUTS, LANGUAGE_MODEL)]
    found = [dense.absolute() for dense in models if (dense / "model.safetensors").is_file()]
    if not found:
        parser.error(f"{arguments.folder}: none of {', '.join(dense.name for dense in models)}")
    if arguments.rounds and LANGUAGE_MODEL not in [dense.name for dense in found]:
        parser.error(f"--rounds: {arguments.folder} has no {LANGUAGE_MODEL}")
    return 0 if all([measure(dense, arguments) for dense in found]) else 1


if __name__ == "__main__":
    sys.exit(main())
