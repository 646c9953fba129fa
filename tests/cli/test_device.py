"""--device: what is missing is said in one line; where there is a GPU, it writes what the CPU writes."""

import pytest
from conftest import MODEL, TEXT

VERBS = [
    ("generate", "--prompt", "The city of London is", "--max-tokens", 4),
    ("chat", "--template", MODEL.parent / "plain-chat.jinja"),
    ("perplexity", "--text", TEXT, "--window", 64, "--windows", 1),
    ("bench", "--rounds", 1, "--prompt-tokens", 8, "--decode-tokens", 2),
]


@pytest.mark.parametrize("verb", VERBS, ids=[verb[0] for verb in VERBS])
def test_devices_that_are_not_there(hxq, verb):
    hxq(verb[0], MODEL, *verb[1:], "--device", "tpu").fails_with("there is no device 'tpu': expected one of cpu")
    hxq(verb[0], MODEL, *verb[1:], "--device", "cuda:x").fails_with("there is no device 'cuda:x'")
    hxq(verb[0], MODEL, *verb[1:], "--device", "cuda:63").fails_with("device 'cuda:63' cannot be used: ")


def test_a_gpu_writes_what_the_cpu_writes(hxq):
    options = ("--prompt", "The city of London is", "--max-tokens", 40, "--precision", "exact")
    found = hxq("generate", MODEL, *options, "--device", "cuda")
    if found.code != 0:
        found.fails_with("device 'cuda' cannot be used: ")
        pytest.skip(found.err.strip())
    assert found.out == hxq("generate", MODEL, *options).out
