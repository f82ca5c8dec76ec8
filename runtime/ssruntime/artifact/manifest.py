"""The manifest of an artifact: what was exported, its files, its drafts and how they were tuned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Final

from ssruntime.planning.acceptance import Calibration
from ssruntime.stopping import StoppingRule

SCHEMA_VERSION: Final = 8

ANY_PROCESSOR: Final = "any"
VNNI: Final = "vnni"
QUANTIZED: Final = ("int8", "int4")
"""Data types whose weights are integers, while the computation around their products is in fp32."""
BRANCH_MARGIN: Final = 1e-4
"""Bound on the error of a branch's logits in fp32, as a fraction of the logits' scale.

A branch's keys lie in other KV-cache entries than those of the same tokens in autoregressive decoding, so
its sums are rounded in another order. The token after an accepted branch is emitted from the branch's row
only if no error within this bound could change it."""


@dataclass(frozen=True, kw_only=True)
class SkipSet:
    """Sublayers that a draft skips, as 0-based layer numbers in ascending order."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LowBitSet:
    """Parts of a draft that read int4 copies of the shared weights.

    Attributes:
        attention: layers whose attention does, counted from 0, ascending.
        mlp: layers whose MLP does, counted from 0, ascending.
        head: whether the LM head does.
    """

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    head: bool = False

    def __bool__(self) -> bool:
        return bool(self.attention or self.mlp or self.head)


@dataclass(frozen=True, kw_only=True)
class DraftEntry:
    """One draft engine of an artifact.

    Attributes:
        name: name of the draft.
        graph: file name of the draft's graph.
        weights: names of the files with weights that only this draft has.
        dtype: data type of the draft's computation.
        skip: sublayers that the draft skips.
        int4: parts of the draft that read int4 weights, which lie in the files `weights`.
        stopping: stopping rule that was tuned for this draft; None leaves the runtime's default.
        max_alternatives: tuned number of alternatives (side branches of the token tree, one token long)
            beside each drafted token; None leaves the runtime's default.
        mode: default mode of decoding: `auto`, or `plain` (autoregressive decoding) if a search found that
            nothing makes decoding faster.
        calibration: acceptance model of the draft, fitted at export; None if it was not.
    """

    name: str
    graph: str
    dtype: str
    skip: SkipSet
    int4: LowBitSet = field(default_factory=LowBitSet)
    weights: tuple[str, ...] = ()
    stopping: StoppingRule | None = None
    max_alternatives: int | None = None
    mode: str = "auto"
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the draft and its stopping rule were found; on another machine, others may be better.

    Attributes:
        speedups: measured speed-up of mode `auto` over autoregressive decoding, by kind of text (`sampled`,
            `greedy`); empty if no draft was faster.
        cpu: model name of the processor.
        threads: number of threads of each engine.
        onnxruntime: version of ONNX Runtime.
        trials: number of candidates that the search tried.
        remark: the search's summary of its result, in a sentence.
    """

    speedups: dict[str, float]
    cpu: str
    threads: int
    onnxruntime: str
    trials: int
    remark: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The exported model: its origin and its sizes.

    `window` is the narrowest sliding window of the layers, in tokens; None if every layer attends to the
    whole context.
    """

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
    """The KV cache of one sequence: two buffers `dtype[1, kv_heads, capacity, head_dim]` per layer."""

    num_layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def bytes_per_token(self) -> int:
        """Returns the size of the KV cache for one token of one sequence, in bytes."""
        return 2 * self.num_layers * self.kv_heads * self.head_dim * (4 if self.dtype == "fp32" else 2)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """One RoPE of the model; an engine makes its tables for the context that it is loaded with.

    Attributes:
        frequencies: the angle of pair i of a head's numbers at position p is `p * frequencies[i]` radians.
        scale: factor of the cosines and sines.
    """

    frequencies: tuple[float, ...]
    scale: float


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`.

    `weights` names the files with the weights that all engines share. `drafts` may be several, each with its
    own name; the first one is the default. `files` lists every file but the manifest and those in `search/`.
    `rope` has each RoPE by its name, from which `graph_io.rope_names` makes the names of the graphs' inputs.
    `instructions` is what the processor must have so that its integer products are exact: `vnni`, or `any`.
    """

    schema_version: int
    model: ModelInfo
    target: str
    dtype: str
    max_context: int
    kv: KvLayout
    rope: dict[str, Rope]
    weights: tuple[str, ...]
    drafts: tuple[DraftEntry, ...]
    files: dict[str, FileEntry]
    tools: dict[str, str]
    instructions: str = ANY_PROCESSOR
    gate: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None

    @property
    def branch_margin(self) -> float:
        """`BRANCH_MARGIN`; infinite for quantized weights, where no bound on the error of a branch is known.

        There, a different rounding of one sum can make an activation round to another integer.
        """
        return math.inf if self.dtype in QUANTIZED else BRANCH_MARGIN

    @property
    def has_exact_drafts(self) -> bool:
        """Whether a draft step's logits have equal bits in every batch; the int4 kernel does not ensure that.

        Texts depend on it with rejection sampling only, where the draft's probabilities decide what is
        accepted.
        """
        return not any(draft.int4 for draft in self.drafts)

    @property
    def weights_digest(self) -> str:
        """SHA-256 (hexadecimal) of the shared weights: of the file, or of the digests of several files."""
        digests = [self.files[name].sha256 for name in self.weights]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    @property
    def weights_size(self) -> int:
        """Size of the shared weights, in bytes."""
        return sum(self.files[name].size for name in self.weights)

    def draft(self, name: str | None = None) -> DraftEntry | None:
        """Returns the draft of that name, or the first one; None if there is none."""
        return next((draft for draft in self.drafts if name in (None, draft.name)), None)

    def to_json(self) -> str:
        """Returns the manifest as indented JSON that ends in a line break."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
