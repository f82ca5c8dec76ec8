"""Tells whether a checkpoint holds an LM head of its own although its config ties it to the embeddings.

A fine-tune that trained the head leaves such a checkpoint. transformers keeps the two apart then.
"""

from __future__ import annotations

from typing import Final

from sstool.checkpoint.describe import Checkpoint
from sstool.checkpoint.safetensors_files import read_tensor

_HEAD: Final = "lm_head.weight"
_EMBEDDINGS: Final = ("embed_tokens.weight", "wte.weight")


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Returns whether the LM head differs from the embeddings that the config ties it to."""
    import torch

    if not checkpoint.config.tie_word_embeddings:
        return False
    head = next((record for record in checkpoint.tensors if record.name == _HEAD), None)
    embeddings = next((record for record in checkpoint.tensors if record.name.endswith(_EMBEDDINGS)), None)
    if head is None or embeddings is None:
        return False
    return not torch.equal(read_tensor(head), read_tensor(embeddings))
