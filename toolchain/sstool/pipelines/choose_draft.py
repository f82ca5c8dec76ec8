"""Chooses the parts of a draft that get weights of 4 bits, by decoding with each choice on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from ssruntime.artifact import MANIFEST, Artifact, SkipSet, read_artifact
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from ssruntime.sampling.noise import prompt_seed
from sstool.checkpoint.linked_folder import link_or_copy
from sstool.pipelines.replace_draft import write_other_draft
from sstool.quantize.draft_memory import DraftMemory
from sstool.quantize.low_bit_draft import bytes_of_parts, fitting_parts
from sstool.quantize.plan import Part
from sstool.search.finals.finalists import WORTH
from sstool.skip_set import SkipSpec
from sstool.validation.calibrate import HELD_OUT, PROMPT_TOKENS, built_in_texts, calibrate

_NEW_TOKENS: Final = 48
_CONTEXT: Final = PROMPT_TOKENS + _NEW_TOKENS + 64


def choose_low_bits(folder: Path, spec: SkipSpec, memory: DraftMemory, say: Callable[[str], None]) -> SkipSpec:
    """Returns the fastest draft within a memory: with shared weights only, or with parts in int4.

    Each one is a whole artifact meanwhile, and decodes sampled text in mode `auto`, in turns with the others.

    Args:
        folder: folder of a complete artifact that is not published. It stays as it is.
        spec: the draft with shared weights only.
        memory: most memory of a draft's own weights.
        say: called with the name of each step when it begins.

    Raises:
        OSError: if the disk is full or a file cannot be written.
    """
    artifact = read_artifact(folder)
    sizes = bytes_of_parts(ir.load(artifact.base_graph()))
    specs = candidates(sizes, spec, memory.bytes_beside(artifact.manifest.weights_size))
    with tempfile.TemporaryDirectory(dir=folder, prefix="drafts-") as scratch, contextlib.ExitStack() as stack:
        engines = []
        for number, one in enumerate(specs):
            say(f"making drafts, {number} of {len(specs)}")
            made = _made(artifact, Path(scratch) / str(number), one)
            context = min(_CONTEXT, artifact.manifest.max_context)
            engines.append(stack.enter_context(load(made, max_context=context, max_sequences=1, prefix_cache=0)))
        say("comparing drafts")
        speeds = _speedups(engines)
    best = max(range(len(specs)), key=lambda n: speeds[n])
    chosen = best if speeds[best] >= WORTH * speeds[0] else 0
    return specs[chosen]


def candidates(sizes: Mapping[Part, int], spec: SkipSpec, room: float) -> list[SkipSpec]:
    """Returns the drafts to try: the given one, with what it keeps in int4, and with everything in int4.

    Args:
        sizes: bytes that each part takes in int4.
        spec: the draft with shared weights only.
        room: most bytes that parts in int4 may take.
    """
    kept = fitting_parts(sizes, spec.skip(), room)
    found = [spec]
    if kept:
        found.append(dataclasses.replace(spec, int4=kept, stopping=None))
    if sizes and sum(sizes.values()) <= room:
        found.append(SkipSpec(int4=fitting_parts(sizes, SkipSet(), room)))
    return found


def _made(artifact: Artifact, folder: Path, spec: SkipSpec) -> Path:
    """Returns the folder of the artifact with another draft, its files as links where possible."""
    folder.mkdir()
    for name in (*artifact.manifest.files, MANIFEST):
        link_or_copy(artifact.path(name), folder / name)
    write_other_draft(folder, spec, None)
    calibrate(folder)
    return folder


def _speedups(engines: Sequence[Engine]) -> list[float]:
    """Returns the speed of each engine in mode `auto` over that of autoregressive decoding."""
    runs = [(engines[0], "plain"), *((engine, "auto") for engine in engines)]
    seconds, tokens = [0.0] * len(runs), 0
    for number, ids in enumerate(
        [None, *(ids for _, ids in built_in_texts(engines[0], HELD_OUT))]
    ):  # the first run opens and binds everything
        how = GenerationConfig(temperature=0.8, top_p=0.95, max_new_tokens=_NEW_TOKENS, ignore_eos=True, seed=prompt_seed(1, number))
        order = list(range(len(runs)))[:: 1 if number % 2 else -1]
        first = number % len(runs)
        for which in order[first:] + order[:first]:
            engine, mode = runs[which]
            found = engine.generate(ids if ids is not None else [0], dataclasses.replace(how, mode=mode))
            seconds[which] += found.stats.decode_s if ids is not None else 0.0
        tokens += ids is not None
    return [seconds[0] / max(one, 1e-9) for one in seconds[1:]] if tokens else [1.0] * len(engines)
