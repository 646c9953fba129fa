"""What is left of long work when it is interrupted: the results so far, and the exit code of a signal."""

import json
import os
import signal
import subprocess

import pytest
from conftest import TEXT, while_it_runs

PROMPT = "The city of London is"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def cpu_seconds(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def interrupted(hxq, signal_number, *arguments, after=1.0):
    """Runs the command, and sends the signal once it has worked for some time."""
    process = subprocess.Popen([hxq.command, *map(str, arguments), "--threads", "1"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while_it_runs(process, lambda: cpu_seconds(process) >= after)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == CODES[signal_number], (process.returncode, err)
    assert err.splitlines()[-1] == "hxq: interrupted"
    return out


@pytest.mark.parametrize("number", CODES)
def test_generate_prints_what_there_is(hxq, compressed, number):
    endless = ("generate", compressed, "--prompt", PROMPT, "--max-tokens", 10**9, "--ignore-eos")
    text = interrupted(hxq, number, *endless)
    result = json.loads(interrupted(hxq, number, *endless, "--json"))
    assert result["stop_reason"] == "interrupted" and result["prompt"] == PROMPT and len(result["tokens"]) > 10
    expected = hxq("generate", compressed, "--prompt", PROMPT, "--max-tokens", 10, "--ignore-eos").out.rstrip("\n")
    assert text.startswith(expected) and text.endswith("\n") and result["text"].startswith(expected)
    several = json.loads(interrupted(hxq, number, *endless, "--prompt", "x", "--json"))
    assert [item["stop_reason"] for item in several] == ["interrupted"] * 2


def test_perplexity_over_the_windows_that_are_done(hxq, compressed):
    long = ("perplexity", compressed, "--text", TEXT, "--window", 64, "--stride", 4)
    result = json.loads(interrupted(hxq, signal.SIGINT, *long, "--json"))
    done = len(result["windows"])
    assert result["interrupted"] and done > 1
    same = hxq(*long, "--windows", done, "--json").json()
    assert not same["interrupted"] and same["perplexity"] == result["perplexity"] and same["windows"] == result["windows"]
    assert "windows, interrupted before the rest\n" in interrupted(hxq, signal.SIGTERM, *long)


def test_bench_has_no_figures_by_then(hxq, compressed):
    assert interrupted(hxq, signal.SIGINT, "bench", compressed, "--rounds", 1000) == ""
