"""One engine of vLLM over a folder, in a process of its own: `python engine.py JOB`, where JOB is a JSON file with
folder, prompts (token ids), tokens, tp, pp and options of `LLM`. Prints one line of JSON: {"texts": [{"tokens",
"prompt_logprobs"}], "bytes"} with the bytes of all weights of compressed layers where the engine runs in this process,
or {"error"}."""

import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "python" / "tests"))

from core_memory import held_by_core  # noqa: E402


def resident(model) -> int:
    """Bytes of the arrays that compressed layers hold, of tied ones once; their objects are not counted."""
    stacks = {
        id(module.hxq_stacked): module.hxq_stacked for module in model.modules() if hasattr(module, "hxq_stacked")
    }
    tensors = sum(tensor.nbytes for stack in stacks.values() for tensor in stack.tensors)
    matrices = [run.matrix for stack in stacks.values() for run in stack.runs if hasattr(run.matrix, "info")]
    return tensors + sum(held_by_core(matrix.info()) for matrix in matrices)


def run(job: dict) -> dict:
    parallel = job.get("tp", 1) * job.get("pp", 1)
    if parallel == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % os.cpu_count()) for rank in range(parallel))
    from vllm import LLM, SamplingParams

    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, **job.get("options", {})}
    llm = LLM(job["folder"], tensor_parallel_size=job.get("tp", 1), pipeline_parallel_size=job.get("pp", 1), **options)
    sampling = SamplingParams(temperature=0, max_tokens=job["tokens"], prompt_logprobs=0, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], sampling)
    texts = [
        {
            "tokens": list(output.outputs[0].token_ids),
            "prompt_logprobs": [
                position[token].logprob
                for position, token in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:])
            ],
        }
        for output in outputs
    ]
    return {"texts": texts, "bytes": llm.apply_model(resident)[0] if parallel == 1 else None}


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        job = json.load(file)
    try:
        answer = run(job)
    except Exception as error:  # the test says what it expected
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(answer), flush=True)
