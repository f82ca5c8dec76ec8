"""Tables of a model's rotary angles, made with transformers' own frequencies, for every kind of scaling that a context fixes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.errors import UnsupportedModelError
from sstool.checkpoint.attention_pattern import EVERY_LAYER, rope_parameters

SCALINGS: Final = frozenset({"default", "linear", "llama3", "yarn", "dynamic", "longrope"})

Table = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Cosines and sines float32[positions, rotary_dim / 2]."""


def check_scaling(config: Any, max_context: int) -> None:
    """Refuses a rotary embedding whose angles are not fixed by the position.

    `dynamic` scaling leaves positions within the model's own context as they are, which is as far as an export goes. `longrope` turns
    every position by other angles as soon as a text is longer than the original context, so it is fixed by staying within that.

    Raises:
        UnsupportedModelError: saying what would fix it.
    """
    for parameters in rope_parameters(config).values():
        kind = parameters.get("rope_type", "default")
        if kind not in SCALINGS:
            raise UnsupportedModelError(
                f"the model scales its positions with {kind!r}, which is not yet supported", f"supported: {', '.join(sorted(SCALINGS))}"
            )
        original = _original_context(config, parameters)
        if kind == "longrope" and max_context > original:
            raise UnsupportedModelError(
                f"the model scales its positions with 'longrope': past {original} tokens it turns every position by other angles",
                f"export it with --max-context {original}",
            )


def original_context(config: Any) -> int:
    """Returns the positions before scaling: the fewest of the model's rotary embeddings."""
    contexts = [_original_context(config, p) for p in rope_parameters(config).values()]
    return min(contexts, default=int(config.max_position_embeddings))


def rope_tables(config: Any, max_context: int) -> dict[str, Table]:
    """Returns the table of each of the model's rotary embeddings, by its name in the attention pattern.

    Args:
        config: the checkpoint's, as transformers read it; `check_scaling` accepted it.
        max_context: positions.
    """
    return {name: _table(config, name, max_context) for name in rope_parameters(config)}


def _table(config: Any, name: str, max_context: int) -> Table:
    import torch

    frequencies, scale = _frequencies(config, name)
    # As transformers has it, in fp32: positions times frequencies, not powers of one angle.
    angles = torch.arange(max_context, dtype=torch.float32)[:, None] * frequencies[None, :]
    return (angles.cos() * scale).numpy(), (angles.sin() * scale).numpy()


def _frequencies(config: Any, name: str) -> tuple[Any, float]:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = rope_parameters(config)[name]
    kind = parameters.get("rope_type", "default")
    if kind in ("default", "dynamic"):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        return 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim), 1.0
    layer_type = {} if name == EVERY_LAYER else {"layer_type": name}
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **layer_type)
    return frequencies, float(scale)


def _original_context(config: Any, parameters: Any) -> int:
    found = parameters.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(found or config.max_position_embeddings)
