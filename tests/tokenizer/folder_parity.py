"""Compares ids with transformers' where files beside tokenizer.json name tokens that it lacks or describes otherwise.

Exits 77 (skipped) without the library.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

from parity import Driver

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
SOURCE = pathlib.Path(__file__).resolve().parents[2] / "models" / "wiki-mamba-7m"
TEXTS = [
    "<|im_start|>user\nHi<|im_end|>\n",
    "a <|im_start|> b <|im_end|>c<unk><s></s>",
    "The city of London <mask>  <mask>is the <extra>.",
    "thesethe the <CALL> <call>",
]


def token(content, **flags):
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **flags}
    return {"content": content, **flags}


START, END = "<|im_start|>", "<|im_end|>"
# Name: tokenizer_config.json, the other files.
CASES = {
    "added_tokens_decoder": ({"added_tokens_decoder": {"8192": token(START), "8193": token(END)}}, {}),
    "other ids than transformers gives": (
        {"added_tokens_decoder": {"9000": token(END), "9007": token(START, special=False)}},
        {},
    ),
    "flags": (
        {
            "added_tokens_decoder": {
                "8192": token("<mask>", lstrip=True, rstrip=True),
                "8193": token("the", single_word=True, special=False),
                "8194": token("<CALL>", normalized=True, special=False),
            }
        },
        {},
    ),
    "added_tokens.json": ({}, {"added_tokens.json": {START: 8192, END: 8193}}),
    "added_tokens.json, one of them special": (
        {"eos_token": END, "pad_token": START},
        {"added_tokens.json": {END: 8192, "<extra>": 8193}},
    ),
    "added_tokens_decoder overrules added_tokens.json": (
        {"added_tokens_decoder": {"8192": token(END)}},
        {"added_tokens.json": {START: 8192, END: 8193}},
    ),
    "named tokens alone": ({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, {}),
    "a named token that is a word of the vocabulary": (
        {"pad_token": "the", "mask_token": {"__type": "AddedToken", **token("<mask>", lstrip=True)}},
        {},
    ),
    "special_tokens_map.json": (
        {"eos_token": "</s>"},
        {
            "special_tokens_map.json": {
                "eos_token": END,
                "bos_token": token(START),
                "mask_token": token("<mask>", rstrip=True),
            }
        },
    ),
    "additional_special_tokens": ({"additional_special_tokens": [START, END]}, {}),
    "extra_special_tokens, a list": ({"extra_special_tokens": ["<extra>", START]}, {}),
    "extra_special_tokens, named": ({"extra_special_tokens": {"image_token": "<extra>", "call_token": "<call>"}}, {}),
    "a token of another name": ({"image_token": "<extra>"}, {}),
}


def make(folder, config, files):
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_bytes((SOURCE / name).read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    for name, content in {"tokenizer_config.json": config, **files}.items():
        (folder / name).write_text(json.dumps(content))


def differences(folder, executable):
    reference = AutoTokenizer.from_pretrained(folder)
    driver = Driver(executable, folder)
    for text in TEXTS:
        want = reference(text).input_ids
        got = driver.encode(text)
        if got != want:
            yield f"{text!r}: ids {got}, transformers {want}"
        for skip in (False, True):
            want_text = reference.decode(want, skip_special_tokens=skip)
            got_text = driver.decode(want, skip=skip)
            if got_text != want_text:
                yield f"{text!r}, skip {skip}: text {got_text!r}, transformers {want_text!r}"
    driver.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True)
    driver = parser.parse_args().driver
    failed = 0
    for name, (config, files) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            make(pathlib.Path(folder), config, files)
            found = list(differences(pathlib.Path(folder), driver))
        print(f"{name}: {len(found)} differ")
        for difference in found:
            print("  " + difference)
        failed += len(found)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        from transformers import AutoTokenizer
    except ImportError as missing:
        print(f"skipped: the Python library `{missing.name}` is not installed")
        sys.exit(77)
    sys.exit(main())
