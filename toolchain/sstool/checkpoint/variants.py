"""Refuses, by name, variants of supported families that the graph library cannot express.

Without this, the comparison with transformers would refuse them too, but could not say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssruntime.errors import UnsupportedModelError

_PAIRS_STEP = 8
"""ONNX Runtime's attention kernel rotates a multiple of so many pairs of numbers of a head."""


def refuse_variant(config: Any, rope_pairs: dict[str, int]) -> None:
    """Accepts a config whose settings the graph can express.

    Args:
        config: the checkpoint's config as transformers reads it.
        rope_pairs: number of pairs of numbers that each RoPE rotates.

    Raises:
        UnsupportedModelError: naming the first setting that it cannot express.
    """
    for reason in (*_reasons(config), *_rope_reasons(rope_pairs)):
        raise UnsupportedModelError(f"this variant of {config.model_type!r} is not yet supported: {reason}", "choose another model")


def ignored_settings(config: Any) -> list[str]:
    """Returns names of settings that the config holds, but that transformers does not read for this family.

    The graph library would read them.
    """
    known = type(config)().to_dict()
    return [name for name in ("attention_bias", "mlp_bias") if name not in known and hasattr(config, name)]


def _reasons(config: Any) -> Iterator[str]:
    family = config.model_type
    if getattr(config, "mlp_bias", False) and "mlp_bias" not in ignored_settings(config):
        yield "mlp_bias is true"
    if family == "gpt2" and config.scale_attn_by_inverse_layer_idx:
        yield "scale_attn_by_inverse_layer_idx is true"
    if family == "gpt2" and not config.scale_attn_weights:
        yield "scale_attn_weights is false"
    if family == "qwen3_moe" and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        yield "some layers have a dense MLP (mlp_only_layers, decoder_sparse_step)"
    if family == "gemma3_text":
        yield from _gemma3_reasons(config)


def _gemma3_reasons(config: Any) -> Iterator[str]:
    if config.query_pre_attn_scalar != config.head_dim:
        yield f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, not the head_dim {config.head_dim}"
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            yield f"{name} is set"
    if getattr(config, "use_bidirectional_attention", False):
        yield "use_bidirectional_attention is true, so it is not a decoder"


def _rope_reasons(pairs: dict[str, int]) -> Iterator[str]:
    for name, count in pairs.items():
        if count % _PAIRS_STEP:
            yield f"RoPE ({name}) rotates {count} pairs of numbers of a head, and the kernel needs a multiple of {_PAIRS_STEP}"
