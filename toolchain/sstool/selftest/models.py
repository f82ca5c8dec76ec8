"""Random checkpoints for the self-test: tiny ones of several families, and large ones for speed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sstool.checkpoint.quiet import quiet

CONTEXT: Final = 96
"""Positions of the tiny models: more than twice their sliding windows."""
_VOCAB: Final = 97
_TINY: Final = {
    "vocab_size": _VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {
        "sliding_window": 12,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "phi3": {"sliding_window": 12, "head_dim": None},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 2, "n_positions": CONTEXT},
}
"""Plain; with norms of heads; soft caps and windows; fused projections; learned positions."""
_GPT2_SETTINGS: Final = frozenset(
    ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "n_embd", "n_layer", "n_head", "n_positions")
)
_GAIN: Final = 1.5
"""Scale of the weights: each sublayer matters, and rounding does not grow from layer to layer."""
_BLOCK: Final = 2**22
"""Random numbers that the weights of a large model repeat."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a large random model.

    Attributes:
        title: what rows call it.
        settings: config of the Llama architecture.
        attention: layers whose attention the draft skips.
        mlp: layers whose MLP the draft skips.
        source: where the skip set comes from.
    """

    title: str
    settings: dict[str, Any]
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    source: str


def _every_other(layers: int, first: int) -> tuple[int, ...]:
    return tuple(range(first, layers, 2))


SHAPES: Final = {
    "llama-2-7b": Shape(
        title="Llama-2-7B",
        settings={"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
        attention=_every_other(32, 3),
        mlp=_every_other(32, 4),
        source="every other sublayer",
    ),
    "llama-1b": Shape(
        title="a Llama of 1.1 B parameters",
        settings={
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
        attention=_every_other(22, 3),
        mlp=_every_other(22, 4),
        source="every other sublayer",
    ),
    "llama-60m": Shape(
        title="a Llama of 60 M parameters",
        settings={"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8, "vocab_size": 8192},
        attention=_every_other(16, 3),
        mlp=_every_other(16, 4),
        source="every other sublayer",
    ),
}
"""Models whose speed is measured; their text has no meaning."""


def write_tiny(folder: Path, family: str) -> Path:
    """Saves a random checkpoint of a family and returns its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in {**_TINY, **FAMILIES[family]}.items() if value is not None}
    if family == "gpt2":  # its config has other names for the sizes
        settings = {key: value for key, value in settings.items() if key in _GPT2_SETTINGS}
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    with quiet():
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _draw(name, parameter)
        torch.random.set_rng_state(state)
        model.save_pretrained(folder)
    _write_tokenizer(folder, _VOCAB)
    return folder


def write_large(folder: Path, shape: Shape, *, max_context: int, dtype: str) -> Path:
    """Saves a checkpoint of random numbers, which repeat, and returns its folder.

    Args:
        folder: folder to save it in, which is created.
        shape: size of the model.
        max_context: largest number of positions.
        dtype: `fp16` or `fp32`.
    """
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    settings = {"num_key_value_heads": shape.settings["num_attention_heads"], **shape.settings}
    config = LlamaConfig(**settings, max_position_embeddings=max_context, architectures=["LlamaForCausalLM"], eos_token_id=2)
    config.save_pretrained(folder)
    kind = np.dtype(np.float16 if dtype == "fp16" else np.float32)
    _write_tensors(folder / "model.safetensors", _tensors(config), kind)
    _write_tokenizer(folder, config.vocab_size)
    return folder


def _draw(name: str, parameter: Any) -> None:
    import torch

    noise = torch.randn_like(parameter)
    if parameter.ndim < 2:
        parameter.add_(0.1 * noise)
    elif any(part in name for part in ("emb", "wte", "wpe")):
        parameter.copy_(noise)
    else:
        fan_in = parameter.shape[0] if ".c_" in name else parameter.shape[-1]  # GPT-2 stores its matrices transposed
        parameter.copy_(_GAIN * fan_in**-0.5 * noise)


def _tensors(config: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a Llama's tensors by name."""
    width, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q_proj", width), ("k_proj", keys), ("v_proj", keys), ("o_proj", width)):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (rows, width)
        for name, dims in (("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner))):
            shapes[f"{prefix}.mlp.{name}.weight"] = dims
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (width,)
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (vocab, width)}


def _write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], kind: np.dtype[Any]) -> None:
    """Writes a safetensors file of repeated random numbers, which is never in memory as a whole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * kind.itemsize
        header[name] = {"dtype": "F16" if kind.itemsize == 2 else "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    block = (0.02 * np.random.default_rng(0).standard_normal(_BLOCK)).astype(kind).tobytes()
    ones = np.ones(max(shape[0] for shape in shapes.values()), dtype=kind).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = int(np.prod(shape)) * kind.itemsize
            source = block if len(shape) > 1 else ones
            while left:
                left -= file.write(source[:left])


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(vocab_size - 3))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
