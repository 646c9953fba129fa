"""Models for the tests: the bundled one, and tiny random ones of other architectures."""

import os
import sys
from pathlib import Path

import pytest

import helix_substrate  # before torch, as in a program: it then chooses how threads wait

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "wiki-mamba-7m"
TEXT = ROOT / "models" / "wikitext2-excerpt.txt"
SHARED = Path(os.environ.get("HXQ_SHARED_DIR", ROOT.parent / "shared"))

sys.path.append(str(ROOT / "bench"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def dense_folder():
    return MODEL


@pytest.fixture(scope="session")
def hxq_folder(tmp_path_factory):
    """The bundled Mamba, compressed."""
    folder = tmp_path_factory.mktemp("models") / "wiki-mamba-7m-hxq"
    helix_substrate.compress(MODEL, folder, threads=2)
    return folder


@pytest.fixture(scope="session")
def text():
    return TEXT.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def floats():
    """Kernels that do not round their inputs."""
    helix_substrate.use_target("avx2" if "avx2" in helix_substrate.supported_targets() else "scalar")
    helix_substrate.set_precision("exact")
    yield
    helix_substrate.set_precision("fast")
    helix_substrate.use_target(None)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Every kind of device that operators compute on."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no NVIDIA GPU")
    return request.param


@pytest.fixture
def gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no NVIDIA GPU")
    return "cuda"


@pytest.fixture
def layer(floats):
    import torch
    from small_layers import IN, OUT

    torch.manual_seed(0)
    return helix_substrate.HelixLinear.from_linear(torch.nn.Linear(IN, OUT))


@pytest.fixture
def shared():
    """Models, texts and other people's files that are not in the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there (set HXQ_SHARED_DIR)")
    return SHARED


@pytest.fixture
def peer(shared):
    """Folders written by the existing implementation."""
    return shared / "peer"


def load(folder, **options):
    import torch
    from transformers import AutoModelForCausalLM

    options.setdefault("dtype", torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def greedy(model, ids, tokens=12):
    import torch

    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
