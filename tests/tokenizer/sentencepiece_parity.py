"""Compares hxq's reading of tokenizer.model with the SentencePiece library, run side by side.

Trains small BPE models of the kinds that Llama and its like have, on WikiText-2, and encodes that text, random Unicode
strings and white space with both; also Llama 2's own model where the reference data has it. Exits 77 (skipped) without
the library or the data.
"""

import argparse
import io
import os
import pathlib
import random
import shutil
import sys
import tempfile

import parity

SKIPPED = 77
SEED = 20250307
RANDOM_STRINGS = 3_000

LLAMA = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
             split_digits=True, character_coverage=0.9995, vocab_size=1200)
VARIANTS = {
    "llama": LLAMA,
    "no dummy prefix": {**LLAMA, "add_dummy_prefix": False},
    "extra white space removed": {**LLAMA, "remove_extra_whitespaces": True},
    "no byte fallback": {**LLAMA, "byte_fallback": False, "character_coverage": 0.98},
    "own pieces": {**LLAMA, "user_defined_symbols": ["\n\n", "\u2581\u2581", "\u2581\u2581\u2581\u2581", "<code>", "the"], "control_symbols": ["<|pad|>"]},
    "words together": {**LLAMA, "split_by_whitespace": False, "split_by_unicode_script": False, "split_by_number": False},
    "other ids": {**LLAMA, "unk_id": 3, "bos_id": 0, "eos_id": 1, "pad_id": 2},
}


def trained(lines, options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **options)
    return model.getvalue()


class Comparison:
    def __init__(self, name, folder, executable, lossless):
        self.name, self.lossless = name, lossless
        self.reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.driver = parity.Driver(executable, folder)
        # Control pieces, and the unknown one, are found in a text by hxq and not by SentencePiece.
        size = self.reference.get_piece_size()
        self.apart = [self.reference.id_to_piece(i) for i in range(size) if self.reference.is_control(i) or self.reference.is_unknown(i)]
        self.checks, self.failures = 0, []

    def expect(self, what, given, expected, got):
        self.checks += 1
        if expected != got:
            self.failures.append((what, given, expected, got))

    def check(self, text):
        if any(piece in text for piece in self.apart):
            return
        expected = self.reference.encode(text)
        ids = self.driver.encode(text, special=False)
        self.expect("encode", text, expected, ids)
        self.expect("encode with special tokens", text, [self.reference.bos_id(), *expected], self.driver.encode(text))
        if ids == expected and self.lossless:
            decoded = self.reference.decode(ids)
            self.expect("decode", text, decoded, self.driver.decode(ids))
            self.expect("stream", text, decoded, self.driver.stream(ids))

    def report(self):
        self.driver.close()
        print(f"{self.name}: {self.checks} checks, {len(self.failures)} differ", flush=True)
        for what, given, expected, got in self.failures[:5]:
            print(f"  {what} of {given[:80]!a}: expected {str(expected)[:200]}, got {str(got)[:200]}")
        return len(self.failures)


def random_text(rng, wiki):
    text = parity.random_string(rng, ["<code>", "\n\n", "    "])
    if rng.random() < 0.5:
        at = rng.randrange(len(wiki) - 100)
        text += wiki[at : at + rng.randint(1, 100)]
    return text.replace("\0", "0")  # the end of a text to some of SentencePiece's interfaces


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True, help="the executable tokenizer_driver")
    root = pathlib.Path(__file__).resolve().parents[2]
    shared = pathlib.Path(os.environ.get("HXQ_SHARED_DIR", root.parent / "shared"))
    arguments = parser.parse_args()
    if not (shared / "data" / "wikitext2-test.txt").is_file():
        print(f"skipped: no shared test data in {shared}")
        return SKIPPED
    wiki = (shared / "data" / "wikitext2-test.txt").read_text()
    lines = wiki[:300_000].splitlines() + ["\u65e5\u672c\u8a9e \u00e9t\u00e9 \U0001f600"] * 5
    print(f"sentencepiece {sentencepiece.__version__}, seed {SEED}")
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, options in [*VARIANTS.items(), ("Llama 2", None)]:
            folder = pathlib.Path(temporary) / name
            folder.mkdir()
            if options:
                (folder / "tokenizer.model").write_bytes(trained(lines, options))
            else:
                shutil.copy(shared / "tokenizers" / "llama2" / "tokenizer.model", folder)
            comparison = Comparison(name, folder, arguments.driver, lossless=options is None or options["byte_fallback"])
            comparison.check(wiki)
            rng = random.Random(SEED)
            for _ in range(RANDOM_STRINGS):
                comparison.check(random_text(rng, wiki))
            for text in ("", " ", "  ", "    a", "a  ", "\n", "\t x", "\u2581", "\u2581a", "a\u2581b"):
                comparison.check(text)
            failures += comparison.report()
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        import sentencepiece
    except ImportError:
        print("skipped: the Python library `sentencepiece` is not installed")
        sys.exit(SKIPPED)
    sys.exit(main())
