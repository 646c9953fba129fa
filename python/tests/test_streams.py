"""The Python command where its standard streams are closed, full or no longer read."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.release_independent

VERBS = {
    "inspect": lambda folder, out: ["inspect", folder],
    "compress": lambda folder, out: ["compress", folder, out],
    "help": lambda folder, out: ["compress", "--help"],
    "version": lambda folder, out: ["--version"],
}


def run(arguments, closed=(), **options):
    """The command with those of its streams closed, 0 to 2."""

    def close():
        for stream in closed:
            os.close(stream)

    command = [sys.executable, "-m", "helix_substrate", *map(str, arguments)]
    return subprocess.run(command, preexec_fn=close, stdin=subprocess.DEVNULL, timeout=300, **options)


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("verb", VERBS)
def test_output_that_cannot_be_written_is_one_line(verb, dense_folder, tmp_path):
    arguments = VERBS[verb](dense_folder, tmp_path / "out")
    closed = run(arguments, [1], stderr=subprocess.PIPE)
    assert closed.returncode == 1
    assert closed.stderr == b"error: cannot write to standard output: Bad file descriptor\n"
    if verb == "compress":  # the work is done by then
        done = run(["verify", tmp_path / "out", "--source", dense_folder], capture_output=True)
        assert done.returncode == 0 and os.listdir(tmp_path) == ["out"]
        arguments.append("--force")
    with open("/dev/full", "wb") as full:
        found = run(arguments, stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 1
    assert found.stderr == b"error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("verb", ["inspect", "help", "version"])
def test_readers_that_have_gone_end_it_without_a_word(verb, dense_folder, tmp_path):
    writer = closed_pipe()
    found = run(VERBS[verb](dense_folder, tmp_path), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert found.returncode == 128 + signal.SIGPIPE and found.stderr == b""


def test_messages_that_cannot_be_written_are_lost_alone(dense_folder, tmp_path):
    for arguments, code in ((["inspect", dense_folder], 0), (["inspect", tmp_path / "x"], 1), (["compress"], 2)):
        without = run(arguments, [2], stdout=subprocess.PIPE)
        with open("/dev/full", "wb") as full:
            filled = run(arguments, stdout=subprocess.PIPE, stderr=full)
        for found in (without, filled):
            assert found.returncode == code and bool(found.stdout) == (code == 0), found
