"""A model in llama.cpp, by the functions of its C interface. Needs llama-cpp-python and numpy."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

_silence = llama_cpp.llama_log_callback(lambda level, text, user: None)  # called as long as the process runs
llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def quantize(source: Path, target: Path, file_type: int, threads: int) -> None:
    """A GGUF file as another of that `enum llama_ftype`."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = file_type, threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)) != 0:
        target.unlink(missing_ok=True)
        raise RuntimeError("llama_model_quantize failed")


class LlamaCpp:
    def __init__(self, path: Path, context: int, batch: int, threads: int) -> None:
        """`context`: tokens a text may have; `batch`: those of one call. Raises RuntimeError if llama.cpp cannot."""
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = context, batch, min(batch, 512)
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            llama_cpp.llama_model_free(self.model)
            raise RuntimeError(f"{path}: llama.cpp has no context of {context} tokens for it")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def feed(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")

    def logits(self) -> np.ndarray:
        """Of the token fed last."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (self.vocab,)).copy()

    def logits_of_last(self, tokens: list[int], wanted: int) -> np.ndarray:
        """Logits [wanted, vocab] of the last of the tokens, which are a text of their own."""
        self.reset()
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i >= len(tokens) - wanted
        code = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (wanted, self.vocab)).copy()
