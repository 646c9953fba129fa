"""The README's commands, as they stand there, in a folder that looks like a fresh checkout after `make build`."""

import re
import subprocess

from conftest import ROOT


def commands():
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        for line in block.splitlines():
            if line.startswith("build/hxq "):
                yield line


def test_readme_commands(hxq, tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "hxq").symlink_to(hxq.command)
    (tmp_path / "models").symlink_to(ROOT / "models")
    ran = 0
    for command in commands():
        if command.startswith("build/hxq serve "):  # ends when it is told to
            command = command.replace("--port 8080", "--port 0")
            server = subprocess.Popen(["sh", "-c", "exec " + command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            assert " serves mine" in server.stdout.readline(), command
            server.terminate()
            assert server.wait(30) == 143
            ran += 1
            continue
        completed = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True,
                                   input="Where is London?\n")
        assert completed.returncode == 0, (command, completed.stderr)
        assert completed.stdout, command
        ran += 1
    assert ran >= 8


def test_readme_shows_every_verb():
    text = " ".join(commands())
    for verb in ("compress", "verify", "inspect", "report", "generate", "chat", "serve", "perplexity", "bench", "decompress"):
        assert f"build/hxq {verb} " in text
