"""Fixtures of the command's tests: the command, the bundled model, and a compressed copy of it."""

import json
import os
import pathlib
import shutil
import string
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "wiki-mamba-7m"
TEXT = ROOT / "models" / "wikitext2-excerpt.txt"
PEAK_MEMORY = ROOT / "tests" / "cli" / "peak_memory.py"


def pytest_addoption(parser):
    parser.addoption("--hxq", required=True, help="the hxq command")
    parser.addoption("--kills", type=int, default=8, help="how often compress is killed, in each of four settings")


def pytest_configure():
    # Threads that wait for each other lose most of their time where another test has one of their processors. The
    # server's tests, which run beside these, take the last one.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Result:
    def __init__(self, completed):
        self.code = completed.returncode
        self.out = completed.stdout.decode()
        self.err = completed.stderr.decode()

    def json(self):
        assert self.code == 0, self.err
        return json.loads(self.out)

    def fails_with(self, *parts, code=1):
        """The command failed with one line that has all the parts."""
        assert self.code == code, (self.code, self.out, self.err)
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, lines
        for part in parts:
            assert str(part) in lines[0], (part, lines[0])


def while_it_runs(process, condition, seconds=300):
    """Waits until the condition holds or the process has ended; kills it if that takes too long."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        if time.monotonic() > end:
            process.kill()
        time.sleep(0.0005)


@pytest.fixture(scope="session")
def hxq(request):
    command = str(pathlib.Path(request.config.getoption("--hxq")).resolve())

    def run(*arguments, **options):
        completed = subprocess.run([command, *map(str, arguments)], capture_output=True, stdin=subprocess.DEVNULL, **options)
        return Result(completed)

    run.command = command
    return run


@pytest.fixture(scope="session")
def compressed(hxq, tmp_path_factory):
    """The bundled model, compressed with default options. Tests must not change it."""
    target = tmp_path_factory.mktemp("compressed") / "model"
    assert hxq("compress", MODEL, target).code == 0
    return target


@pytest.fixture
def model_copy(tmp_path):
    """The bundled dense model in a folder of the test's own."""
    target = tmp_path / "dense"
    shutil.copytree(MODEL, target)
    for path in target.iterdir():
        os.chmod(path, 0o644)
    return target


@pytest.fixture
def compressed_copy(compressed, tmp_path):
    target = tmp_path / "compressed"
    shutil.copytree(compressed, target)
    return target


@pytest.fixture
def open_folder():
    """A folder that every user may enter and write, with the bundled model in it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hxq-tests-"))
    shutil.copytree(MODEL, folder / "dense")
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, 0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody(hxq, open_folder):
    """Runs the command, a copy in `open_folder`, as a user who owns nothing."""
    if os.getuid() != 0:
        pytest.skip("only root becomes another user")
    command = shutil.copy(hxq.command, open_folder / "hxq")

    def run(*arguments, **options):
        completed = subprocess.run([command, *map(str, arguments)], capture_output=True, stdin=subprocess.DEVNULL,
                                   user=65534, group=65534, extra_groups=[], **options)
        return Result(completed)

    return run


@pytest.fixture
def small_context(tmp_path):
    """A Llama whose context holds 160 tokens, with a tokenizer of letters."""
    folder = tmp_path / "llama"
    shutil.copytree(ROOT / "tests" / "e2e" / "llama-bias", folder)
    vocab = {letter: i for i, letter in enumerate(string.ascii_letters + string.digits + " .")}
    spec = {"version": "1.0", "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder
