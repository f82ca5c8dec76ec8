"""The gate: no artifact gets its name unless it computes its checkpoint's logits and its draft changes no token."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np

from ssruntime.artifact import Artifact
from ssruntime.backends import packing
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from ssruntime.errors import UnsupportedModelError
from sstool.checkpoint import Checkpoint
from sstool.parity import compare_with_reference, plan_parity, require_parity
from sstool.reference import reference_logits
from sstool.replay import NO, compare, traced

logger = logging.getLogger(__name__)

_NEW_TOKENS: Final = 32
_PROMPT_TOKENS: Final = 16
_SEED: Final = 1
_CONFIDENCE_TOLERANCE: Final = 1e-4


def run_gate(artifact: Artifact, checkpoint: Checkpoint) -> dict[str, Any]:
    """Compares the verify engine with the checkpoint, and decoding with the draft with decoding without.

    Args:
        artifact: a finished artifact, not yet under its name.
        checkpoint: what it was exported from.

    Returns:
        What the manifest keeps: the parity figures and the losslessness run.

    Raises:
        UnsupportedModelError: if either differs; what the run left in the packed-weights cache is removed.
    """
    plan = plan_parity(checkpoint, artifact.manifest.max_context)
    # The reference comes and goes before the engines open, so that two copies of the weights are never in memory together.
    reference = reference_logits(checkpoint.folder, plan.ids, plan.positions)
    try:
        engine = load(artifact.folder, max_context=artifact.manifest.max_context, max_sequences=1)
        try:
            report = compare_with_reference(engine.backend, plan, reference)
            require_parity(report, str(checkpoint.folder))
            _require_outputs(engine, checkpoint)
            lossless = _require_lossless(engine, checkpoint)
        finally:
            engine.close()
    except BaseException:
        packing.discard(artifact)
        raise
    return {"parity": report.to_json(), "lossless": lossless}


def _require_outputs(engine: Engine, checkpoint: Checkpoint) -> None:
    """Holds both engines' best tokens and their `confidence` to their own logits, which decoding seldom looks at."""
    prompt = _random_prompt(engine, checkpoint)
    slot = engine.backend.acquire(None)
    try:
        for name, forward in (("verify", slot.forward), ("draft", slot.draft_forward)):
            output = forward(prompt, 0, range(len(prompt)))
            logits = output.logits.astype(np.float64)
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            best = weights.max(axis=-1) / weights.sum(axis=-1)
            order = np.argsort(-output.logits, axis=-1, kind="stable")[:, : output.top_tokens.shape[1]]
            same = (output.top_tokens == order).all() and (output.tokens == order[:, 0]).all()
            same &= bool((output.top_logits == np.take_along_axis(output.logits, order, axis=-1)).all())
            if not same or np.abs(output.confidence - best).max() > _CONFIDENCE_TOLERANCE:
                raise UnsupportedModelError(
                    f"{checkpoint.folder}: the {name} graph's best tokens or confidence are not its logits'",
                    "nothing was written; please report this",
                )
    finally:
        engine.backend.release(slot)


def _random_prompt(engine: Engine, checkpoint: Checkpoint) -> list[int]:
    room = engine.artifact.manifest.max_context
    count = max(1, min(_PROMPT_TOKENS, room // 2))
    return [int(i) for i in np.random.default_rng(_SEED).integers(0, checkpoint.vocab_size, count)]


def _require_lossless(engine: Engine, checkpoint: Checkpoint) -> dict[str, Any]:
    prompt = _random_prompt(engine, checkpoint)
    plain = GenerationConfig(mode="plain", temperature=0.0, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
    speculative = GenerationConfig(mode="speculative", temperature=0.0, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
    expected = engine.generate(prompt, plain)
    completion, run = traced(engine, prompt, speculative)
    verdict = compare(engine, speculative, plain=expected.token_ids, run=run).verdict
    if verdict == NO:
        raise UnsupportedModelError(
            f"{checkpoint.folder}: decoding with the draft gives other tokens than decoding without",
            "nothing was written; please report this",
        )
    stats = completion.stats
    return {"tokens": len(expected.token_ids), "identical": verdict, "proposed": stats.proposed, "accepted": stats.accepted}
