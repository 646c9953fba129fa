"""The Python package on an NVIDIA GPU beside transformers and PEFT on the same one; prints rows for bench/results.csv.

Weights are random, of the models' shapes. What the two sides compute is compared first, on a few tokens.

    python bench/gpu_python.py [--only decode lora scan]
"""

import argparse
import copy
import gc
import statistics
import time

import torch

import helix_substrate
import peft
import transformers

GPU = "cuda"
PROMPT, SHORT, LONG = 16, 8, 136
BATCH = 4  # of a training step


def mamba(hidden, layers, vocabulary):
    config = transformers.MambaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, state_size=16,
        time_step_rank=hidden // 16, initializer_range=0.02,  # of the default's 0.1 large models carry rounding far
    )  # fmt: skip
    return transformers.MambaForCausalLM(config)


def llama():
    """TinyLlama's shape."""
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        intermediate_size=5632, max_position_embeddings=2048,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


MAMBA_LORA = ("in_proj", "x_proj", "dt_proj")  # PEFT refuses out_proj where transformers runs the layer
SHAPES = {
    "mamba-130m": (lambda: mamba(768, 24, 50280), MAMBA_LORA),
    "wiki-mamba-25m": (lambda: mamba(448, 16, 8192), MAMBA_LORA),
    "tinyllama-1.1b": (llama, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
}


def row(what, tokens, x, us, unit="", error="", check=""):
    card = torch.cuda.get_device_name()
    print(",".join(str(v) for v in (card, what, tokens, x, f"{us:.5g}{unit}", "", error, check)), flush=True)


def made(shape, dtype):
    torch.manual_seed(0)
    with torch.device(GPU):
        model = SHAPES[shape][0]()
    return model.to(dtype).eval()


def compressed(dense):
    model = copy.deepcopy(dense)
    helix_substrate.compress_model(model, embeddings=True)
    helix_substrate.accelerate_ssm(model)
    return model


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@torch.no_grad()
def check(model, dtype):
    """The logits against transformers' code in float32 on the decoded weights. In bfloat16 they may be half as far
    again from them as transformers' own in bfloat16."""
    reference = helix_substrate.decompress_model(copy.deepcopy(model))
    helix_substrate.accelerate_ssm(reference, False)
    ids = torch.arange(20, 60, device=GPU)[None]
    theirs = reference(ids).logits
    expected = torch.nn.Module.float(reference)(ids).logits
    with helix_substrate.precision("exact"):
        error = relative(model(ids).logits, expected)
    return error, "ok" if error <= max(1e-3, 1.5 * relative(theirs, expected)) else "failed"


def decode_us(model, repeats=3):
    """Of a token, by the difference between a long and a short text."""
    ids = torch.arange(20, 20 + PROMPT, device=GPU)[None]
    best = {}
    for count in (SHORT, SHORT, LONG) * repeats:  # the first ones warm up
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        torch.cuda.synchronize()
        best[count] = min(best.get(count, 1e9), time.perf_counter() - start)
    return (best[LONG] - best[SHORT]) / (LONG - SHORT) * 1e6


def measure_decode(shape):
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        dense = made(shape, dtype)
        model = compressed(dense)
        error, passed = check(model, dtype)
        ours = decode_us(model)
        row(f"generate() {shape}", "M=1", name, ours, error=f"{error:.2e}", check=passed)
        theirs = decode_us(dense, repeats=1)
        row(f"generate() {shape} by transformers", "M=1", name, theirs)
        row(f"generate() {shape} against transformers", "M=1", name, theirs / ours, " times the tokens/s")
        del model, dense
        free()


def step_us(model, vocabulary, length, steps):
    """Median time of a training step, and the peak of memory."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    model.train()
    torch.manual_seed(1)
    ids = torch.randint(0, vocabulary, (BATCH, length), device=GPU)
    times = []
    for i in range(steps + 2):
        if i == 2:
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e6, torch.cuda.max_memory_allocated() / 2**20


def with_lora(model, shape):
    torch.manual_seed(2)
    return peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=list(SHAPES[shape][1])))


def measure_lora(shape, length, steps):
    tokens = f"{BATCH}x{length}"
    dense = made(shape, torch.bfloat16)
    vocabulary = dense.config.vocab_size
    is_mamba = "mamba" in shape
    model = compressed(dense)
    error, passed = check(model, torch.bfloat16)
    dense.cpu()
    us, mib = step_us(with_lora(model, shape), vocabulary, length, steps)
    row(f"LoRA step {shape}", tokens, "bf16", us, error=f"{error:.2e}", check=passed)
    row(f"LoRA step {shape} peak memory", tokens, "bf16", mib, " MiB")
    del model
    free()
    dense.to(GPU)
    if is_mamba:  # transformers' own way has one kernel for each token and operation
        served = copy.deepcopy(dense)
        helix_substrate.accelerate_ssm(served)
        served_us, served_mib = step_us(with_lora(served, shape), vocabulary, length, steps)
        row(f"LoRA step {shape} dense with accelerate_ssm", tokens, "bf16", served_us)
        row(f"LoRA step {shape} dense with accelerate_ssm peak memory", tokens, "bf16", served_mib, " MiB")
        del served
        free()
    theirs, their_mib = step_us(with_lora(dense, shape), vocabulary, length, 2 if is_mamba else steps)
    row(f"LoRA step {shape} dense", tokens, "bf16", theirs)
    row(f"LoRA step {shape} dense peak memory", tokens, "bf16", their_mib, " MiB")
    row(f"LoRA step {shape} against dense", tokens, "bf16", us / theirs, " times the time")


def free():
    gc.collect()
    torch.cuda.empty_cache()


def events_us(work, repeats=20):
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def captured(work):
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def measure_scan(tokens=2048, channels=1536, states=16):
    """Of one layer of mamba-130m, from a captured graph: what the GPU takes."""
    torch.manual_seed(0)
    sequences = [torch.randn(1, tokens, n, device=GPU) for n in (channels, channels, states, states, channels)]
    parameters = [torch.randn(n, device=GPU) for n in ((channels, states), (channels,), (channels,))]
    g = torch.randn(1, tokens, channels, device=GPU)
    operators = torch.ops.hxq
    with torch.no_grad():
        forward = events_us(captured(lambda: operators.selective_scan(*sequences, *parameters)))
        backward = events_us(captured(lambda: operators.selective_scan_gradient(*sequences, *parameters, g)))
        filters = torch.randn(channels, 4, device=GPU), parameters[1]
        conv = events_us(captured(lambda: operators.causal_conv1d(g, *filters)))
        conv_back = events_us(captured(lambda: operators.causal_conv1d_gradient(g, *filters, g)))
    for what, us in (
        ("scan", forward), ("scan gradient", backward), ("convolution", conv), ("convolution gradient", conv_back)
    ):  # fmt: skip
        row(f"torch.ops.hxq {what} {channels} channels", tokens, "f32", us)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=("decode", "lora", "scan"), default=("scan", "decode", "lora"))
    only = parser.parse_args().only
    transformers.utils.logging.set_verbosity_error()
    if "scan" in only:
        measure_scan()
    if "decode" in only:
        measure_decode("mamba-130m")
    if "lora" in only:
        measure_lora("tinyllama-1.1b", 512, 8)
        measure_lora("tinyllama-1.1b", 2048, 8)
        measure_lora("wiki-mamba-25m", 512, 8)


if __name__ == "__main__":
    main()
