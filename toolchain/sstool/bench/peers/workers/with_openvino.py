"""Runs a checkpoint with OpenVINO GenAI on the CPU, with its prompt lookup if asked."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import numpy as np
import openvino
import openvino_genai
from line_server import Decode, converted, serve

_LOOKUP_TOKENS: Final = 5
_LOOKUP_LENGTH: Final = 3
"""Its prompt lookup as in its own examples."""


class _FirstTokens(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Keeps the time at which the first tokens came, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.count = 0.0, 0

    def write(self, token: Any) -> Any:
        if not self.count:
            self.time, self.count = time.perf_counter(), 1 if isinstance(token, int) else len(token)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def open_model(request: dict[str, Any]) -> Decode:
    """Returns the function that completes a prompt."""
    tool = [sys.executable, "-c", "from optimum.commands.optimum_cli import main; main()", "export", "openvino"]
    task = ["--task", "text-generation-with-past", "--weight-format", request["dtype"]]
    folder = converted(request, lambda out: [*tool, "--model", request["model"], *task, out])
    lookup = bool(request["looks_up"])
    # Its default rounds products to 16 bits where the processor can, which is not what the weights say.
    how: dict[str, Any] = {"INFERENCE_NUM_THREADS": request["threads"], "INFERENCE_PRECISION_HINT": "f32"}
    pipe = openvino_genai.LLMPipeline(folder, "CPU", **how, **({"prompt_lookup": True} if lookup else {}))

    def decode(task: dict[str, Any]) -> dict[str, Any]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = task["tokens"]
        if task["temperature"] > 0:
            config.do_sample, config.temperature, config.top_p = True, task["temperature"], task["top_p"]
            config.rng_seed = task["seed"] % 2**31
        if lookup:
            config.num_assistant_tokens, config.max_ngram_size = _LOOKUP_TOKENS, _LOOKUP_LENGTH
        ids = np.array([task["ids"]], np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        first = _FirstTokens()
        begun = time.perf_counter()
        new = list(pipe.generate(inputs, config, first).tokens[0])
        end = time.perf_counter()
        return {"ids": new, "first": first.count, "prefill_s": first.time - begun, "decode_s": end - first.time}

    return decode


if __name__ == "__main__":
    serve(open_model)
