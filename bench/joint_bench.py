"""Several texts of a model decoded together against one at a time, and one build against another, with `hxq bench`.

    python bench/joint_bench.py [--build build] [--steps] [--against HXQ] [--rounds N] [--threads N] [SHAPE]

After `make bench`. SHAPE: as of bench/make_model; mamba-130m unless given. Everything runs in turns within a round, in
one direction and then the other; figures are medians over the rounds, and ratios those of the same round.
Always: 8 and 32 texts, in tokens/s, beside one. --steps: also a step of every number of texts from 1 to 64, whose time
should not be above that of one more. --against: also one text and a prompt with another build of the command.
Before that, texts of the bundled model decoded together are checked to be what each is alone. The exit code is 1 where
one is not, or where a figure misses what is asked for (GOALS)."""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Least tokens/s of so many texts, in those of one; the longest step beside one of one text more; least speed of this
#: build in that of the other.
GOALS = {8: 4.0, 32: 6.0, "step": 1.05, "against": 0.98}
PROMPTS = [
    "The city of London is",
    "In 1998 ,",
    "She said",
    "The",
    "Two rivers meet where",
    "= = History = =",
    "A",
    "It was",
]


def run(*command) -> dict | list:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    return json.loads(done.stdout)


def texts_are_equal(hxq, threads) -> bool:
    def texts(*prompts):
        options = [word for prompt in prompts for word in ("--prompt", prompt)]
        found = run(
            hxq, "generate", ROOT / "models" / "wiki-mamba-7m", *options, "-n", 64, "--ignore-eos", "--json", *threads
        )
        return [text["tokens"] for text in (found if len(prompts) > 1 else [found])]

    return texts(*PROMPTS) == [texts(prompt)[0] for prompt in PROMPTS]


def measure(cases: dict, rounds: int) -> dict:
    """What `cases` (functions) give in each round, which goes through them in turns."""
    found = {case: [] for case in cases}
    for r in range(rounds):
        for case in list(cases)[:: -1 if r % 2 else 1]:
            found[case].append(cases[case]())
    return found


def median_ratio(above: list, below: list) -> float:
    return statistics.median(a / b for a, b in zip(above, below))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="mamba-130m", metavar="SHAPE")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--against", type=Path, metavar="HXQ")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    threads = ["--threads", arguments.threads] if arguments.threads else []
    hxq, folder = arguments.build / "hxq", arguments.build / "bench-models" / arguments.shape
    if not (arguments.build / "bench" / "make_model").is_file():
        parser.error(f"{arguments.build}: no bench/make_model, which `make bench` builds")
    if not folder.is_dir():
        subprocess.run([arguments.build / "bench" / "make_model", "--shape", arguments.shape, folder], check=True)

    def bench(command, *options):
        return run(command, "bench", folder, "--json", *options, *threads)

    def rate(texts, decoded):
        options = ["--sequences", texts, "--prompt-tokens", 1, "--rounds", 3, "--decode-tokens", decoded]
        return bench(hxq, *options)["decode_tokens_per_second"]

    right = texts_are_equal(hxq, threads)
    print(f"{len(PROMPTS)} texts of the bundled model together: {'each as alone' if right else 'NOT as each is alone'}")

    def judge(what, figure, holds):
        nonlocal right
        right &= holds
        print(f"{what}: {figure}{'' if holds else '  MISSED'}", flush=True)

    together = measure({n: lambda n=n: rate(n, 24) for n in (1, 8, 32)}, arguments.rounds)
    print(f"one text: {statistics.median(together[1]):.0f} tokens/s")
    for n in (8, 32):
        ratio = median_ratio(together[n], together[1])
        judge(f"{n} texts", f"{statistics.median(together[n]):.0f} tokens/s, {ratio:.2f} times one", ratio >= GOALS[n])

    if arguments.steps:
        steps = measure({n: lambda n=n: n / rate(n, 8) for n in range(1, 65)}, arguments.rounds)
        time = {n: statistics.median(taken) for n, taken in steps.items()}
        worst, n = max((time[n] / time[n + 1], n) for n in range(1, 64))
        judge("longest step beside one of one text more", f"{worst:.3f} ({n} texts)", worst <= GOALS["step"])

    if arguments.against:
        options = ["--rounds", 2, "--decode-tokens", 64]
        commands = {"this": hxq, "other": arguments.against}
        found = measure({name: lambda c=c: bench(c, *options) for name, c in commands.items()}, arguments.rounds)
        for what in ("decode", "prompt"):
            rates = {name: [d[f"{what}_tokens_per_second"] for d in found[name]] for name in commands}
            ratio = median_ratio(rates["this"], rates["other"])
            judge(f"{what} beside {arguments.against}", f"{ratio:.3f}", ratio >= GOALS["against"])
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
