"""Random checkpoints of every supported family.

Their weights are drawn so that every sublayer, sliding window, RoPE angle and scale clearly affects the
logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.toolchain.tiny_llama import VOCAB, write_tokenizer

WINDOW: Final = 12
"""Sliding window of the families that have one; small, so that short sequences exceed twice its size."""

FIRST: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SECOND: Final[dict[str, Any]] = {
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
}
_MOE: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
_YARN: Final = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0, "original_max_position_embeddings": 64}
_DEFAULT: Final = {"rope_type": "default", "rope_theta": 500.0}
_FIVE_OF_SIX: Final = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(8)]
_LINEAR: Final = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}

FAMILIES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "exaone4": (
        {"sliding_window": WINDOW, "sliding_window_pattern": 4},
        {"sliding_window": None, "layer_types": ["full_attention"] * 6, "sliding_window_pattern": 1},
    ),
    "gemma": ({"head_dim": 32}, {"head_dim": 48, "tie_word_embeddings": False}),
    "gemma2": (
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
        },
        {"head_dim": 16, "sliding_window": WINDOW + 5, "query_pre_attn_scalar": 5, "final_logit_softcapping": 5.0},
    ),
    "gemma3_text": (
        {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32, "layer_types": _FIVE_OF_SIX},
        {
            "head_dim": 16,
            "sliding_window": WINDOW + 5,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": False,
            "rope_parameters": {"sliding_attention": _DEFAULT, "full_attention": _LINEAR},
        },
    ),
    "gpt2": ({"n_embd": 64, "n_layer": 8, "n_head": 4}, {"n_embd": 96, "n_layer": 6, "n_head": 2, "tie_word_embeddings": False}),
    "granite": (
        {"embedding_multiplier": 6.0, "attention_multiplier": 0.5, "residual_multiplier": 0.5, "logits_scaling": 4.0},
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.8,
            "logits_scaling": 2.0,
            "attention_bias": True,
        },
    ),
    "llama": ({}, {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": _YARN}),
    "mistral": ({"sliding_window": WINDOW}, {"sliding_window": None, "head_dim": 32, "tie_word_embeddings": True}),
    "mixtral": (
        {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ),
    "olmo2": ({}, {"tie_word_embeddings": True, "rope_parameters": _LINEAR}),
    "olmo3": ({"sliding_window": WINDOW}, {"sliding_window": WINDOW + 5, "tie_word_embeddings": True}),
    "phi3": ({"sliding_window": WINDOW}, {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 4},
        {"use_sliding_window": False, "sliding_window": WINDOW, "tie_word_embeddings": True},
    ),
    "qwen3": (
        {"head_dim": 32},
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "tie_word_embeddings": True},
    ),
    "qwen3_moe": ({"head_dim": 32, **_MOE}, {"head_dim": 16, **_MOE, "norm_topk_prob": True, "tie_word_embeddings": True}),
    "smollm3": (
        {"no_rope_layer_interval": 4},
        {"no_rope_layers": [1, 0, 1, 1, 0, 1], "tie_word_embeddings": False, "attention_bias": True},
    ),
    "starcoder2": ({"sliding_window": WINDOW}, {"sliding_window": None, "tie_word_embeddings": False}),
}
"""Config settings of each family's two shapes, besides those of `FIRST` and `SECOND`."""

_GAIN: Final = 1.5
"""Scale of every weight matrix.

With a smaller one, RoPE hardly affects the logits. With a larger one, rounding grows from layer to layer.
"""

REFUSED: Final = ("falcon", "bloom", "opt", "stablelm", "gpt_neox", "phi", "cohere", "glm4", "ernie4_5")
"""Families whose graphs are wrong, or have not been shown to be right."""


def make_checkpoint(
    folder: Path, family: str, shape: int, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **changes: Any
) -> Path:
    """Saves a random checkpoint with a word-level tokenizer, and returns its folder.

    Args:
        folder: folder to save it in, which is created.
        family: key of `FAMILIES`, or element of `REFUSED`.
        shape: 0 for the family's first shape, 1 for its second.
        seed: seed of the weights.
        dtype: data type of the saved weights.
        shard: largest size of one weights file.
        changes: settings that replace those of the config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128}
    if family != "gpt2":
        # The RoPE base is small, so that angles differ between neighbouring positions.
        settings |= {**(FIRST, SECOND)[shape], "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    if family in FAMILIES:
        settings |= FAMILIES[family][shape]
    if family == "gemma3_text" and shape == 0:
        settings["rope_parameters"] = {"sliding_attention": _DEFAULT, "full_attention": {"rope_type": "default", "rope_theta": 2000.0}}
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter)
    torch.random.set_rng_state(state)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return folder


def _draw(name: str, parameter: Any) -> None:
    """Draws a parameter in place.

    Matrices are large enough that attention is peaked, and that a sublayer's output is about as large as the
    residual stream to which it is added.
    """
    import torch

    noise = torch.randn_like(parameter)
    if parameter.ndim < 2:
        parameter.add_(0.1 * noise)
    elif "emb" in name or "wte" in name or "wpe" in name:
        parameter.copy_(noise)
    else:
        fan_in = parameter.shape[0] if ".c_" in name else parameter.shape[-1]  # GPT-2 stores its matrices transposed
        parameter.copy_(_GAIN * fan_in**-0.5 * noise)
