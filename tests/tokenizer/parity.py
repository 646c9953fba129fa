"""Compares hxq's tokenizer with the Hugging Face `tokenizers` library, run side by side.

Every tokenizer of the shared data and a set of small made-up ones encode WikiText-2, random Unicode strings and random
bytes, and decode random ids; ids and texts must be identical. Exits 77 (skipped) without the library or the data.
"""

import argparse
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import made_up_tokenizers
from made_up_tokenizers import made_up, split

SKIPPED = 77
SEED = 20240817
RANDOM_STRINGS = 10_000
RANDOM_ID_LISTS = 1_000


class Driver:
    """The C++ tokenizer of one folder (protocol: tokenizer_driver.cc)."""

    def __init__(self, executable, folder):
        self.process = subprocess.Popen([executable, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, op, flag, payload):
        self.process.stdin.write(struct.pack("<cBI", op, flag, len(payload)) + payload)
        self.process.stdin.flush()
        header = self.process.stdout.read(4)
        if len(header) != 4:
            raise RuntimeError(f"the driver ended, status {self.process.wait()}")
        return self.process.stdout.read(struct.unpack("<I", header)[0])

    def encode(self, text, special=True):
        raw = text if isinstance(text, bytes) else text.encode()
        answer = self.ask(b"e", special, raw)
        return list(struct.unpack(f"<{len(answer) // 4}i", answer))

    def decode(self, ids, skip=True):
        return self.ask(b"d", skip, struct.pack(f"<{len(ids)}i", *ids)).decode()

    def stream(self, ids, skip=True):
        pieces = self.ask(b"s", skip, struct.pack(f"<{len(ids)}i", *ids)).split(b"\xff")
        assert len(pieces) == len(ids) + 1
        return "".join(piece.decode() for piece in pieces)  # each piece must be valid by itself

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Comparison:
    """One tokenizer in both implementations, and the differences found."""

    def __init__(self, name, folder, executable, lossless=False):
        self.name = name
        self.reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.reference.no_truncation()
        self.reference.no_padding()
        self.driver = Driver(executable, folder)
        self.failures = []
        self.checks = 0
        spec = json.loads((folder / "tokenizer.json").read_text())
        self.added = [token["content"] for token in spec.get("added_tokens") or []]
        self.specials = {
            self.reference.token_to_id(t["content"]) for t in spec.get("added_tokens") or [] if t["special"]
        }
        # tokenizers 0.23 decodes an added token to its normalized form, and then no longer knows it as special.
        self.respelled = {
            self.reference.token_to_id(c)
            for c in self.added
            if self.reference.id_to_token(self.reference.token_to_id(c)) != c
        }
        self.lossless = lossless

    def expect(self, what, given, expected, got):
        self.checks += 1
        if expected != got:
            self.failures.append((what, given, expected, got))

    def check_text(self, text):
        expected = self.reference.encode(text).ids
        ids = self.driver.encode(text)
        self.expect("encode", text, expected, ids)
        if ids != expected:
            return
        self.check_ids(ids, text)

    def check_ids(self, ids, origin=None):
        for skip in (True, False):
            if skip:
                kept = [i for i in ids if i not in self.specials]
            elif self.respelled.intersection(ids):
                continue
            else:
                kept = ids
            if self.respelled.intersection(kept):
                continue
            expected = self.reference.decode(kept, skip_special_tokens=False)
            self.expect(f"decode skip={skip}", origin or ids, expected, self.driver.decode(ids, skip))
            self.expect(f"stream skip={skip}", origin or ids, expected, self.driver.stream(ids, skip))

    def check_lossless(self, text):
        """A byte-level tokenizer that drops nothing gives back the normalized text, whatever it was."""
        normalizer = self.reference.normalizer
        expected = normalizer.normalize_str(text) if normalizer else text
        got = self.driver.decode(self.driver.encode(text, special=False), skip=False)
        self.expect("decode(encode)", text, expected, got)

    def check_plain(self, text):
        self.expect(
            "encode without special tokens",
            text,
            self.reference.encode(text, add_special_tokens=False).ids,
            self.driver.encode(text, special=False),
        )

    def report(self):
        self.driver.close()
        print(f"{self.name}: {self.checks} checks, {len(self.failures)} differ", flush=True)
        for what, given, expected, got in self.failures[:5]:
            first = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
            print(
                f"  {what} of {str(given)[:120]!a} at {first}: expected {expected[max(0, first - 5):first + 20]!a}, "
                f"got {got[max(0, first - 5):first + 20]!a}"
            )
        return len(self.failures)


def random_string(rng, added):
    """Words of many kinds: ASCII, spaces, all planes, combining marks, Hangul, emoji with joiners, added tokens."""

    def code_point(low, high):
        while True:
            c = rng.randint(low, high)
            if not 0xD800 <= c <= 0xDFFF:
                return chr(c)

    spaces = " \t\n\r\v\f\x85\xa0\u1680\u180e\u2000\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
    contractions = ["'s", "'T", "'re", "'VE", "'m", "'lL", "'d", "\u2019s", "'\u017f", "'\u212a", "don't", "I'LL"]
    emoji = [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f44d\U0001f3fd",
        "\u2764\ufe0f",
        "\U0001f1e9\U0001f1ea",
    ]
    kinds = [
        lambda: "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCXYZ") for _ in range(rng.randint(1, 12))),
        lambda: "".join(chr(rng.randint(0, 0x7F)) for _ in range(rng.randint(1, 8))),
        lambda: rng.choice(spaces) * rng.randint(1, 5),
        lambda: " " * rng.randint(1, 40),
        lambda: "".join(rng.choice(spaces) for _ in range(rng.randint(1, 6))),
        lambda: "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 8))),
        lambda: "".join(code_point(0x80, 0x24F) for _ in range(rng.randint(1, 8))),
        lambda: "".join(code_point(0x250, 0xFFFF) for _ in range(rng.randint(1, 8))),
        lambda: "".join(code_point(0, 0x10FFFF) for _ in range(rng.randint(1, 8))),
        lambda: "".join(code_point(0x10000, 0x1FFFF) for _ in range(rng.randint(1, 6))),
        lambda: rng.choice("aeoux\u0915\u4e00") + "".join(code_point(0x300, 0x36F) for _ in range(rng.randint(1, 5))),
        lambda: "".join(
            rng.choice("\u0323\u0307\u0334\u0345\u05b0\u094d\u3099\u302a") for _ in range(rng.randint(1, 5))
        ),
        lambda: "".join(code_point(0x1100, 0x11FF) for _ in range(rng.randint(1, 4))),
        lambda: "".join(code_point(0xAC00, 0xD7A3) for _ in range(rng.randint(1, 4))),
        lambda: "".join(code_point(0x4E00, 0x9FFF) for _ in range(rng.randint(1, 10))),
        lambda: "".join(code_point(0xF900, 0xFAFF) for _ in range(rng.randint(1, 4))),
        lambda: "".join(rng.choice("\u2581_<>|/0x") for _ in range(rng.randint(1, 5))),
        lambda: rng.choice(contractions),
        lambda: rng.choice(emoji),
        lambda: rng.choice(added) if added else "<s>",
        lambda: "<0x%02X>" % rng.randint(0, 255),
    ]
    return "".join(rng.choice(kinds)() for _ in range(rng.randint(0, 12)))


def check_fully(comparison, wiki, strings):
    rng = random.Random(SEED)
    comparison.check_text(wiki)
    if comparison.lossless:
        comparison.check_lossless(wiki)
    for i in range(strings):
        text = random_string(rng, comparison.added)
        comparison.check_text(text)
        if i % 4 == 0:
            comparison.check_plain(text)
            raw = (
                bytes(
                    rng.choice((rng.randint(0, 255), rng.randint(0x80, 0xFF), 0xE2, 0xF0, 0x41))
                    for _ in range(rng.randint(1, 12))
                )
                + text.encode()[rng.randint(0, 3) :]
            )
            comparison.expect(
                "encode of bytes",
                raw,
                comparison.reference.encode(raw.decode(errors="replace")).ids,
                comparison.driver.encode(raw),
            )
        if comparison.lossless:
            comparison.check_lossless(text)
    size = comparison.reference.get_vocab_size()
    few = [
        comparison.reference.token_to_id(t) for t in ("<0xE2>", "<0x96>", "<0x81>", "<0x41>", "\u2581", "\u00e2", "a")
    ]
    few = [i for i in few if i is not None]
    for _ in range(RANDOM_ID_LISTS):
        ids = [
            rng.choice(few) if few and rng.random() < 0.5 else rng.randrange(size + 3)
            for _ in range(rng.randint(0, 20))
        ]
        comparison.check_ids(ids)


def every_assigned_plane():
    return [c for c in [*range(0x323B0), *range(0xE0000, 0xE01F0)] if not 0xD800 <= c <= 0xDFFF]


CLASSES = [
    r"\p{L}",
    r"\p{N}",
    r"\p{M}",
    r"\p{P}",
    r"\p{S}",
    r"\p{Z}",
    r"\p{Lu}",
    r"\p{Ll}",
    r"\p{Lt}",
    r"\p{Lm}",
    r"\p{Lo}",
    r"\p{Nd}",
    r"\p{Mc}",
    r"\p{Letter}",
    r"\s",
    r"\S",
    r"\d",
    r"[\w]",
    r"\w",
    r"\W",
    r"a\b",
    r"[^\s\p{L}\p{N}]",
    r"[^\S\n]",
    r"\P{L}",
    r"\p{^N}",
    r"\p{Han}",
    r"\p{Hangul}",
    r"[\p{L}\p{M}]+",
    r"(?i:k|s|\u00e5)",
    r".",
    r"^.",
    r".$",
    r"[a[b-d]\u00e9]",
    r"\h",
]


def check_all_characters(folder, executable):
    """Every character alone through each class, and each normal form with marks around it."""
    characters = [chr(c) for c in every_assigned_plane()]
    cases = [(f"class {c}", made_up(split(c)), "".join(characters)) for c in CLASSES]
    around = "".join(f"{c}\na{c}\u0301\u0334\nA\u030a{c}\u0323\n\u0345{c}\u1100\u1161\n" for c in characters)
    cases += [(form, made_up(normalizer={"type": form}), around) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    failures = 0
    for name, spec, text in cases:
        (folder / "tokenizer.json").write_text(spec)
        comparison = Comparison(name, folder, executable)
        step = 200_000
        for at in range(0, len(text), step):
            part = text[at : at + step]
            comparison.expect(
                name, f"characters from {at}", comparison.reference.encode(part).ids, comparison.driver.encode(part)
            )
        failures += comparison.report()
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True, help="the executable tokenizer_driver")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument(
        "--shared", type=pathlib.Path, default=pathlib.Path(os.environ.get("HXQ_SHARED_DIR", root.parent / "shared"))
    )
    arguments = parser.parse_args()
    if not (arguments.shared / "tokenizers").is_dir():
        print(f"skipped: no shared test data in {arguments.shared}")
        return SKIPPED
    wiki = (arguments.shared / "data" / "wikitext2-test.txt").read_text()
    folders = sorted(path.parent for path in arguments.shared.glob("tokenizers/*/tokenizer.json"))
    folders += [arguments.shared / "models" / name for name in ("wiki-mamba-7m", "stories260k")]
    print(f"tokenizers {tokenizers_version}, seed {SEED}")
    failures = 0
    for folder in folders:
        comparison = Comparison(folder.name, folder, arguments.driver, folder.name not in ("llama2", "stories260k"))
        check_fully(comparison, wiki, RANDOM_STRINGS)
        failures += comparison.report()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name, spec in made_up_tokenizers.variants(wiki):
            (folder / "tokenizer.json").write_text(spec)
            comparison = Comparison(name, folder, arguments.driver, name in ("template", "roberta", "cl100k"))
            check_fully(comparison, wiki[:20_000], 500)
            failures += comparison.report()
        failures += check_all_characters(folder, arguments.driver)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        from tokenizers import Tokenizer, __version__ as tokenizers_version
    except ImportError:
        print("skipped: the Python library `tokenizers` is not installed")
        sys.exit(SKIPPED)
    sys.exit(main())
