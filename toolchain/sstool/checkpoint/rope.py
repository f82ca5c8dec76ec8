"""RoPE frequencies, transformers' own, for every scaling that depends on position only."""

from __future__ import annotations

from typing import Any, Final

from ssruntime.artifact import Rope
from ssruntime.errors import UnsupportedModelError
from sstool.checkpoint.attention_pattern import EVERY_LAYER, rope_parameters

SCALINGS: Final = frozenset({"default", "linear", "llama3", "yarn", "dynamic", "longrope"})


def check_scaling(config: Any, max_context: int) -> None:
    """Refuses a RoPE scaling that does not depend on position only.

    `dynamic` scaling changes nothing within the model's own context, and no export has a longer context.
    `longrope` changes the frequencies of every position once a text is longer than the original context, so
    it is accepted only for contexts up to the original one.

    Args:
        config: the checkpoint's config as transformers reads it.
        max_context: number of positions of the export.

    Raises:
        UnsupportedModelError: if the scaling is not supported, or not for this context.
    """
    for parameters in rope_parameters(config).values():
        kind = parameters.get("rope_type", "default")
        if kind not in SCALINGS:
            raise UnsupportedModelError(
                f"the model's RoPE scaling {kind!r} is not yet supported", f"supported: {', '.join(sorted(SCALINGS))}"
            )
        original = _original_context(config, parameters)
        if kind == "longrope" and max_context > original:
            raise UnsupportedModelError(
                f"the model's RoPE scaling 'longrope' changes its frequencies in texts of more than {original} tokens,"
                f" and the context is {max_context}",
                f"export it with --max-context {original}",
            )


def original_context(config: Any) -> int:
    """Returns the number of positions before scaling; the smallest if the model has several RoPEs."""
    contexts = [_original_context(config, p) for p in rope_parameters(config).values()]
    return min(contexts, default=int(config.max_position_embeddings))


def ropes(config: Any) -> dict[str, Rope]:
    """Returns the parameters of each of the model's RoPEs, by its name in the attention pattern.

    Args:
        config: the checkpoint's config as transformers reads it; `check_scaling` must have accepted it.
    """
    found = {}
    for name in rope_parameters(config):
        frequencies, scale = _frequencies(config, name)
        found[name] = Rope(frequencies=tuple(float(f) for f in frequencies), scale=scale)
    return found


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
