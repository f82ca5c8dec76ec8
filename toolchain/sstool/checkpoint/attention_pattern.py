"""What each decoder layer's attention sees and turns, as the checkpoint's config says it: its window, and its rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ssruntime.errors import UnsupportedModelError

SLIDING: Final = "sliding_attention"
FULL: Final = "full_attention"
EVERY_LAYER: Final = "every layer"
"""The name of the rotary embedding where a model has one for all of its layers."""

_ROPE_INSIDE_WINDOWS_ONLY: Final = frozenset({"exaone4"})
"""Families whose layers without a window turn nothing, which is in their code and not in their config."""


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """One layer's attention.

    Attributes:
        window: positions a token sees, itself included; None for all before it.
        rope: which of the model's rotary embeddings turns queries and keys: `EVERY_LAYER`, or a kind of layer; None for none.
    """

    window: int | None
    rope: str | None


def attention_pattern(config: Any) -> tuple[LayerAttention, ...]:
    """Returns every layer's attention.

    Args:
        config: the checkpoint's, as transformers read it.

    Raises:
        UnsupportedModelError: if a layer is of a kind that is neither full nor sliding-window attention.
    """
    windows = _windows(config)
    return tuple(LayerAttention(window, _rope(config, layer, window)) for layer, window in enumerate(windows))


def period(pattern: tuple[LayerAttention, ...]) -> int:
    """Returns the number of layers after which the pattern repeats: the least p for which layer i is as layer i + p."""
    return next(p for p in range(1, len(pattern) + 1) if pattern[p:] == pattern[:-p])


def narrowest_window(pattern: tuple[LayerAttention, ...]) -> int | None:
    """Returns the least window of the layers; None where all of them see everything."""
    return min((layer.window for layer in pattern if layer.window is not None), default=None)


def rope_parameters(config: Any) -> dict[str, Mapping[str, Any]]:
    """Returns the parameters of each rotary embedding by its name; empty for a model without.

    transformers has them in one dictionary, or in one for each kind of layer.
    """
    found = getattr(config, "rope_parameters", None) or {}
    by_kind = {kind: p for kind, p in found.items() if isinstance(p, Mapping)}
    return by_kind if by_kind or not found else {EVERY_LAYER: found}


def _windows(config: Any) -> list[int | None]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window if getattr(config, "use_sliding_window", True) else None] * config.num_hidden_layers
    strange = sorted(set(kinds) - {SLIDING, FULL})
    if strange or len(kinds) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"the config's layer_types name {', '.join(strange) or f'{len(kinds)} layers of {config.num_hidden_layers}'}",
            f"supported: one of {FULL} and {SLIDING} for each layer",
        )
    return [window if kind == SLIDING else None for kind in kinds]


def _rope(config: Any, layer: int, window: int | None) -> str | None:
    names = rope_parameters(config)
    if not names:
        return None
    if config.model_type in _ROPE_INSIDE_WINDOWS_ONLY and config.sliding_window is not None and window is None:
        return None
    turns = getattr(config, "no_rope_layers", None)  # 1 for a layer with rotary embedding, in spite of its name
    if turns is not None and not turns[layer]:
        return None
    return EVERY_LAYER if EVERY_LAYER in names else str(config.layer_types[layer])
