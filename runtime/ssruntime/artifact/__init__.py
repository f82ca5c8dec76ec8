"""The artifact folder: its file names, its manifest, and the checks that a load makes first."""

from __future__ import annotations

from ssruntime.artifact.file_names import (
    BASE_GRAPH,
    CHAT_TEMPLATE,
    CHECKPOINT_CONFIG,
    DRAFT_GRAPH,
    DRAFT_WEIGHTS,
    GENERATION_CONFIG,
    MANIFEST,
    STEP_GRAPH,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VERIFY_GRAPH,
    WEIGHTS,
)
from ssruntime.artifact.manifest import (
    ANY_PROCESSOR,
    BRANCH_MARGIN,
    QUANTIZED,
    SCHEMA_VERSION,
    VNNI,
    DraftEntry,
    FileEntry,
    KvLayout,
    LowBitSet,
    Manifest,
    ModelInfo,
    Rope,
    SkipSet,
    Tuning,
)
from ssruntime.artifact.read import Artifact, check_digests, file_digest, read_artifact

__all__ = [  # noqa: RUF022 - grouped by meaning
    # file names
    "BASE_GRAPH",
    "CHAT_TEMPLATE",
    "CHECKPOINT_CONFIG",
    "DRAFT_GRAPH",
    "DRAFT_WEIGHTS",
    "GENERATION_CONFIG",
    "MANIFEST",
    "STEP_GRAPH",
    "TOKENIZER",
    "TOKENIZER_CONFIG",
    "VERIFY_GRAPH",
    "WEIGHTS",
    # manifest
    "SkipSet",
    "DraftEntry",
    "Tuning",
    "ModelInfo",
    "KvLayout",
    "LowBitSet",
    "Rope",
    "FileEntry",
    "Manifest",
    "SCHEMA_VERSION",
    "ANY_PROCESSOR",
    "VNNI",
    "QUANTIZED",
    "BRANCH_MARGIN",
    # reading
    "Artifact",
    "check_digests",
    "file_digest",
    "read_artifact",
]
