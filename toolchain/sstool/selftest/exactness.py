"""Checks tiny models of several families on one target: parity, losslessness, noise between passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from ssruntime.artifact import Artifact, read_artifact
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from sstool.artifact_files.assemble import Lowering, assemble
from sstool.artifact_files.bits_record import tie_tolerance
from sstool.checkpoint.describe import describe_checkpoint
from sstool.hub import ResolvedModel
from sstool.selftest.models import CONTEXT
from sstool.selftest.rows import Rows
from sstool.skip_set import SkipSpec
from sstool.targets.base import GraphTarget
from sstool.validation.bits import GATE_SEQUENCES, measure_bits
from sstool.validation.lossless import NO, compare, traced
from sstool.validation.parity import ParityPlan, compare_with_reference, plan_parity
from sstool.validation.reference import reference_logits

SKIP: Final = SkipSpec(attention=(1,), mlp=(0, 2))
_PROMPT: Final = 20
_NEW_TOKENS: Final = 48
_SETTINGS: Final = {
    "greedy": GenerationConfig(temperature=0.0),
    "sampled": GenerationConfig(temperature=0.8, top_p=0.95, seed=3),
}


def check_family(rows: Rows, target: GraphTarget, model: Path, out: Path, *, on_cpu: bool) -> None:
    """Adds the rows of one tiny model.

    Args:
        rows: rows to add to.
        target: the target.
        model: the checkpoint.
        out: folder to write the artifact to, which is created.
        on_cpu: whether the processor runs the graphs in place of the target's device.
    """
    family = model.name
    where = " (graphs on the processor)" if on_cpu else ""
    artifact = write_artifact(target, model, out, max_context=CONTEXT, skip=SKIP)
    plan = plan_parity(describe_checkpoint(model), CONTEXT)
    with load(artifact.folder, max_sequences=GATE_SEQUENCES, prefix_cache=0, on_cpu=on_cpu) as engine:
        _check_parity(rows, f"{family}: parity{where}", engine, model, plan)
        bits = measure_bits(engine.backend)
        if target.name == "ort-cpu":
            figure = f"{bits.differing} of {bits.rows} rows differ"
            rows.judge(f"{family}: equal bits of all passes", figure, holds=bits.equal, bar="0 rows")
        else:
            rows.tell(f"{family}: noise between query lengths{where}", f"{bits.largest:.1e} of the scale", why=f"{bits.rows} rows")
        for name, settings in _SETTINGS.items():
            _check_text(rows, f"{family}: {name} text{where}", engine, settings, list(plan.ids[:_PROMPT]), tie_tolerance(engine, bits))


def write_artifact(target: GraphTarget, model: Path, out: Path, *, max_context: int, skip: SkipSpec, dtype: str | None = None) -> Artifact:
    """Writes an artifact that no gate has checked, and returns it."""
    checkpoint = describe_checkpoint(model)
    out.mkdir(parents=True)
    lowering = Lowering(target=target, dtype=target.chosen_dtype(dtype, checkpoint.dtype), max_context=max_context)
    if target.name != "ort-cpu" and dtype is None:
        lowering = dataclasses.replace(lowering, dtype="fp16")
    assemble(out, ResolvedModel(source=model.name, folder=model, revision=None), checkpoint, skip, lowering)
    return read_artifact(out)


def _check_parity(rows: Rows, check: str, engine: Engine, model: Path, plan: ParityPlan) -> None:
    """Compares a prompt and passes of 1, 4 and 16 tokens with transformers, up to the last position."""
    reference = reference_logits(model, plan.ids, plan.positions, dtype=engine.artifact.manifest.dtype)
    report = compare_with_reference(engine.backend, plan, reference)
    rows.judge(
        check,
        f"{report.max_relative:.1e}",
        holds=report.passed,
        bar=f"{report.tolerance:.1e}",
        why=f"{report.positions} positions of {report.sequence}, the last one at the capacity; largest in {report.worst}",
    )


def _check_text(rows: Rows, check: str, engine: Engine, settings: GenerationConfig, ids: list[int], tolerance: float) -> None:
    how = dataclasses.replace(settings, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
    plain = engine.generate(ids, dataclasses.replace(how, mode="plain")).token_ids
    speculative = dataclasses.replace(how, mode="speculative", exit="fixed", max_draft=4)
    _, run = traced(engine, ids, speculative)
    found = compare(engine, speculative, plain=plain, run=run, tie_tolerance=tolerance)
    near = f", {found.num_near_ties} near ties" if found.num_near_ties else ""
    rows.judge(check, f"{found.tokens} of {len(plain)} tokens{near}", holds=found.verdict != NO, bar="as autoregressive")
