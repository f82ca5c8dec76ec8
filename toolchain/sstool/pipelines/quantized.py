"""Assembles a quantized artifact from an fp32 artifact, which is compared with the checkpoint first."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from ssruntime.artifact import ANY_PROCESSOR, VNNI, Artifact, read_artifact
from ssruntime.backends.base import Backend
from ssruntime.backends.ort.integer_kernels import products_are_exact
from ssruntime.backends.registry import target_of
from ssruntime.engine import Engine
from ssruntime.errors import ConfigError, UnsupportedModelError
from ssruntime.machine import cpu_model
from ssruntime.scratch import remove_tree
from sstool.artifact_files.assemble import Lowering, assemble, lowered, write_manifest
from sstool.checkpoint.describe import Checkpoint
from sstool.checkpoint.packed.layout import WHOLE_COLUMN, PackedLayout
from sstool.graph.products import product_groups
from sstool.hub import ResolvedModel
from sstool.quantize.formats.base import WeightFormat
from sstool.quantize.formats.int8_columns import FULL_LEVELS, SAFE_LEVELS
from sstool.quantize.imported import imported_groups
from sstool.quantize.options import QuantizationOptions
from sstool.quantize.plan import Part, QuantizationPlan, make_plan
from sstool.quantize.precisions import Quantization
from sstool.quantize.quality import compare_quality, engine_logits
from sstool.quantize.sensitivity import choose_kept, measure_parts
from sstool.quantize.statistics import InputStatistics, measure_inputs
from sstool.quantize.texts import Texts, read_texts, text_length
from sstool.quantize.write import write_quantized
from sstool.skip_set import SkipSpec
from sstool.validation.gate import opened, run_decoding, run_parity
from sstool.validation.opening import open_to_check
from sstool.validation.products.report import measure_products, require_products
from sstool.validation.quality import QUALITY_KEY
from sstool.validation.unpacked import measure_unpacked, require_unpacked

_FULL_PRECISION: Final = "fp32"
_AIM: Final = 0.25
"""Mean KL divergence that sublayers are kept in fp32 for, as a fraction of the limit."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class PackedWeights:
    """Packed weights that are taken over.

    Attributes:
        layout: how the checkpoint stores them.
        codes: folder of a checkpoint with `codes + 16 * zeros` in their place.
    """

    layout: PackedLayout
    codes: Path


def assemble_quantized(
    folder: Path,
    model: ResolvedModel,
    checkpoint: Checkpoint,
    spec: SkipSpec,
    lowering: Lowering,
    options: QuantizationOptions,
    packed: PackedWeights | None,
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
        packed: the packed weights that the checkpoint was unpacked from; None if it was not packed.
        say: called with the name of each step when it begins.

    Raises:
        ConfigError: if an artifact for VNNI is asked for on a processor without it.
        PromptError: if the calibration text is too short.
        UnsupportedModelError: if the graphs compute something else than the checkpoint, or the quantized
            model's predictions are too far from those in fp32.
        OSError: if the disk is full or a file cannot be written.
    """
    formats = options.formats(lowering.dtype, levels=_levels(options.cpu))
    with _full_precision(folder, model, checkpoint, spec, lowering) as source:
        say("comparing with the checkpoint")
        parity = run_parity(source, checkpoint)
        with open_to_check(source, max_context=text_length(source), draft=False, max_sequences=2) as reference:
            texts = read_texts(source, options.prompts())
            say("measuring activations")
            base = ir.load(source.base_graph())
            work = _Work(reference.backend, base, texts, measure_inputs(reference.backend, base, texts.calibration), formats, say)
            plan, record = work.chosen(options.largest_kl) if packed is None else work.imported(checkpoint, packed, options.block)
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """What plans are made from: the fp32 engine and its graph, the texts and the formats."""

    backend: Backend
    base: ir.Model
    texts: Texts
    statistics: Mapping[str, InputStatistics]
    formats: Quantization
    say: Say

    def chosen(self, max_kl: float) -> tuple[QuantizationPlan, dict[str, Any]]:
        """Returns the plan for a checkpoint that is not packed, and what the manifest records of it."""
        base, formats = self.base, self.formats
        plan = self._plan(formats.usual)
        whole, costs = measure_parts(
            self.backend, base, plan, self.texts.calibration, lambda done, total: self.say(f"measuring sublayers, {done} of {total}")
        )
        raised = choose_kept(base, whole.mean_kl, costs, aim=_AIM * max_kl, growth=formats.growth, budget=formats.budget)
        record = self._record(formats.usual.name, raised) | {"kl_of_each": {part_name(part): cost for part, cost in costs.items()}}
        if formats.finer is None:
            return plan.keeping(raised), record
        return plan.with_groups(self._plan(formats.finer, raised).groups), record

    def imported(self, checkpoint: Checkpoint, packed: PackedWeights, block: int) -> tuple[QuantizationPlan, dict[str, Any]]:
        """Returns the plan that takes over packed weights; parts without them get the finer format."""
        base, layout = self.base, packed.layout
        self.say("taking over the packed weights")
        groups = imported_groups(base, lowered(packed.codes, checkpoint), group=layout.group, block=block)
        parts = list(dict.fromkeys(group.sublayer for group in product_groups(base.graph)))
        taken = [part for part in parts if any(group.name in groups for group in product_groups(base.graph) if group.sublayer == part)]
        plan = QuantizationPlan(groups=groups)
        unpacked = measure_unpacked(self.backend, base, plan, taken, self.texts.held_out[0])
        require_unpacked(unpacked, str(checkpoint.folder))
        others = [part for part in parts if part not in taken]
        assert self.formats.finer is not None
        whole = plan.with_groups(self._plan(self.formats.finer, others).groups)
        size = "columns" if layout.group == WHOLE_COLUMN else f"groups of {layout.group}"
        return whole, self._record(f"{layout.method}, {size}, in blocks of {block}", others) | {"unpacked": unpacked.to_json()}

    def _plan(self, chosen: WeightFormat, only: Collection[Part] | None = None) -> QuantizationPlan:
        return make_plan(
            self.base,
            self.statistics,
            chosen,
            only=only,
            on_group=lambda done, total: self.say(f"choosing scales, {done} of {total} inputs"),
        )

    def _record(self, weights: str, finer_parts: Collection[Part]) -> dict[str, Any]:
        finer = self.formats.finer
        return {
            "weights": weights,
            "finer": _FULL_PRECISION if finer is None else finer.name,
            "finer_parts": sorted(map(part_name, finer_parts)),
        }


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
