"""The checkpoint's own logits, computed by transformers: the reference for every exported graph."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.errors import CheckpointError, UnsupportedModelError
from ssruntime.machine import return_freed_memory
from sstool.checkpoint.quiet import quiet
from sstool.graph.passes.elide import sublayers_of
from sstool.graph.sublayers import sublayer_of_path
from sstool.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    import torch

CHUNK: Final = 1024
"""Largest number of tokens in one pass."""


MAX_RELATIVE_ERROR: Final = 1e-4
"""Largest allowed error of fp32 logits, as a fraction of the largest reference logit."""
CAST_FACTOR: Final = 3.0
"""The same in 16 bits, as a multiple of what casting the checkpoint costs in PyTorch.

Two implementations in 16 bits round at different places: only the size of their errors is alike."""


class ReferenceLogits(NamedTuple):
    """The checkpoint's logits, and how far an engine's may be from them.

    Attributes:
        logits: float32[N, vocab], computed in fp32.
        tolerance: largest allowed error, as a fraction of the largest logit.
    """

    logits: NDArray[np.float32]
    tolerance: float


class Reference:
    """A checkpoint loaded into transformers in fp32."""

    def __init__(self, folder: Path) -> None:
        """Loads the checkpoint in `folder`.

        Raises:
            CheckpointError: if the weights lack a tensor of the model.
            UnsupportedModelError: if transformers cannot load the model.
        """
        self._folder = folder
        self._model = _load(folder)

    def cast(self, precision: Precision) -> None:
        """Makes the model compute in a data type of 16 bits from now on."""
        self._model = self._model.to(precision.torch_type)

    def logits(self, ids: Sequence[int], positions: Sequence[int], *, skip: SkipSet | None = None) -> NDArray[np.float32]:
        """Returns the logits of a sequence at the given positions.

        Args:
            ids: token ids of the sequence, from position 0.
            positions: positions whose logits are returned, ascending.
            skip: sublayers whose output is replaced by zero, as in a draft that skips them.

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
        """Returns the logits; runs a short sequence in one pass, and a long one in chunks over the KV cache.

        A single pass needs memory for heads x length x length attention scores.
        """
        import torch

        if len(ids) <= CHUNK:
            return _rows(self._model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=torch.tensor(list(positions))))
        rows, cache = [], None
        for start in range(0, len(ids), CHUNK):
            chunk = list(ids[start : start + CHUNK])
            # transformers returns at least one position of every pass. If none is needed, drop the last.
            wanted = [p - start for p in positions if start <= p < start + len(chunk)]
            keep = torch.tensor(wanted or [len(chunk) - 1])
            output = self._model(torch.tensor([chunk]), past_key_values=cache, use_cache=True, logits_to_keep=keep)
            cache = output.past_key_values
            rows.append(_rows(output)[: len(wanted)])
        return np.concatenate(rows)


def _rows(output: Any) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = output.logits[0].float().numpy().copy()
    return logits


def reference_logits(
    folder: Path, ids: Sequence[int], positions: Sequence[int], *, skip: SkipSet | None = None, dtype: str = "fp32"
) -> ReferenceLogits:
    """Returns the logits of a sequence in fp32; loads the model for this and frees it.

    Args:
        folder: the checkpoint.
        ids: token ids of the sequence, from position 0.
        positions: positions whose logits are returned, ascending.
        skip: sublayers whose output is replaced by zero.
        dtype: data type that the exported graph computes in.

    Raises:
        CheckpointError: if the weights lack a tensor of the model.
        UnsupportedModelError: if transformers cannot load or run the model.
    """
    reference = Reference(folder)
    logits, tolerance = reference.logits(ids, positions, skip=skip), MAX_RELATIVE_ERROR
    if PRECISIONS[dtype].compute != "fp32":
        reference.cast(PRECISIONS[dtype])
        cost = np.abs(reference.logits(ids, positions, skip=skip) - logits).max() / np.abs(logits).max()
        tolerance = max(tolerance, CAST_FACTOR * float(cost))
    del reference
    # Freeing the model is not enough: glibc keeps most of its memory for later allocations.
    gc.collect()
    return_freed_memory()
    return ReferenceLogits(logits, tolerance)


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                # The checkpoint's sampling defaults do not matter here; transformers refuses some of them.
                generation_config=GenerationConfig(),  # type: ignore[no-untyped-call]
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as err:  # transformers lets any exception of its model code through
        raise UnsupportedModelError(f"{folder}: transformers cannot load the model: {err}", "this model cannot be exported yet") from err
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder}: the weights lack the tensor {missing[0]!r}", "download the checkpoint again")
    return model.eval()


def _zero_sublayers(model: Any, skip: SkipSet) -> list[Any]:
    """Returns hooks, already registered, that make the skipped sublayers output zero."""
    wanted = set(sublayers_of(skip))
    hooks = []
    for name, module in model.named_modules():
        found = sublayer_of_path(_layer_path(name))
        parent = sublayer_of_path(_layer_path(name.rpartition(".")[0]))
        if found in wanted and parent is None:
            hooks.append(module.register_forward_hook(_zeroed))
    return hooks


def _layer_path(name: str) -> tuple[str, ...]:
    """Returns the graph's form of a path: `("model", "layers.1", "mlp")` for `model.layers.1.mlp`."""
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
