"""The manifest of an artifact: what was exported, its files, its drafts and how they were tuned."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA_VERSION: Final = 2


@dataclass(frozen=True, kw_only=True)
class SkipSet:
    """Sublayers that a draft leaves out, as 0-based layer numbers in rising order."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """How long a draft goes on, as tuned for its skip set; what is None falls to the runtime's defaults."""

    exit: str | None = None
    exit_threshold: float | None = None
    max_draft: int | None = None
    max_alternatives: int | None = None


@dataclass(frozen=True, kw_only=True)
class DraftEntry:
    """One draft engine of an artifact.

    Attributes:
        name: of the draft.
        graph: its file.
        dtype: of its computation.
        skip: what it leaves out.
        tuned: the exit that goes with that.
        mode: how a load decodes unless told: `speculative`, or `plain` where a search found that the draft does not pay.
    """

    name: str
    graph: str
    dtype: str
    skip: SkipSet
    tuned: StoppingRule = StoppingRule()
    mode: str = "speculative"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the draft and its exit were found, and on what machine: elsewhere they may not be the best.

    Attributes:
        speedup: measured over plain decoding, by the weights of the kinds of text; None where nothing was measured.
        cpu: the processor's model name.
        threads: of an engine.
        onnxruntime: version.
        trials: candidates that were tried.
        remark: what the search said of itself.
    """

    speedup: float | None
    cpu: str
    threads: int
    onnxruntime: str
    trials: int
    remark: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What was exported: where it came from and its sizes. `window` is the narrowest of its layers', None where all see everything."""

    source: str
    revision: str | None
    family: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_parameters: int
    weight_bytes: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class KvLayout:
    """The cache of one sequence: two buffers `dtype[1, kv_heads, context, head_dim]` a layer."""

    num_layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def bytes_per_token(self) -> int:
        """Returns the cache's bytes for one token of one sequence."""
        return 2 * self.num_layers * self.kv_heads * self.head_dim * (2 if self.dtype == "fp16" else 4)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds. `files` lists every file of the artifact but the manifest and `search/`."""

    schema_version: int
    model: ModelInfo
    target: str
    dtype: str
    max_context: int
    kv: KvLayout
    drafts: tuple[DraftEntry, ...]
    files: dict[str, FileEntry]
    tools: dict[str, str]
    gate: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None

    def to_json(self) -> str:
        """Returns the manifest as indented JSON that ends in a line break."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
