"""The sliding window and the RoPE of each decoder layer, read from the checkpoint's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ssruntime.errors import UnsupportedModelError

SLIDING: Final = "sliding_attention"
FULL: Final = "full_attention"
EVERY_LAYER: Final = "every layer"
"""Name of the RoPE that all layers of a model share."""

_ROPE_INSIDE_WINDOWS_ONLY: Final = frozenset({"exaone4"})
"""Families that apply no RoPE in full-attention layers; this is in their code, not in their config."""


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The attention of one layer.

    Attributes:
        window: number of positions that a token attends to, itself included; None for full attention.
        rope: name of the RoPE applied to queries and keys: `EVERY_LAYER`, or a layer type of the config;
            None for a layer without RoPE.
    """

    window: int | None
    rope: str | None


def attention_pattern(config: Any) -> tuple[LayerAttention, ...]:
    """Returns the attention of every layer, in order.

    Args:
        config: the checkpoint's config as transformers reads it.

    Raises:
        UnsupportedModelError: if the config does not give full or sliding-window attention for each layer.
    """
    windows = _windows(config)
    return tuple(LayerAttention(window, _rope(config, layer, window)) for layer, window in enumerate(windows))


def period(pattern: tuple[LayerAttention, ...]) -> int:
    """Returns the period of the pattern: the smallest p such that every layer i is like layer i + p."""
    return next(p for p in range(1, len(pattern) + 1) if pattern[p:] == pattern[:-p])


def narrowest_window(pattern: tuple[LayerAttention, ...]) -> int | None:
    """Returns the smallest window of any layer; None if every layer has full attention."""
    return min((layer.window for layer in pattern if layer.window is not None), default=None)


def rope_parameters(config: Any) -> dict[str, Mapping[str, Any]]:
    """Returns the parameters of each RoPE by its name; empty for a model without RoPE.

    transformers keeps them in one dictionary for all layers, or in one dictionary for each layer type.
    """
    found = getattr(config, "rope_parameters", None) or {}
    by_kind = {kind: p for kind, p in found.items() if isinstance(p, Mapping)}
    return by_kind if by_kind or not found else {EVERY_LAYER: found}


def _windows(config: Any) -> list[int | None]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window if getattr(config, "use_sliding_window", True) else None] * config.num_hidden_layers
    unknown = sorted(set(kinds) - {SLIDING, FULL})
    if unknown or len(kinds) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"the config's layer_types holds {', '.join(unknown) or f'{len(kinds)} entries for {config.num_hidden_layers} layers'}",
            f"supported: one entry for each layer, {FULL} or {SLIDING}",
        )
    return [window if kind == SLIDING else None for kind in kinds]


def _rope(config: Any, layer: int, window: int | None) -> str | None:
    names = rope_parameters(config)
    if not names:
        return None
    if config.model_type in _ROPE_INSIDE_WINDOWS_ONLY and config.sliding_window is not None and window is None:
        return None
    applies_rope = getattr(config, "no_rope_layers", None)  # despite its name, 1 for a layer with RoPE
    if applies_rope is not None and not applies_rope[layer]:
        return None
    return EVERY_LAYER if EVERY_LAYER in names else str(config.layer_types[layer])
