"""Assembles a quantized artifact from an fp32 artifact, which is compared with the checkpoint first."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from ssruntime.artifact import ANY_PROCESSOR, VNNI, Artifact, read_artifact
from ssruntime.backends.ort.integer_kernels import products_are_exact
from ssruntime.backends.registry import target_of
from ssruntime.engine import Engine
from ssruntime.errors import ConfigError, UnsupportedModelError
from ssruntime.machine import cpu_model
from ssruntime.scratch import remove_tree
from sstool.artifact_files.assemble import Lowering, assemble, write_manifest
from sstool.checkpoint.describe import Checkpoint
from sstool.hub import ResolvedModel
from sstool.quantize.options import QuantizationOptions
from sstool.quantize.plan import FULL_LEVELS, SAFE_LEVELS, Part, QuantizationPlan, make_plan
from sstool.quantize.quality import compare_quality, engine_logits
from sstool.quantize.sensitivity import choose_kept, measure_parts
from sstool.quantize.statistics import measure_inputs
from sstool.quantize.texts import Texts, read_texts, text_length
from sstool.quantize.write import write_quantized
from sstool.skip_set import SkipSpec
from sstool.validation.gate import opened, run_decoding, run_parity
from sstool.validation.integer_products import measure_products, require_products
from sstool.validation.opening import open_to_check
from sstool.validation.quality import QUALITY_KEY

_FULL_PRECISION: Final = "fp32"
_AIM: Final = 0.25
"""Mean KL divergence that sublayers are kept in fp32 for, as a fraction of the limit."""

Say = Callable[[str], None]


def assemble_quantized(
    folder: Path,
    model: ResolvedModel,
    checkpoint: Checkpoint,
    spec: SkipSpec,
    lowering: Lowering,
    options: QuantizationOptions,
    say: Say,
) -> None:
    """Writes a whole quantized artifact that has passed the gate.

    The fp32 artifact that it is made from lies in a folder inside `folder` meanwhile.

    Args:
        folder: empty folder to write into.
        model: name, folder and revision of the checkpoint.
        checkpoint: the checkpoint, described and checked.
        spec: skip set of the draft, and the stopping rule that was tuned for it.
        lowering: target, data type and context.
        options: what the user set.
        say: called with the name of each step when it begins.

    Raises:
        ConfigError: if an artifact for VNNI is asked for on a processor without it.
        PromptError: if the calibration text is too short.
        UnsupportedModelError: if the graphs compute something else than the checkpoint, or the quantized
            model's predictions are too far from those in fp32.
        OSError: if the disk is full or a file cannot be written.
    """
    levels = _levels(options.cpu)
    with _full_precision(folder, model, checkpoint, spec, lowering) as source:
        say("comparing with the checkpoint")
        parity = run_parity(source, checkpoint)
        with open_to_check(source, max_context=text_length(source), draft=False, max_sequences=2) as reference:
            texts = read_texts(source, options.prompts())
            plan, record = _plan(reference, texts, levels, options.largest_kl, say)
            say("writing the quantized weights")
            manifest = write_quantized(source, folder, plan, spec, lowering)
            say("comparing with fp32")
            gate = _gate(read_artifact(folder), reference, texts, options.largest_kl, str(checkpoint.folder))
    gate = {"parity": parity, **gate}
    gate[QUALITY_KEY] |= record
    write_manifest(folder, dataclasses.replace(manifest, gate=gate))


@contextlib.contextmanager
def _full_precision(folder: Path, model: ResolvedModel, checkpoint: Checkpoint, spec: SkipSpec, lowering: Lowering) -> Iterator[Artifact]:
    """Yields an fp32 artifact of the checkpoint that exists only meanwhile."""
    inner = folder / _FULL_PRECISION
    inner.mkdir()
    assemble(inner, model, checkpoint, spec, dataclasses.replace(lowering, dtype=_FULL_PRECISION))
    artifact = read_artifact(inner)
    try:
        yield artifact
    finally:
        target_of(artifact.manifest).load().discard(artifact)
        remove_tree(inner)


def _levels(cpu: str | None) -> int:
    if cpu == ANY_PROCESSOR or (cpu is None and not products_are_exact()):
        return SAFE_LEVELS
    if not products_are_exact():
        raise ConfigError(f"cpu: {VNNI} cannot be checked here, because {cpu_model()} has neither VNNI nor AMX", f"--cpu {ANY_PROCESSOR}")
    return FULL_LEVELS


def _plan(reference: Engine, texts: Texts, levels: int, max_kl: float, say: Say) -> tuple[QuantizationPlan, dict[str, Any]]:
    """Returns the plan, and what the manifest records of it."""
    base = ir.load(reference.artifact.base_graph())
    say("measuring activations")
    statistics = measure_inputs(reference.backend, base, texts.calibration)
    plan = make_plan(base, statistics, levels=levels, on_group=lambda done, total: say(f"choosing scales, {done} of {total} inputs"))
    whole, costs = measure_parts(
        reference.backend, base, plan, texts.calibration, lambda done, total: say(f"measuring sublayers, {done} of {total}")
    )
    kept = choose_kept(base, whole.mean_kl, costs, aim=_AIM * max_kl)
    record = {
        "weights": "int8" if levels == FULL_LEVELS else "int8 of 7 bits",
        "smoothed_inputs": len(plan.factors),
        "kept_in_fp32": sorted(map(part_name, kept)),
        "kl_of_each": {part_name(part): cost for part, cost in costs.items()},
    }
    return plan.keeping(kept), record


def _gate(artifact: Artifact, reference: Engine, texts: Texts, max_kl: float, what: str) -> dict[str, Any]:
    """Returns the manifest's records of the products, the quality and the decoding of an artifact."""
    with opened(artifact) as engine:
        products = measure_products(engine.backend, ir.load(artifact.base_graph()))
        require_products(products, what)
        with engine_logits(reference.backend) as expected, engine_logits(engine.backend) as ours:
            quality = compare_quality(expected, ours, texts.held_out)
        if not quality.mean_kl <= max_kl:
            raise UnsupportedModelError(
                f"{what}: in {artifact.manifest.dtype} the predictions differ too much from those in fp32: the mean KL divergence is"
                f" {quality.mean_kl:.2g}, with the same top token at {quality.top1_agreement:.1%} of {quality.positions} positions;"
                f" the limit is {max_kl:g}",
                "export in fp32, or allow more with --max-kl",
            )
        return {"products": products.to_json(), QUALITY_KEY: {**quality.to_json(), "limit": max_kl}, **run_decoding(engine, what)}


def part_name(part: Part) -> str:
    """Returns the name of a sublayer or of the LM head in reports."""
    return "LM head" if part is None else f"{part.kind} {part.layer}"
