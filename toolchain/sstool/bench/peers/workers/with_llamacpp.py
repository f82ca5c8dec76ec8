"""Runs a checkpoint with llama.cpp on the CPU, through the C functions that llama-cpp-python offers."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Final

import llama_cpp as lib
from line_server import Decode, converted, serve

_FP32: Final = 0
"""llama.cpp's number of the data type."""
_LEAST_CONTEXT: Final = 2048


class _Model:
    """A loaded model, with a context that has room for the longest text so far."""

    def __init__(self, path: str, threads: int, ends: list[int]) -> None:
        lib.llama_backend_init()
        how = lib.llama_model_default_params()
        how.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(path.encode(), how)
        if self._model is None:
            raise RuntimeError("llama.cpp cannot load the converted model")
        self._threads, self._ends = threads, ends
        self._context, self._room = None, 0

    def context(self, tokens: int) -> Any:
        """Returns an empty context for a number of tokens."""
        if self._room < tokens:
            if self._context is not None:
                lib.llama_free(self._context)
            how = lib.llama_context_default_params()
            self._room = how.n_ctx = how.n_batch = max(tokens, _LEAST_CONTEXT)
            how.n_threads = how.n_threads_batch = self._threads
            how.type_k = how.type_v = _FP32  # its default rounds keys and values to 16 bits
            self._context = lib.llama_init_from_model(self._model, how)
            if self._context is None:
                raise RuntimeError(f"llama.cpp cannot make a context of {self._room} tokens")
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        return self._context

    def sampler(self, task: dict[str, Any]) -> Any:
        """Returns a sampler that never takes a token that ends the text."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        biases = (lib.llama_logit_bias * len(self._ends))(*[(token, -math.inf) for token in self._ends])
        parts = [lib.llama_sampler_init_logit_bias(size, len(self._ends), biases)]
        if task["temperature"] > 0:
            parts += [lib.llama_sampler_init_temp(task["temperature"]), lib.llama_sampler_init_top_p(task["top_p"], 1)]
            parts += [lib.llama_sampler_init_dist(task["seed"] % 2**32)]
        else:
            parts += [lib.llama_sampler_init_greedy()]
        for part in parts:
            lib.llama_sampler_chain_add(chain, part)
        return chain


def _ends(model: Path) -> list[int]:
    """Returns the tokens that end a text, by the checkpoint's files."""
    found: set[int] = set()
    for path in (model / "config.json", model / "generation_config.json"):
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        found |= set(value) if isinstance(value, list) else set() if value is None else {value}
    return sorted(found)


def _step(context: Any, ids: list[int]) -> None:
    tokens = (lib.llama_token * len(ids))(*ids)  # a batch does not keep it alive
    if lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))):
        raise RuntimeError("llama.cpp cannot decode")


def open_model(request: dict[str, Any]) -> Decode:
    """Returns the function that completes a prompt."""
    program = str(Path(__file__).with_name("gguf_file.py"))
    folder = converted(request, lambda out: [sys.executable, program, request["model"], out, request["dtype"]])
    model = _Model(f"{folder}/model.gguf", request["threads"], _ends(Path(request["model"])))

    def decode(task: dict[str, Any]) -> dict[str, Any]:
        context = model.context(len(task["ids"]) + task["tokens"])
        sampler = model.sampler(task)
        begun = time.perf_counter()
        _step(context, task["ids"])
        new = [int(lib.llama_sampler_sample(sampler, context, -1))]
        marked = time.perf_counter()
        while len(new) < task["tokens"]:
            _step(context, new[-1:])
            new.append(int(lib.llama_sampler_sample(sampler, context, -1)))
        end = time.perf_counter()
        lib.llama_sampler_free(sampler)
        return {"ids": new, "first": 1, "prefill_s": marked - begun, "decode_s": end - marked}

    return decode


if __name__ == "__main__":
    serve(open_model)
