"""Self-speculative decoding of artifacts that sstool exported, with the output of autoregressive decoding.

import ssruntime

engine = ssruntime.load("artifacts/demo")
print(engine.generate("def area(radius):").text)
"""

from __future__ import annotations

import os

from ssruntime.async_engine import AsyncEngine
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from ssruntime.errors import (
    ArtifactError,
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    ContextOverflowError,
    PromptError,
    QueueFullError,
    RecipeError,
    SelfSpecError,
    UnsupportedModelError,
)
from ssruntime.logprobs import TokenLogprob
from ssruntime.preparation import Request
from ssruntime.results import Chunk, Completion, DecodeStats, Trace
from ssruntime.text.prompt import Chat, Prompt

# Official builds of ONNX Runtime send usage data to their vendor from their import on, unless this variable
# is set. To allow that, set the variable to an empty string before importing ssruntime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [  # noqa: RUF022 - grouped by meaning
    # loading and generating
    "AsyncEngine",
    "Chat",
    "Engine",
    "GenerationConfig",
    "Prompt",
    "Request",
    "load",
    # results
    "Chunk",
    "Completion",
    "DecodeStats",
    "TokenLogprob",
    "Trace",
    # errors
    "ArtifactError",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "ContextOverflowError",
    "PromptError",
    "QueueFullError",
    "RecipeError",
    "SelfSpecError",
    "UnsupportedModelError",
]
