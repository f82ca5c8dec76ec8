"""Exports a checkpoint to an artifact; the artifact is published only after it has passed the gate."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ssruntime.artifact import Artifact, read_artifact
from ssruntime.checks import check_choice
from ssruntime.errors import ArtifactError, ConfigError, SelfSpecError, UnsupportedModelError
from ssruntime.folder_lock import require_locks
from sstool.artifact_files.assemble import Lowering, assemble, write_manifest
from sstool.artifact_files.publish import staged_folder
from sstool.checkpoint.describe import Checkpoint, check_weights, count_layers, describe_checkpoint
from sstool.checkpoint.packed.folders import unpacked_folders
from sstool.checkpoint.packed.layout import packed_layout
from sstool.checkpoint.rope import check_scaling
from sstool.hub import ResolvedModel, resolve
from sstool.pipelines.quantized import PackedWeights, assemble_quantized
from sstool.precision import PRECISIONS
from sstool.quantize.draft_memory import NO_MEMORY, DraftMemory, check_own_weights, searched_memory
from sstool.quantize.options import INT4, QuantizationOptions
from sstool.search.settings import SearchSettings
from sstool.skip_set import SkipSpec, check_skip_spec, default_skip_set
from sstool.targets.base import GraphTarget
from sstool.targets.registry import GRAPH_TARGETS
from sstool.validation.calibrate import calibrate
from sstool.validation.gate import run_gate

logger = logging.getLogger(__name__)

_MIN_CONTEXT: Final = 2
"""One token of a prompt and one new token."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The input and the options of an export.

    Attributes:
        model: a checkpoint folder, a hub id, or a model that `hub.resolve` returned.
        out: folder of the artifact.
        force: whether to replace an existing artifact at `out`.
        revision: branch, tag or commit of a hub id.
        target: execution target that the graphs are lowered for.
        dtype: data type of the weights and of the computation; None takes the checkpoint's own where the
            target runs it.
        max_context: length of the longest sequence in tokens, at most the checkpoint's; None takes the
            checkpoint's.
        skip: skip set of the draft and the stopping rule it was tuned for; None takes `default_skip_set`.
        search: settings of a search for a better draft before publication; None for no search.
        draft_memory: most memory of a draft's own weights, such as `5%` (see `DraftMemory`); None for 5 %
            with a search and for none without one.
        starts: drafts that the search tries first.
        threads: number of threads per engine during the search; None for the default.
        resume: whether to resume an interrupted search for this `out`.
        check: called with the checkpoint's number of layers before anything is built; an exception ends the
            export.
        quantization: options of a quantized data type.
        progress: called with the name of each step when it begins.
    """

    model: str | Path | ResolvedModel
    out: Path
    force: bool = False
    revision: str | None = None
    target: str = "ort-cpu"
    dtype: str | None = None
    max_context: int | None = None
    skip: SkipSpec | None = None
    search: SearchSettings | None = None
    draft_memory: str | None = None
    starts: tuple[SkipSpec, ...] = ()
    threads: int | None = None
    resume: bool = False
    check: Callable[[int], None] | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    progress: Progress | None = None


def export_artifact(request: ExportRequest) -> Artifact:
    """Exports a checkpoint, compares the result with the checkpoint, and publishes it.

    Returns:
        The published artifact.

    Raises:
        CheckpointError: if the model is missing or damaged, or is not a decoder.
        UnsupportedModelError: if the model cannot be exported correctly.
        RecipeError: if the skip set does not fit the model, or `out` has an interrupted search that is
            neither resumed nor replaced.
        ConfigError: if a setting is out of its range.
        ArtifactError: if the artifact cannot be written.
        PromptError: if the calibration prompts of a search cannot be used.
        BackendUnavailableError: if this system has no folder locks.
    """
    require_locks()
    # Absolute, because replacing the current folder takes it away from this process.
    request = dataclasses.replace(request, out=Path(os.path.realpath(request.out)))
    say = request.progress or logger.info
    check_choice("target", request.target, tuple(GRAPH_TARGETS))
    target = GRAPH_TARGETS[request.target]
    if request.dtype is not None:
        check_choice("dtype", request.dtype, tuple(PRECISIONS))
        target.chosen_dtype(request.dtype, request.dtype)
    request.quantization.check(request.dtype)
    _memory(request)
    if request.search is not None:
        _check_search(request, request.search)
    with contextlib.ExitStack() as until_published, staged_folder(Path(request.out), force=request.force) as folder:
        _assemble(folder, request, target, say)
        if request.search is not None:
            _search_draft(folder, request, request.search, until_published)
        elif memory := _memory(request):
            _add_low_bits(folder, request, memory, say)
        else:
            say("measuring the draft")
            calibrate(folder)
        say("publishing")
    return read_artifact(Path(request.out))


def _assemble(folder: Path, request: ExportRequest, target: GraphTarget, say: Progress) -> None:
    """Writes a whole artifact that has passed the gate."""
    say("reading the checkpoint")
    model = request.model if isinstance(request.model, ResolvedModel) else resolve(request.model, request.revision)
    layout = packed_layout(model.folder)
    if layout is None:
        _assemble_numbers(folder, request, target, model, None, say)
        return
    dtype = target.chosen_dtype(request.dtype, INT4)
    if dtype != INT4:
        raise UnsupportedModelError(
            f"{model.folder} is quantized already, with {layout.method}: it can be exported in int4, not in {dtype}",
            "--target ort-cpu --dtype int4, or export the checkpoint that it was quantized from",
        )
    num_layers = count_layers(model.folder)
    if request.check is not None:
        request.check(num_layers)
    say("unpacking the weights")
    with unpacked_folders(model.folder, layout, folder) as unpacked:
        numbers = dataclasses.replace(model, folder=unpacked.numbers)
        request = dataclasses.replace(request, dtype=dtype)
        try:
            _assemble_numbers(folder, request, target, numbers, PackedWeights(layout, unpacked.codes), say)
        except SelfSpecError as err:  # the user knows the packed folder only
            raise type(err)(err.message.replace(str(unpacked.numbers), str(model.folder)), err.hint) from err


def _assemble_numbers(
    folder: Path, request: ExportRequest, target: GraphTarget, model: ResolvedModel, packed: PackedWeights | None, say: Progress
) -> None:
    """Writes a whole artifact of a checkpoint whose weights are floating-point numbers."""
    checkpoint = describe_checkpoint(model.folder)
    max_context = _max_context(request.max_context, checkpoint, target)
    check_scaling(checkpoint.config, max_context)
    if request.check is not None:
        request.check(checkpoint.num_layers)
    spec = _skip_spec(request.skip, checkpoint)
    dtype = target.chosen_dtype(request.dtype, checkpoint.dtype)
    _check_low_bits(request, spec, target, dtype)
    check_weights(checkpoint)
    say("building the graphs")
    lowering = Lowering(target=target, dtype=dtype, max_context=max_context)
    if PRECISIONS[lowering.dtype].is_quantized:
        assemble_quantized(folder, model, checkpoint, spec, lowering, request.quantization, packed, say)
    else:
        manifest = assemble(folder, model, checkpoint, spec, lowering)
        say("comparing with the checkpoint")
        gate = _gate(folder, checkpoint)
        write_manifest(folder, dataclasses.replace(manifest, gate=gate))


def _memory(request: ExportRequest) -> DraftMemory:
    return DraftMemory.parse(NO_MEMORY if request.draft_memory is None else request.draft_memory)


def _check_low_bits(request: ExportRequest, spec: SkipSpec, target: GraphTarget, dtype: str) -> None:
    if spec.low_bit() or _memory(request):
        check_own_weights(target.name, dtype)
    if spec.low_bit() and request.draft_memory is not None:
        raise ConfigError("the skip set names its parts in int4, so --draft-memory has nothing to choose", "leave out one of the two")


def _add_low_bits(folder: Path, request: ExportRequest, memory: DraftMemory, say: Progress) -> None:
    """Gives the draft of an unpublished artifact parts in int4 where that makes decoding faster."""
    from sstool.pipelines.choose_draft import choose_low_bits
    from sstool.pipelines.replace_draft import replace_draft

    skip = read_artifact(folder).manifest.drafts[0].skip
    chosen = choose_low_bits(folder, request.skip or SkipSpec(attention=skip.attention, mlp=skip.mlp), memory, say)
    say("checking the new draft")
    replace_draft(folder, chosen)


def _gate(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the result of the gate; what ONNX Runtime refuses is not the fault of the user's files."""
    try:
        return run_gate(read_artifact(folder), checkpoint)
    except (ArtifactError, RuntimeError) as err:
        reason = " ".join((err.message if isinstance(err, ArtifactError) else str(err)).split())
        raise UnsupportedModelError(
            f"{checkpoint.folder}: the exported graph does not run: {reason}", "this model cannot be exported yet"
        ) from err


def _check_search(request: ExportRequest, settings: SearchSettings) -> None:
    """Raises the errors of a search that can be found before anything is built."""
    from sstool.search.log.work_folder import check_work
    from sstool.search.run import check_search

    check_work(request.out, resume=request.resume, force=request.force)
    check_search(settings, request.threads)


def _search_draft(folder: Path, request: ExportRequest, settings: SearchSettings, until_published: contextlib.ExitStack) -> None:
    """Searches for a better draft before publication; the search's folder stays locked until then."""
    # Imported here because an export without a search needs neither Ax nor plotly.
    from sstool.pipelines.replace_draft import draft_of, replace_draft
    from sstool.search.log.records import LATENCY, SEARCH_FOLDER
    from sstool.search.log.work_folder import store_within, work_folder
    from sstool.search.progress import describe_progress
    from sstool.search.run import SearchRequest, Start, run_search

    say = request.progress or logger.info
    work = until_published.enter_context(work_folder(request.out, resume=request.resume, force=request.force))
    store = store_within(work, searched_memory(read_artifact(folder).manifest, request.draft_memory))
    outcome = run_search(
        SearchRequest(
            folder=folder,
            work=work,
            settings=settings,
            starts=tuple(Start(source="recipe", skip=spec.skip(), int4=spec.low_bit()) for spec in request.starts),
            store=store,
            known_latency=(Path(request.out) / SEARCH_FOLDER / LATENCY,),
            threads=request.threads,
            resume=request.resume,
            progress=lambda progress: say(describe_progress(progress)),
        )
    )
    spec, tuning = draft_of(outcome)
    say("checking the new draft")
    replace_draft(folder, spec, search=work, tuning=tuning, store=store)


def _skip_spec(spec: SkipSpec | None, checkpoint: Checkpoint) -> SkipSpec:
    if spec is None:
        skip = default_skip_set(checkpoint.num_layers)
        spec = SkipSpec(attention=skip.attention, mlp=skip.mlp)
    check_skip_spec(spec, checkpoint.num_layers)
    return spec


def _max_context(asked: int | None, checkpoint: Checkpoint, target: GraphTarget) -> int:
    if asked is None:
        return min(checkpoint.max_context, target.usual_context or checkpoint.max_context)
    if not _MIN_CONTEXT <= asked <= checkpoint.max_context:
        raise ConfigError(
            f"max_context is out of range: {asked}", f"this model allows {_MIN_CONTEXT} to {checkpoint.max_context} positions"
        )
    return asked
