"""Checks an artifact part by part; a part that cannot be run is reported as skipped or not measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssruntime.artifact import QUANTIZED, Artifact, check_digests, read_artifact
from ssruntime.backends.registry import target_of
from ssruntime.errors import ArtifactError, BackendUnavailableError, PromptError
from ssruntime.folder_lock import require_locks
from sstool.artifact_files.bits_record import BitsReport, store_bits, tie_tolerance
from sstool.bench.environment import Environment, describe_environment
from sstool.check.losslessness import check_losslessness
from sstool.check.memory import can_measure, measure_memory
from sstool.check.plan import plan_check
from sstool.check.prompts import PromptFile, built_in_prompts
from sstool.check.report import CheckReport, CheckSection, Status
from sstool.validation.bits import GATE_CONTEXT, GATE_SEQUENCES, measure_bits
from sstool.validation.opening import open_to_check

Progress = Callable[[str, int, int, str], None]
"""Called with the name of the part, the finished steps, the total number, and the name of the next step."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of a check.

    Attributes:
        model: checkpoint to compare with, a folder or a hub id; None skips parity.
        revision: branch, tag or commit of a hub id.
        full: whether to run the full losslessness check.
        threads: number of threads per engine; None for the default.
        max_context: number of positions of the KV cache; None for the default.
    """

    model: str | None = None
    revision: str | None = None
    full: bool = False
    threads: int | None = None
    max_context: int | None = None


def run_check(
    folder: Path,
    options: CheckOptions | None = None,
    *,
    prompt_files: Sequence[PromptFile] = (),
    on_progress: Progress | None = None,
) -> CheckReport:
    """Returns the result of checking an artifact.

    Args:
        folder: folder of the artifact.
        options: options of the check.
        prompt_files: the prompts to decode; the built-in prompts if there is none.
        on_progress: called before each step.

    Raises:
        ArtifactError: if the artifact cannot be read.
        PromptError: if two prompt files have the same name.
        SelfSpecError: if the checkpoint `options.model` cannot be read.
        BackendUnavailableError: if this system has no folder locks, without which no artifact is loaded.
    """
    require_locks()
    options = options or CheckOptions()
    tell = on_progress or _ignore
    names = [f.name for f in prompt_files]
    if len(set(names)) < len(names):
        raise PromptError(f"a prompt file is given twice: {max(names, key=names.count)}", "give each file once")
    artifact = read_artifact(folder)
    checkpoint = _find_checkpoint(options)
    digests = _check_digests(artifact, tell)
    if digests.status == "failed":
        skipped = CheckSection(status="skipped", reason="a file is damaged")
        return CheckReport(
            environment=None, full=options.full, digests=digests, parity=skipped, bits=skipped, losslessness=skipped, memory=skipped
        )
    # Memory comes first: this process must not hold engines of the artifact. The longest part comes last.
    memory = _check_memory(artifact, options, tell)
    parity = _check_parity(artifact, checkpoint, tell, threads=options.threads)
    bits, losslessness, environment = _check_decoding(artifact, options, prompt_files or (built_in_prompts(),), tell)
    return CheckReport(
        environment=environment,
        full=options.full,
        digests=digests,
        parity=parity,
        bits=bits,
        losslessness=losslessness,
        memory=memory,
    )


def _ignore(part: str, done: int, total: int, what: str) -> None:
    """Reports no progress."""


def _check_digests(artifact: Artifact, tell: Progress) -> CheckSection:
    names = list(artifact.manifest.files)
    try:
        check_digests(artifact, lambda name: tell("digests", names.index(name), len(names), name))
    except ArtifactError as err:
        return CheckSection(status="failed", reason=err.message, details={"files": len(names)})
    damaged = target_of(artifact.manifest).load().damaged_entry(artifact)
    if damaged is not None:
        reason = f"the packed weights in {damaged} are damaged; remove that folder, and the next load packs them again"
        return CheckSection(status="failed", reason=reason, details={"files": len(names)})
    return CheckSection(status="passed", details={"files": len(names)})


def _check_memory(artifact: Artifact, options: CheckOptions, tell: Progress) -> CheckSection:
    if artifact.manifest.target != "ort-cpu":
        return CheckSection(status="not measured", reason="the memory of a GPU is measured by: sstool selftest")
    if not can_measure():
        return CheckSection(status="not measured", reason="memory is measured on Linux only")
    tell("memory", 0, 1, "in new processes")
    report = measure_memory(artifact.folder, threads=options.threads, max_context=options.max_context)
    status: Status = "reported" if not report.judged else "passed" if report.ok else "failed"
    reason = None if report.ok else "the draft or a second process takes more memory than its limit"
    return CheckSection(status=status, reason=reason, details=asdict(report))


def _check_decoding(
    artifact: Artifact, options: CheckOptions, files: Sequence[PromptFile], tell: Progress
) -> tuple[CheckSection, CheckSection, Environment]:
    """Returns the sections `bits` and `losslessness`."""
    with open_to_check(artifact, threads=options.threads, max_context=options.max_context, max_sequences=GATE_SEQUENCES) as engine:
        tell("bits", 0, 1, "against passes of one token")
        bits = measure_bits(engine.backend, exact_drafts=engine.artifact.manifest.has_exact_drafts)
        if engine.backend.max_context >= min(GATE_CONTEXT, artifact.manifest.max_context):
            store_bits(artifact, bits)
        environment = describe_environment(engine)
        if not engine.backend.has_draft:
            return (
                _bits_section(bits, artifact.manifest.dtype),
                CheckSection(status="skipped", reason="the artifact has no draft"),
                environment,
            )
        report = check_losslessness(
            engine,
            plan_check(files, full=options.full),
            tie_tolerance=tie_tolerance(engine, bits),
            resumable=options.full,
            on_progress=lambda done, total, what: tell("losslessness", done, total, what),
        )
        return _bits_section(bits, artifact.manifest.dtype), report.section(), environment


def _bits_section(report: BitsReport, dtype: str) -> CheckSection:
    if report.equal:
        return CheckSection(status="passed", details=report.to_json())
    if not report.is_rounding(dtype):
        reason = f"the engines compute different things: logits differ by up to {report.largest:.1g} of the largest ({report.difference})"
        return CheckSection(status="failed", reason=reason, details=report.to_json())
    return CheckSection(status="reported", reason=f"near ties are possible ({report.difference})", details=report.to_json())


def _find_checkpoint(options: CheckOptions) -> Path | None:
    if options.model is None:
        return None
    _need_toolchain()
    from sstool.hub import resolve

    return resolve(options.model, options.revision).folder


def _need_toolchain() -> None:
    """Raises BackendUnavailableError if a package is missing that only parity needs."""
    missing = [name for name in ("torch", "transformers", "mobius", "huggingface_hub") if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(
            f"parity needs the package {missing[0]}, which is not installed", "pip install 'sstool[toolchain]', or omit --model"
        )


def _check_parity(artifact: Artifact, checkpoint: Path | None, tell: Progress, *, threads: int | None) -> CheckSection:
    if checkpoint is None:
        return CheckSection(status="skipped", reason="no checkpoint was given (--model)")
    tell("parity", 0, 1, "against transformers")
    if artifact.manifest.dtype in QUANTIZED:
        return _check_quality(artifact, checkpoint, threads=threads)
    # Imported here because no other part of a check needs torch.
    from sstool.validation.parity import measure_parity, parity_context

    context = parity_context(checkpoint, artifact.manifest.max_context)
    with open_to_check(artifact, threads=threads, max_context=context, draft=False) as engine:
        report = measure_parity(engine.backend, checkpoint, dtype=artifact.manifest.dtype)
    reason = None if report.passed else f"logits differ by {report.max_relative:.1e} of their scale; the limit is {report.tolerance:.0e}"
    details = {key: value for key, value in report.to_json().items() if key != "passed"}
    return CheckSection(status="passed" if report.passed else "failed", reason=reason, details=details)


def _check_quality(artifact: Artifact, checkpoint: Path, *, threads: int | None) -> CheckSection:
    """Returns the section `parity` of a quantized artifact.

    Its products are compared with the same arithmetic in PyTorch, and its predictions with transformers' in
    fp32, by their KL divergence: one activation that rounds the other way changes all logits after it.
    """
    from sstool.checkpoint.packed.folders import readable_folder
    from sstool.quantize.texts import text_length
    from sstool.validation.quality import check_quality

    with (
        readable_folder(checkpoint) as folder,
        open_to_check(artifact, threads=threads, max_context=text_length(artifact), draft=False) as engine,
    ):
        reason, details = check_quality(engine, folder)
    return CheckSection(status="failed" if reason else "passed", reason=reason, details=details)
