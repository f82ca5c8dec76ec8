"""Self-speculative decoding: load an artifact that sstool exported, and generate the very text plain decoding gives, sooner.

import ssruntime

engine = ssruntime.load("artifacts/demo")
print(engine.generate("def area(radius):").text)
"""

from __future__ import annotations

import os

from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from ssruntime.errors import (
    ArtifactError,
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    ContextOverflowError,
    PromptError,
    RecipeError,
    SelfSpecError,
    UnsupportedModelError,
)
from ssruntime.results import Chunk, Completion, DecodeStats, Trace
from ssruntime.text.codec import Prompt

# ONNX Runtime's own builds record what they run and report it to their maker, from the import on, unless this is set. Whoever wants
# that sets it to nothing before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [  # noqa: RUF022 - grouped by meaning
    # loading and generating
    "Engine",
    "GenerationConfig",
    "Prompt",
    "load",
    # results
    "Chunk",
    "Completion",
    "DecodeStats",
    "Trace",
    # errors
    "ArtifactError",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "ContextOverflowError",
    "PromptError",
    "RecipeError",
    "SelfSpecError",
    "UnsupportedModelError",
]
