"""Folders and engines for the tests of HXQ in vLLM, which `make test-vllm` runs in an environment with vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import helix_substrate

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HXQ_SHARED_DIR", ROOT.parent / "shared"))
MODELS = ("wiki-llama", "wiki-qwen2", "wiki-mamba-7m", "wiki-mamba2", "wiki-zamba2")

sys.path.append(str(ROOT / "python" / "tests"))  # layers and matrices without vLLM

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_WAIT_POLICY": "passive",
}  # fmt: skip
os.environ.update(ENVIRONMENT)


def source(name: str) -> Path:
    found = [path for path in (ROOT / "models" / name, SHARED / "models" / name) if path.is_dir()]
    if not found:
        pytest.skip(f"{name} is neither in models/ nor in {SHARED}/models (set HXQ_SHARED_DIR)")
    return found[0]


@pytest.fixture(scope="session")
def compressed(tmp_path_factory):
    """compressed(name, profile=None): the folder of a model, made once."""
    made = {}

    def make(name, profile=None):
        if (name, profile) not in made:
            folder = tmp_path_factory.mktemp("compressed") / name
            helix_substrate.compress(source(name), folder, profile=profile)
            made[name, profile] = folder
        return made[name, profile]

    return make


@pytest.fixture
def engine(tmp_path):
    """engine(folder, prompts, tokens, tp=1, ...): what an engine says, see engine.py."""

    def run(folder, prompts=(), tokens=1, **more):
        job = tmp_path / "job.json"
        job.write_text(json.dumps({"folder": str(folder), "prompts": list(prompts), "tokens": tokens, **more}))
        command = [sys.executable, Path(__file__).with_name("engine.py"), job]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stdout[-3000:] + done.stderr[-3000:]
        return {**json.loads(lines[-1]), "log": done.stdout + done.stderr}

    return run
