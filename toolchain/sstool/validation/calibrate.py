"""Measures how often a draft's tokens are accepted, by what is known of them when they are drafted."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ssruntime.artifact import read_artifact
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from ssruntime.errors import BackendUnavailableError, SelfSpecError
from ssruntime.planning.acceptance import Evidence, fit, outcomes
from ssruntime.planning.planner import Planner
from ssruntime.sampling.noise import prompt_seed
from ssruntime.stopping import FixedStopping, StoppingRule
from sstool.artifact_files.assemble import write_manifest
from sstool.prompts import BUILT_IN_CALIBRATION, read_prompts

logger = logging.getLogger(__name__)

_FITTED: Final = slice(12)
"""Built-in prompts that the acceptance of draft tokens is fitted on."""
HELD_OUT: Final = slice(12, 22)
"""Built-in prompts that drafts are compared on."""
PROMPT_TOKENS: Final = 64
"""Tokens of each of these prompts that are used."""
_NEW_TOKENS: Final = 32
_MAX_DRAFT: Final = 5
_CONTEXT: Final = 2048
_HOW: Final = GenerationConfig(
    mode="speculative", temperature=0.8, top_p=0.95, max_new_tokens=_NEW_TOKENS, max_alternatives=0, ignore_eos=True
)


def calibrate(folder: Path) -> None:
    """Writes the calibration of an artifact's draft into its manifest, if its engines run on this machine.

    Args:
        folder: folder of a complete artifact that is not published.

    Raises:
        OSError: if the manifest cannot be written.
    """
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    try:
        engine = load(folder, max_context=min(manifest.max_context, _CONTEXT), max_sequences=1, prefix_cache=0)
    except BackendUnavailableError as err:
        logger.warning("the acceptance of draft tokens is not measured: %s", err.message)
        return
    with engine:
        engine.warm_up()  # the first request on this host finds the costs known
        observed = list(_observed(engine))
    calibration = fit(observed)
    drafts = tuple(dataclasses.replace(draft, calibration=calibration) for draft in manifest.drafts[:1])
    write_manifest(folder, dataclasses.replace(manifest, drafts=(*drafts, *manifest.drafts[1:])))


def built_in_texts(engine: Engine, which: slice) -> Iterator[tuple[int, list[int]]]:
    """Yields the indices and the token ids of some prompts that sstool ships, each cut to `PROMPT_TOKENS`."""
    room = engine.backend.max_context - 1
    for prompt in read_prompts(BUILT_IN_CALIBRATION)[which]:
        with contextlib.suppress(SelfSpecError):  # some tokenizers of tests know no words
            yield prompt.index, engine.encode(prompt.prompt)[: min(PROMPT_TOKENS, room)]


def _observed(engine: Engine) -> Iterator[tuple[Evidence, bool]]:
    """Yields the draft tokens that decoding reached, and whether each was accepted."""
    for number, ids in built_in_texts(engine, _FITTED):
        rule = _Recording(max_draft=_MAX_DRAFT)
        settings = dataclasses.replace(engine.settings(_HOW), stopping=rule, seed=prompt_seed(0, number))
        slot = engine.backend.acquire(None)
        try:
            engine.decode_on(slot, ids, settings)
        finally:
            engine.backend.release(slot)
        yield from rule.observed


@dataclass(frozen=True, kw_only=True)
class _Recording(StoppingRule):
    """Drafts a fixed number of tokens, and records what becomes of them."""

    exit: str = field(default="recording", init=False)
    observed: list[tuple[Evidence, bool]] = field(default_factory=list, init=False)

    def policy(self, planner: Planner, kind: str) -> _RecordingPolicy:
        return _RecordingPolicy(self.observed)


class _RecordingPolicy(FixedStopping):
    def __init__(self, observed: list[tuple[Evidence, bool]]) -> None:
        self._observed = observed
        self._round: list[Evidence] = []

    def begin(self, context: int, limit: int) -> bool:
        self._round = []
        return True

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        self._round.append(evidence)
        return True

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        self._observed += outcomes(self._round, accepted)
        self._round = []  # the next round may end before it begins
