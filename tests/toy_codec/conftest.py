"""Fixtures: the command and the C library that know one codec more, and the bundled model compressed with it."""

import json
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "wiki-mamba-7m"
TEXT = ROOT / "models" / "wikitext2-excerpt.txt"


def pytest_addoption(parser):
    parser.addoption("--hxq", required=True, help="the command with the codec row_int8")
    parser.addoption("--plain-hxq", required=True, help="the command without it")
    parser.addoption("--library", required=True, help="the C library with it")


def _runner(command):
    def run(*arguments, code=0):
        done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    run.json = lambda *arguments: json.loads(run(*arguments, "--json"))
    return run


@pytest.fixture(scope="session")
def hxq(request):
    return _runner(request.config.getoption("--hxq"))


@pytest.fixture(scope="session")
def plain_hxq(request):
    return _runner(request.config.getoption("--plain-hxq"))


@pytest.fixture(scope="session")
def library(request):
    return request.config.getoption("--library")


@pytest.fixture(scope="session")
def folder(hxq, tmp_path_factory):
    """The bundled model in int8. Tests must not change it."""
    target = tmp_path_factory.mktemp("row_int8") / "model"
    hxq("compress", MODEL, target, "--codec", "row_int8")
    return target
