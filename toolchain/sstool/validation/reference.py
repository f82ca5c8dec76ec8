"""Logits of the checkpoint itself, as transformers computes them in fp32: what every exported graph is held to."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.errors import CheckpointError, UnsupportedModelError
from ssruntime.machine import return_freed_memory
from sstool.checkpoint.quiet import quiet
from sstool.graph.passes.elide import sublayers_of
from sstool.graph.sublayers import sublayer_of_path

if TYPE_CHECKING:
    import torch

CHUNK: Final = 1024
"""Most tokens in one pass."""


class Reference:
    """A checkpoint in transformers, fp32."""

    def __init__(self, folder: Path) -> None:
        """Loads it.

        Raises:
            CheckpointError: if the weights lack a tensor of the model.
            UnsupportedModelError: if transformers cannot load the model.
        """
        self._folder = folder
        self._model = _load(folder)

    def logits(self, ids: Sequence[int], positions: Sequence[int], *, skip: SkipSet | None = None) -> NDArray[np.float32]:
        """Runs a sequence once.

        Args:
            ids: the sequence, from position 0.
            positions: which positions' logits to return, rising.
            skip: sublayers whose output is replaced by zero, as a draft leaves them out.

        Returns:
            float32[len(positions), vocab].

        Raises:
            UnsupportedModelError: if transformers cannot run the model.
        """
        import torch

        hooks = [] if skip is None else _zero_sublayers(self._model, skip)
        try:
            with torch.inference_mode():
                return self._run(ids, positions)
        except (RuntimeError, TypeError, ValueError) as err:
            raise UnsupportedModelError(
                f"{self._folder}: transformers cannot run the model: {err}", "this model cannot be exported yet"
            ) from err
        finally:
            for hook in hooks:
                hook.remove()

    def _run(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Runs a short sequence in one pass, a long one in chunks over a cache: one pass holds heads x length x length scores."""
        import torch

        if len(ids) <= CHUNK:
            return _rows(self._model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=torch.tensor(list(positions))))
        rows, cache = [], None
        for start in range(0, len(ids), CHUNK):
            chunk = list(ids[start : start + CHUNK])
            # The model gives at least one position of every pass; where none is asked for, the last is left aside.
            wanted = [p - start for p in positions if start <= p < start + len(chunk)]
            keep = torch.tensor(wanted or [len(chunk) - 1])
            output = self._model(torch.tensor([chunk]), past_key_values=cache, use_cache=True, logits_to_keep=keep)
            cache = output.past_key_values
            rows.append(_rows(output)[: len(wanted)])
        return np.concatenate(rows)


def _rows(output: Any) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = output.logits[0].float().numpy().copy()
    return logits


def reference_logits(folder: Path, ids: Sequence[int], positions: Sequence[int], *, skip: SkipSet | None = None) -> NDArray[np.float32]:
    """Loads a checkpoint, runs a sequence through it once (see `Reference.logits`), and lets go of it again."""
    reference = Reference(folder)
    logits = reference.logits(ids, positions, skip=skip)
    del reference
    # Freeing the model is not enough: glibc would keep 214 MB of a 292 MB model for later.
    gc.collect()
    return_freed_memory()
    return logits


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as err:  # transformers raises whatever its model code ran into
        raise UnsupportedModelError(f"{folder}: transformers cannot load the model: {err}", "this model cannot be exported yet") from err
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder}: the weights lack the tensor {missing[0]!r}", "download the checkpoint again")
    return model.eval()


def _zero_sublayers(model: Any, skip: SkipSet) -> list[Any]:
    """Has skipped sublayers give zero; returns the hooks that do it."""
    wanted = set(sublayers_of(skip))
    hooks = []
    for name, module in model.named_modules():
        found = sublayer_of_path(_layer_path(name))
        parent = sublayer_of_path(_layer_path(name.rpartition(".")[0]))
        if found in wanted and parent is None:
            hooks.append(module.register_forward_hook(_zeroed))
    return hooks


def _layer_path(name: str) -> tuple[str, ...]:
    """Turns `model.layers.1.mlp` into `("model", "layers.1", "mlp")`, as the graph's scopes have it."""
    path: list[str] = []
    for part in name.split("."):
        if part.isdigit() and path:
            path[-1] += f".{part}"
        else:
            path.append(part)
    return tuple(path)


def _zeroed(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
    import torch

    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
