"""Standard streams that are closed, full or no longer read, paths that lead nowhere, and limits of the system."""

import os
import resource
import signal
import subprocess

import pytest
from conftest import MODEL, TEXT, while_it_runs
from test_compress import leftovers

VERBS = {
    "help": ["compress", "--help"],
    "version": ["--version"],
    "inspect": ["inspect", MODEL],
    "generate": ["generate", MODEL, "-p", "The", "-n", "3"],
    "perplexity": ["perplexity", MODEL, "--text", TEXT, "--windows", "1", "--window", "64"],
}


def run(hxq, arguments, closed=(), **options):
    """The command with those of its streams closed, 0 to 2."""
    def close():
        for stream in closed:
            os.close(stream)

    return subprocess.run([hxq.command, *map(str, arguments)], preexec_fn=close, **options)


@pytest.mark.parametrize("verb", VERBS)
def test_output_that_is_closed_or_full_is_an_error(hxq, verb):
    closed = run(hxq, VERBS[verb], [1], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert closed.returncode == 1 and b"standard output: Bad file descriptor" in closed.stderr
    with open("/dev/full", "wb") as full:
        result = run(hxq, VERBS[verb], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1 and b"standard output: No space left on device" in result.stderr


def test_messages_that_cannot_be_written_are_lost_alone(hxq, tmp_path):
    for arguments, code in ((VERBS["generate"], 0), (["inspect", tmp_path / "nowhere"], 1), (["compress"], 2)):
        result = run(hxq, arguments, [2], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert result.returncode == code
        with open("/dev/full", "wb") as full:
            assert run(hxq, arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=full).returncode == code


def test_files_do_not_take_the_place_of_closed_streams(hxq, tmp_path):
    assert run(hxq, ["compress", MODEL, tmp_path / "out"], [0, 1, 2]).returncode == 1  # the table cannot be printed
    hxq("verify", tmp_path / "out", "--source", MODEL).out.endswith("all is well\n")
    assert leftovers(tmp_path) == []


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_when_nobody_reads_any_more(hxq, model_copy, tmp_path):
    """What is printed ends the command as it ends others; messages on a closed pipe stop nothing."""
    out = closed_pipe()
    stream = ["generate", MODEL, "-p", "The", "-n", "9", "--stream"]
    result = run(hxq, stream, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE)
    assert result.returncode == -signal.SIGPIPE and b"hxq:" not in result.stderr
    (model_copy / "pytorch_model.bin").write_text("x")  # left out: there is a message while the work goes on
    work = ["compress", model_copy, tmp_path / "out"]
    result = run(hxq, work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out)
    assert result.returncode == 0 and leftovers(tmp_path) == []
    assert hxq("verify", tmp_path / "out").code == 0


def test_input_that_cannot_be_read_is_not_empty(hxq, compressed, tmp_path):
    template = tmp_path / "template"
    template.write_text("{{ messages[0].content }}")
    for verb in (["perplexity", compressed, "--text", "-"], ["generate", compressed, "--prompt-file", "-"],
                 ["chat", compressed, "--template", template]):  # fmt: skip
        folder = os.open(tmp_path, os.O_RDONLY)
        result = run(hxq, verb, stdin=folder, capture_output=False, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert result.returncode == 1 and b"standard input: cannot read: Is a directory" in result.stderr, result.stderr
        result = run(hxq, verb, [0], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert result.returncode == 1 and b"standard input: cannot read: Bad file descriptor" in result.stderr


def test_a_file_that_may_not_grow_leaves_nothing(hxq, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    hxq("compress", MODEL, tmp_path / "out", preexec_fn=limited).fails_with("out.partial", "File too large")
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def hung_up(hxq, tmp_path, action):
    """What a compression says whose terminal hangs up, with that action of SIGHUP from the start."""
    process = subprocess.Popen([hxq.command, "compress", str(MODEL), str(tmp_path / "out")],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, action))  # fmt: skip
    while_it_runs(process, (tmp_path / "out.partial").exists)
    process.send_signal(signal.SIGHUP)
    message = process.communicate()[1]
    return process.returncode, message


def test_a_terminal_that_hangs_up(hxq, tmp_path):
    code, message = hung_up(hxq, tmp_path, signal.SIG_DFL)
    assert code == 129 and message == b"hxq: interrupted\n"
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_nohup(hxq, tmp_path):
    assert hung_up(hxq, tmp_path, signal.SIG_IGN) == (0, b"")
    assert leftovers(tmp_path) == [] and hxq("verify", tmp_path / "out").code == 0


@pytest.fixture
def odd_paths(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    return [tmp_path / "loop", tmp_path / "loop/x", tmp_path / ("n" * 300), tmp_path / "file", tmp_path / "file/x",
            tmp_path / "dangling", tmp_path / "nothing"]  # fmt: skip


def test_paths_that_lead_nowhere_are_named(hxq, compressed, odd_paths, tmp_path):
    for path in odd_paths:
        reading = [["inspect", path], ["verify", path], ["verify", compressed, "--source", path],
                   ["compress", path, tmp_path / "new"], ["decompress", path, tmp_path / "new"],
                   ["generate", path, "-p", "x"], ["bench", path],
                   ["perplexity", compressed, "--text", TEXT, "--against", path]]  # fmt: skip
        if path.name != "file":
            reading += [["perplexity", compressed, "--text", path], ["generate", compressed, "--prompt-file", path],
                        ["chat", compressed, "--template", path]]  # fmt: skip
        writing = [["compress", MODEL, path], ["compress", "--force", MODEL, path], ["decompress", compressed, path]]
        for arguments in reading + (writing if path.name != "nothing" else []):
            result = hxq(*arguments)
            result.fails_with(path.parent)
            assert "filesystem error" not in result.err, result.err
    assert not (tmp_path / "new").exists() and leftovers(tmp_path) == []


def test_a_side_file_that_cannot_be_read_is_named_before_the_work(as_nobody, open_folder):
    (open_folder / "dense/notes").write_text("x")
    (open_folder / "dense/notes").chmod(0)
    as_nobody("compress", open_folder / "dense", open_folder / "out").fails_with("dense/notes", "Permission denied")
    assert sorted(path.name for path in open_folder.iterdir()) == ["dense", "hxq"]


def test_folders_that_are_closed_are_named(as_nobody, open_folder):
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    source = open_folder / "dense"
    for arguments in (["compress", source, closed / "out"], ["compress", "--force", source, closed / "out"],
                      ["compress", source, closed], ["compress", closed, open_folder / "out"], ["inspect", closed],
                      ["decompress", source, closed / "out"],
                      ["generate", source, "--prompt-file", closed / "x"]):  # fmt: skip
        result = as_nobody(*arguments)
        result.fails_with("closed")
        assert "filesystem error" not in result.err
    as_nobody("generate", closed, "-p", "a").fails_with("closed", "Permission denied")
    closed.chmod(0o555)
    as_nobody("compress", source, closed / "out").fails_with("closed: cannot create", "Permission denied")
