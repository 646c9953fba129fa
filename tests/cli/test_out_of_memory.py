"""Under a limit of memory every verb works, or says in one line that memory ran out, whatever the limit."""

import resource
import subprocess

import pytest
from conftest import MODEL, TEXT

MB = 1 << 20
#: From where nothing but the program fits to where everything does, in steps small enough to meet every stage.
LIMITS = [n * MB for n in (*range(16, 128, 4), *range(128, 320, 16), 512, 1024)]


def under(hxq, limit, *arguments):
    def confine():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.run([hxq.command, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, preexec_fn=confine)


def verbs(compressed, tmp_path):
    yield "compress", MODEL, tmp_path / "out", "--force", "--threads", 2
    yield "decompress", compressed, tmp_path / "dense"
    yield "verify", compressed, "--source", MODEL
    yield "inspect", compressed
    yield "generate", compressed, "--prompt", "The city of London is", "--max-tokens", 4, "--threads", 2
    yield "perplexity", compressed, "--text", TEXT, "--window", 256, "--windows", 1, "--threads", 2
    yield "bench", compressed, "--rounds", 1, "--prompt-tokens", 64, "--decode-tokens", 2, "--threads", 2
    yield "chat", compressed, "--template", MODEL.parent / "plain-chat.jinja", "--threads", 2


@pytest.fixture(scope="module")
def limits(hxq):
    """Below these the system's loader has no room for the program itself."""
    return [limit for limit in LIMITS if under(hxq, limit, "--version").returncode == 0]


@pytest.mark.parametrize("verb", range(8))
def test_memory_that_runs_out_is_an_error(hxq, compressed, tmp_path, limits, verb):
    arguments = list(verbs(compressed, tmp_path))[verb]
    enough = most_enough = 0  # limits in a row
    for limit in limits:
        if enough == 3:  # more would be, too
            break
        done = under(hxq, limit, *arguments)
        enough = enough + 1 if done.returncode == 0 else 0
        most_enough = max(enough, most_enough)
        if (tmp_path / "dense").exists():
            subprocess.run(["rm", "-r", tmp_path / "dense"], check=True)
        if done.returncode == 0:
            continue
        assert done.returncode == 1, (limit // MB, arguments, done.returncode, done.stderr)
        lines = [line for line in done.stderr.splitlines() if "left behind" not in line]
        assert len(lines) == 1 and "memory" in lines[0].lower(), (limit // MB, arguments, done.stderr)
    assert most_enough, "no limit was enough"
