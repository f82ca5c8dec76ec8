"""Runs a checkpoint with transformers on the CPU, with its prompt lookup if asked."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
import transformers
from line_server import Decode, serve

_LOOKUP_TOKENS: Final = 10
"""Tokens that its prompt lookup proposes, as in its documentation."""


class _FirstTokens(transformers.StoppingCriteria):
    """Keeps the time at which the first tokens came, and the length of the text then."""

    def __init__(self) -> None:
        self.time, self.length = 0.0, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        if not self.length:
            self.time, self.length = time.perf_counter(), input_ids.shape[1]
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def open_model(request: dict[str, Any]) -> Decode:
    """Returns the function that completes a prompt."""
    torch.set_num_threads(request["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
    lookup = {"prompt_lookup_num_tokens": _LOOKUP_TOKENS} if request["looks_up"] else {}

    def decode(task: dict[str, Any]) -> dict[str, Any]:
        ids = torch.tensor([task["ids"]])
        first = _FirstTokens()
        sampled = {"do_sample": True, "temperature": task["temperature"], "top_p": task["top_p"], "top_k": 0}
        torch.manual_seed(task["seed"])
        begun = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=task["tokens"],
                min_new_tokens=task["tokens"],
                stopping_criteria=transformers.StoppingCriteriaList([first]),
                **(sampled if task["temperature"] > 0 else {"do_sample": False}),
                **lookup,
            )
        end, before = time.perf_counter(), len(task["ids"])
        new = output[0, before:].tolist()
        return {"ids": new, "first": first.length - before, "prefill_s": first.time - begun, "decode_s": end - first.time}

    return decode


if __name__ == "__main__":
    serve(open_model)
