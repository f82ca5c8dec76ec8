"""Builds a checkpoint's decoder graph with all of its weights, or raises an error that says why it cannot."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from ssruntime.artifact import CHECKPOINT_CONFIG
from ssruntime.errors import CheckpointError, UnsupportedModelError
from sstool.checkpoint.linked_folder import linked_folder
from sstool.checkpoint.quiet import quiet
from sstool.checkpoint.safetensors_files import SINGLE_FILE, WEIGHT_INDEX

logger = logging.getLogger(__name__)


def build_decoder(folder: Path, *, own_head: bool = False, ignored: Sequence[str] = ()) -> ir.Model:
    """Returns the fp32 graph of a checkpoint, lowered for ONNX Runtime's CPU kernels.

    Weights stay lazy. They are read from the checkpoint's memory-mapped files, cast and transposed one at a
    time when the graph is saved.

    Args:
        folder: checkpoint folder that `sstool.checkpoint.describe.describe_checkpoint` accepted.
        own_head: whether the LM head is a matrix of its own, although the config ties it to the embeddings.
        ignored: settings of `config.json` that transformers does not read.

    Returns:
        A model with the inputs `input_ids`, `attention_mask` and `past_key_values.*` and the outputs `logits`
        and `present.*`.

    Raises:
        UnsupportedModelError: if no graph can be built for this model.
        CheckpointError: if a weight that the graph needs is missing.
    """
    with quiet(), _readable(folder, {"tie_word_embeddings": False} if own_head else {}, ignored) as real:
        model = _build(real)
    missing = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: the weights lack the tensor {missing[0]!r}{more}", "download the checkpoint again")
    return model


@contextlib.contextmanager
def _readable(folder: Path, changes: Mapping[str, object], ignored: Sequence[str]) -> Iterator[Path]:
    """Yields the checkpoint in a folder from which mobius reads what transformers reads.

    mobius reads no weights through symbolic links that lead out of the folder, of which a hub snapshot
    consists. It prefers an index to a single file, ignores a head that the config ties, and reads settings
    that transformers does not read.
    """
    root = folder.resolve()
    has_links = not all(path.resolve().is_relative_to(root) for path in folder.iterdir())
    has_both = (folder / SINGLE_FILE).exists() and (folder / WEIGHT_INDEX).exists()
    if not (has_links or has_both or changes or ignored):
        yield folder
        return
    with linked_folder(folder, "links") as linked:
        if has_both:
            (linked / WEIGHT_INDEX).unlink()
        if changes or ignored:
            settings = json.loads((linked / CHECKPOINT_CONFIG).read_bytes())
            kept = {name: value for name, value in settings.items() if name not in ignored}
            (linked / CHECKPOINT_CONFIG).unlink()  # a hard link: writing to it would change the original
            (linked / CHECKPOINT_CONFIG).write_text(json.dumps({**kept, **changes}), encoding="utf-8")
        yield linked


def _build(folder: Path) -> ir.Model:
    # Read when the libraries are first imported, which may be here.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from mobius import build

    try:
        package = build(str(folder), execution_provider="cpu", dtype="f32")
        model = package["model"]
    except Exception as err:  # mobius' model code raises many types
        logger.debug("mobius could not build %s", folder, exc_info=True)
        reason = f"{type(err).__name__}: {err}"
        if "shape mismatch" in reason:
            raise CheckpointError(f"{folder}: {err}", "use config.json and weights of the same model") from err
        raise UnsupportedModelError(f"{folder}: no graph can be built: {reason}", "this model cannot be exported yet") from err
    if not isinstance(model, ir.Model):
        raise UnsupportedModelError(f"{folder}: mobius built no decoder graph", "this model cannot be exported yet")
    return model
