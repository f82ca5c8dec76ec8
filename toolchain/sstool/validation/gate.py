"""The gate: an artifact is published only if its logits are right and its draft changes no token."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from ssruntime.artifact import Artifact, read_artifact
from ssruntime.backends.registry import target_of
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine
from ssruntime.errors import BackendUnavailableError, UnsupportedModelError
from ssruntime.machine import available_memory
from sstool.artifact_files.assemble import Lowering, assemble
from sstool.artifact_files.bits_record import GATE_KEY
from sstool.artifact_files.bits_record import tie_tolerance as tolerance_of
from sstool.checkpoint.describe import Checkpoint
from sstool.checkpoint.truncated import first_layers, layers_to_compare
from sstool.hub import ResolvedModel
from sstool.skip_set import SkipSpec
from sstool.targets.registry import GRAPH_TARGETS
from sstool.validation.bits import GATE_CONTEXT, GATE_SEQUENCES, measure_bits
from sstool.validation.lossless import NO, compare, traced
from sstool.validation.opening import open_to_check
from sstool.validation.parity import ParityPlan, compare_with_reference, plan_parity, require_parity
from sstool.validation.reference import ReferenceLogits, reference_logits

logger = logging.getLogger(__name__)

_NEW_TOKENS: Final = 32
_PROMPT_TOKENS: Final = 16
_MAX_DRAFT: Final = 6
_SEED: Final = 1
_CONFIDENCE_TOLERANCE: Final = 1e-4


def run_gate(artifact: Artifact, checkpoint: Checkpoint) -> dict[str, Any]:
    """Compares the engines with the checkpoint, and speculative decoding with autoregressive decoding.

    If transformers cannot hold the whole model in this machine's memory, the comparison with the checkpoint
    covers only the first layers, at least four and at least two periods of the attention pattern, exported to
    a temporary artifact of their own. If no kernels at hand compute in bf16, the same graphs in fp16 take the
    artifact's place.

    Args:
        artifact: a complete artifact that is not published yet.
        checkpoint: the checkpoint that the artifact was exported from.

    Returns:
        The manifest's record of the gate: the parity figures, the bit test and the losslessness run, and the
        data type that they were measured in if it is not the artifact's.

    Raises:
        UnsupportedModelError: if either comparison fails. The artifact's entries in the packed-weights cache
            are then removed.
        BackendUnavailableError: if nothing at hand can run the graphs.
    """
    num_layers = _compared_layers(checkpoint)
    try:
        return _gate(artifact, checkpoint, num_layers)
    except BackendUnavailableError as err:
        if artifact.manifest.dtype != "bf16":
            raise
        logger.warning("nothing at hand computes in bf16 (%s); the same graphs are checked in fp16", err.message)
    lowering = dataclasses.replace(_lowering(artifact), dtype="fp16")
    with _temporary(checkpoint, SkipSpec(attention=(1,), mlp=(1,)), lowering) as twin:
        return {**_gate(twin, checkpoint, num_layers), "dtype": "fp16"}


def _compared_layers(checkpoint: Checkpoint) -> int:
    num_layers = layers_to_compare(checkpoint, available_memory())
    if num_layers < checkpoint.num_layers:
        logger.warning(
            "the model does not fit in memory with transformers; the comparison with the checkpoint covers its first %d of %d layers",
            num_layers,
            checkpoint.num_layers,
        )
    return num_layers


def _gate(artifact: Artifact, checkpoint: Checkpoint, num_layers: int) -> dict[str, Any]:
    manifest, what = artifact.manifest, str(checkpoint.folder)
    if num_layers == checkpoint.num_layers:
        plan = plan_parity(checkpoint, manifest.max_context)
        # The reference model is freed before the engines open, so that memory never holds the weights twice.
        reference = reference_logits(checkpoint.folder, plan.ids, plan.positions, dtype=manifest.dtype)
        with opened(artifact, len(plan.ids)) as engine:
            parity = _require_parity(engine, plan, reference, checkpoint)
            bits, lossless = _require_decoding(engine, what)
    else:
        parity = _truncated_parity(checkpoint, num_layers, _lowering(artifact))
        with opened(artifact) as engine:
            bits, lossless = _require_decoding(engine, what)
    return {
        "parity": {**parity, "layers": num_layers, "of_layers": checkpoint.num_layers},
        GATE_KEY: bits,
        "lossless": lossless,
    }


def run_parity(artifact: Artifact, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the manifest's record of the comparison with the checkpoint, as `run_gate` makes it.

    Raises:
        UnsupportedModelError: if the logits differ.
    """
    num_layers = _compared_layers(checkpoint)
    if num_layers < checkpoint.num_layers:
        parity = _truncated_parity(checkpoint, num_layers, _lowering(artifact))
    else:
        plan = plan_parity(checkpoint, artifact.manifest.max_context)
        reference = reference_logits(checkpoint.folder, plan.ids, plan.positions, dtype=artifact.manifest.dtype)
        with opened(artifact, len(plan.ids)) as engine:
            parity = _require_parity(engine, plan, reference, checkpoint)
    return {**parity, "layers": num_layers, "of_layers": checkpoint.num_layers}


def run_decoding(engine: Engine, what: str) -> dict[str, Any]:
    """Returns the manifest's records of the bit test and of the losslessness run, as `run_gate` makes them.

    Raises:
        UnsupportedModelError: if speculative decoding gives other tokens.
    """
    bits, lossless = _require_decoding(engine, what)
    return {GATE_KEY: bits, "lossless": lossless}


def _lowering(artifact: Artifact) -> Lowering:
    manifest = artifact.manifest
    return Lowering(target=GRAPH_TARGETS[manifest.target], dtype=manifest.dtype, max_context=manifest.max_context)


@contextlib.contextmanager
def opened(artifact: Artifact, context: int = GATE_CONTEXT) -> Iterator[Engine]:
    """Opens an artifact for the gate's texts; after an error, removes its packed weights from the cache.

    The context is not longer than these texts, because memory for the KV cache and the RoPE tables of a
    context of 131,072 tokens may be larger than the model.
    """
    try:
        context = min(artifact.manifest.max_context, max(context, GATE_CONTEXT))
        with open_to_check(artifact, max_context=context, max_sequences=GATE_SEQUENCES) as engine:
            yield engine
    except BaseException:
        _discard(artifact)
        raise


def _discard(artifact: Artifact) -> None:
    target_of(artifact.manifest).load().discard(artifact)


@contextlib.contextmanager
def _temporary(checkpoint: Checkpoint, skip: SkipSpec, lowering: Lowering) -> Iterator[Artifact]:
    """Yields an artifact of a checkpoint that exists only meanwhile."""
    with tempfile.TemporaryDirectory(prefix="sstool-") as name:
        folder = Path(name)
        assemble(folder, ResolvedModel(source=checkpoint.folder.name, folder=checkpoint.folder, revision=None), checkpoint, skip, lowering)
        artifact = read_artifact(folder)
        try:
            yield artifact
        finally:
            _discard(artifact)


def _truncated_parity(checkpoint: Checkpoint, num_layers: int, lowering: Lowering) -> dict[str, Any]:
    with first_layers(checkpoint, num_layers) as first:
        plan = plan_parity(first, lowering.max_context)
        reference = reference_logits(first.folder, plan.ids, plan.positions, dtype=lowering.dtype)
        with (
            _temporary(first, SkipSpec(attention=(1,), mlp=(1,)), lowering) as artifact,
            opened(artifact, len(plan.ids)) as engine,
        ):
            return _require_parity(engine, plan, reference, checkpoint)


def _require_parity(engine: Engine, plan: ParityPlan, reference: ReferenceLogits, checkpoint: Checkpoint) -> dict[str, Any]:
    report = compare_with_reference(engine.backend, plan, reference)
    require_parity(report, str(checkpoint.folder))
    return report.to_json()


def _require_decoding(engine: Engine, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the manifest's records of the bit test and of the losslessness run."""
    bits = measure_bits(engine.backend, exact_drafts=engine.artifact.manifest.has_exact_drafts)
    if not bits.equal:
        logger.warning(
            "on this machine the logits of autoregressive decoding and of wider passes may differ in their last bits (%s):"
            " two tokens that are almost equally good can swap",
            bits.difference,
        )
    return bits.to_json(), require_sound(engine, what, tie_tolerance=tolerance_of(engine, bits))


def require_sound(engine: Engine, what: str, *, tie_tolerance: float) -> dict[str, Any]:
    """Checks the engines' outputs against their logits, and speculative against autoregressive decoding.

    Args:
        engine: an open engine with a draft.
        what: name of the artifact in error messages.
        tie_tolerance: largest distance of two decision scores in a near tie.

    Returns:
        The manifest's record of the losslessness run.

    Raises:
        UnsupportedModelError: if a check fails.
    """
    _require_outputs(engine, what)
    return _require_lossless(engine, what, tie_tolerance=tie_tolerance)


def _require_outputs(engine: Engine, what: str) -> None:
    """Checks the on-graph TopK and `confidence` of every engine against their logits."""
    prompt = _random_prompt(engine)
    slot = engine.backend.acquire(None)
    try:
        passes = (("step", slot.forward, 1), ("verify", slot.forward, len(prompt)), ("draft", slot.draft_forward, len(prompt)))
        for name, forward, count in passes:
            output = forward(prompt[:count], 0, range(count))
            logits = output.logits.astype(np.float64)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            best = weights.max(axis=-1) / weights.sum(axis=-1)
            order = np.argsort(-output.logits, axis=-1, kind="stable")[:, : output.top_tokens.shape[1]]
            same = (output.top_tokens == order).all() and (output.tokens == order[:, 0]).all()
            same &= bool((output.top_logits == np.take_along_axis(output.logits, order, axis=-1)).all())
            if not same or np.abs(output.confidence - best).max() > _CONFIDENCE_TOLERANCE:
                raise UnsupportedModelError(
                    f"{what}: the {name} graph's top tokens or confidence do not agree with its logits",
                    "nothing was published; please report this",
                )
    finally:
        engine.backend.release(slot)


def _random_prompt(engine: Engine) -> list[int]:
    room = engine.backend.max_context
    count = min(_PROMPT_TOKENS, max(2, room // 2), room - 1)
    return [int(i) for i in np.random.default_rng(_SEED).integers(0, engine.backend.vocab_size, count)]


def _require_lossless(engine: Engine, what: str, *, tie_tolerance: float) -> dict[str, Any]:
    prompt = _random_prompt(engine)
    plain = GenerationConfig(mode="plain", temperature=0.0, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
    # A fixed number of draft tokens: the default rule may draft none where it does not pay.
    speculative = GenerationConfig(
        mode="speculative", exit="fixed", max_draft=_MAX_DRAFT, temperature=0.0, max_new_tokens=_NEW_TOKENS, ignore_eos=True
    )
    expected = engine.generate(prompt, plain)
    completion, run = traced(engine, prompt, speculative)
    verdict = compare(engine, speculative, plain=expected.token_ids, run=run, tie_tolerance=tie_tolerance).verdict
    if verdict == NO:
        raise UnsupportedModelError(
            f"{what}: speculative decoding gives other tokens than autoregressive decoding",
            "nothing was published; please report this",
        )
    stats = completion.stats
    return {"tokens": len(expected.token_ids), "identical": verdict, "proposed": stats.proposed, "accepted": stats.accepted}
