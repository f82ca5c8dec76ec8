"""Names of the files in an artifact, and of the checkpoint files that an artifact keeps."""

from __future__ import annotations

from typing import Final

MANIFEST: Final = "manifest.json"
VERIFY_GRAPH: Final = "verify.onnx"
STEP_GRAPH: Final = "step.onnx"
"""The verify engine for passes of one token (see `ssruntime.graph_io`)."""
BASE_GRAPH: Final = "base.onnx"
"""The graph that drafts are made from, where the target's engines run graphs of another form."""
DRAFT_GRAPH: Final = "draft.onnx"
DRAFT_WEIGHTS: Final = "draft.bin"
"""The weights that only the draft reads, in int4."""
WEIGHTS: Final = "weights.bin"

CHECKPOINT_CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
