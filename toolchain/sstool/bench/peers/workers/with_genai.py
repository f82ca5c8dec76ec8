"""Runs a checkpoint with onnxruntime-genai on the CPU, with its n-gram lookup if asked."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import onnxruntime_genai as og
from line_server import Decode, converted, serve

_LOOKUP_LENGTH: Final = 3
"""Length of the n-grams that its lookup matches."""


def open_model(request: dict[str, Any]) -> Decode:
    """Returns the function that completes a prompt."""

    def command(out: str) -> list[str]:
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", request["model"], "-o", out]
        return [*build, "-p", request["dtype"], "-e", "cpu", "-c", f"{out}/cache"]

    config = og.Config(converted(request, command))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": request["threads"]}}}}))
    model = og.Model(config)
    lookup = bool(request["looks_up"])

    def decode(task: dict[str, Any]) -> dict[str, Any]:
        before = len(task["ids"])
        params = og.GeneratorParams(model)
        options: dict[str, Any] = {"max_length": before + task["tokens"], "min_length": before + task["tokens"]}
        if task["temperature"] > 0:
            options |= {"do_sample": True, "temperature": task["temperature"], "top_p": task["top_p"], "top_k": 0}
            options["random_seed"] = task["seed"] % 2**31
        else:
            options["do_sample"] = False
        params.set_search_options(**options)
        if lookup:
            params.set_speculative_options(ngram_size=_LOOKUP_LENGTH)
        begun = time.perf_counter()
        generator = og.Generator(model, params)
        generator.append_tokens(task["ids"])
        generator.generate_next_token()
        first, marked = generator.token_count() - before, time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        end = time.perf_counter()
        new = [int(i) for i in generator.get_sequence(0)][before:]
        return {"ids": new, "first": first, "prefill_s": marked - begun, "decode_s": end - marked}

    return decode


if __name__ == "__main__":
    serve(open_model)
