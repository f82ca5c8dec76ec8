"""Runs the modes alternately on each prompt, so that a drift of the machine's speed affects all alike."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ssruntime.checks import check_choice, check_int
from ssruntime.config import MODES, DecodeSettings, GenerationConfig
from ssruntime.engine import Engine
from ssruntime.errors import ConfigError, PromptError
from ssruntime.sampling.noise import prompt_seed
from sstool.artifact_files.bits_record import tie_tolerance
from sstool.bench.against import Peers, peer_task
from sstool.bench.environment import describe_environment
from sstool.bench.report import BenchReport, PromptRow
from sstool.bench.summary import Sample, summarize
from sstool.prompts import PromptRecord
from sstool.validation.lossless import TracedRun, Verdict, compare, traced

logger = logging.getLogger(__name__)

DEFAULT_REPEAT: Final = 3
_WARM_UP_TOKENS: Final = 32
"""Enough tokens to open every engine, bind the usual query lengths and fill the processor's caches."""

Progress = Callable[[int, int, str], None]
"""Called with the number of finished prompt runs, the total number, and the id of the next prompt."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Which modes to measure, and how often.

    Attributes:
        modes: modes to measure; None for `plain` (autoregressive decoding) and the artifact's own.
        repeat: number of runs of each prompt in each mode, at least 1.
    """

    modes: tuple[str, ...] | None = None
    repeat: int = DEFAULT_REPEAT

    def __post_init__(self) -> None:
        for mode in self.modes or ():
            check_choice("mode", mode, MODES)
        if self.modes is not None and (not self.modes or len(set(self.modes)) < len(self.modes)):
            raise ConfigError(f"modes must name at least one mode, each once, found {self.modes!r}", f"known: {', '.join(MODES)}")
        check_int("repeat", self.repeat, 1)


def run_bench(
    engine: Engine,
    prompts: Sequence[PromptRecord],
    config: GenerationConfig,
    options: BenchOptions | None = None,
    *,
    peers: Peers | None = None,
    on_progress: Progress | None = None,
) -> BenchReport:
    """Returns speeds and token comparisons of the modes, measured on the same prompts with the same seeds.

    With peers, end-of-sequence tokens are suppressed: all engines then decode the same number of tokens, and
    the same greedy text.

    Args:
        engine: the engine to measure; nothing else should use it at the same time.
        prompts: the prompts. The seed of each derives from its index in its file.
        config: decoding settings; `mode` is ignored. If it has no seed, one is drawn.
        options: the modes and the number of repeats.
        peers: other engines, which take turns with the modes; None for none.
        on_progress: called before each prompt run, and once at the end.

    Raises:
        PromptError: if none of the prompts can be run.
        ConfigError: if the artifact cannot be decoded in one of the modes, or peers cannot decode like this.
    """
    options, peers = options or BenchOptions(), peers or Peers()
    if peers.running:
        most = engine.settings(config).max_new_tokens
        config = dataclasses.replace(config, max_new_tokens=most, min_new_tokens=most, ignore_eos=False)
    modes = tuple(m for m in MODES if m in (options.modes or _modes_of(engine, config)))
    base = engine.settings(dataclasses.replace(config, mode=modes[-1]))
    config = dataclasses.replace(config, seed=base.seed)
    runnable, refused = _encode(engine, prompts)
    tolerance = tie_tolerance(engine)
    _warm_up(engine, modes, config, peers, *runnable[0])

    samples: list[Sample] = []
    total = options.repeat * len(runnable)
    for done, (repeat, (turn, (prompt, ids))) in enumerate(itertools.product(range(options.repeat), enumerate(runnable))):
        if on_progress is not None:
            on_progress(done, total, prompt.id)
        seeded = dataclasses.replace(config, seed=prompt_seed(base.seed, prompt.index))
        order = modes if (repeat + turn) % 2 == 0 else modes[::-1]
        samples += _run_prompt(engine, order, seeded, prompt, ids, repeat, peers=peers, tie_tolerance=tolerance)
    if on_progress is not None:
        on_progress(total, total, "")
    return BenchReport(
        environment=describe_environment(engine),
        settings=_settings_json(base, options.repeat),
        runs=tuple(summarize(mode, samples, refused=refused) for mode in modes),
        per_prompt=tuple(_row(s) for s in samples),
        peers=peers.reports([s for s in samples if s.mode == modes[-1]], is_greedy=base.is_greedy),
    )


def _modes_of(engine: Engine, config: GenerationConfig) -> tuple[str, ...]:
    own = engine.settings(dataclasses.replace(config, mode=None)).mode
    if own == "plain" and engine.backend.has_draft:
        # An artifact whose draft did not pay decodes autoregressively: what is compared is what it could do.
        own = "auto" if config.exit in (None, "optimal") and config.exit_threshold is None else "speculative"
    return tuple(dict.fromkeys(("plain", own)))


def _encode(engine: Engine, prompts: Sequence[PromptRecord]) -> tuple[list[tuple[PromptRecord, list[int]]], int]:
    """Returns the prompts that can be run, with their token ids, and the number of the others."""
    runnable, refused = [], 0
    for prompt in prompts:
        try:
            runnable.append((prompt, engine.encode(prompt.prompt)))
        except PromptError as err:
            logger.warning("prompt %s is refused: %s", prompt.id, err.message)
            refused += 1
    if not runnable:
        raise PromptError(
            f"none of the {len(prompts)} prompts can be run",
            "give prompts that are not empty and fit the context, or a larger --max-context",
        )
    return runnable, refused


def _warm_up(
    engine: Engine, modes: Sequence[str], config: GenerationConfig, peers: Peers, prompt: PromptRecord, ids: Sequence[int]
) -> None:
    for mode in modes:
        engine.generate(
            ids, dataclasses.replace(config, mode=mode, max_new_tokens=_WARM_UP_TOKENS, min_new_tokens=0, stop=(), ignore_eos=True)
        )
    if peers.running:
        peers.run(peer_task(engine, ids, dataclasses.replace(config, max_new_tokens=_WARM_UP_TOKENS, min_new_tokens=0)), prompt, None)


def _run_prompt(
    engine: Engine,
    order: Sequence[str],
    config: GenerationConfig,
    prompt: PromptRecord,
    ids: Sequence[int],
    repeat: int,
    *,
    peers: Peers,
    tie_tolerance: float,
) -> list[Sample]:
    """Returns one sample per mode, with the verdict of the comparison; peers run before or after."""
    runs: dict[str, TracedRun] = {}
    samples = []
    peers_first = order[0] != "plain"
    task = peer_task(engine, ids, config) if peers.running else None
    if task is not None and peers_first:
        peers.run(task, prompt, repeat)
    for mode in order:
        completion, runs[mode] = traced(engine, ids, dataclasses.replace(config, mode=mode))
        samples.append(Sample(prompt_id=prompt.id, index=prompt.index, repeat=repeat, mode=mode, stats=completion.stats, identical=None))
    if task is not None and not peers_first:
        peers.run(task, prompt, repeat)
    if "plain" in runs:
        peers.expect(prompt, runs["plain"].token_ids)
    verdicts = {mode: _verdict(engine, config, runs, mode, tie_tolerance=tie_tolerance) for mode in runs}
    return [dataclasses.replace(sample, identical=verdicts[sample.mode]) for sample in samples]


def _verdict(engine: Engine, config: GenerationConfig, runs: dict[str, TracedRun], mode: str, *, tie_tolerance: float) -> Verdict | None:
    how = dataclasses.replace(config, mode=mode)
    if mode == "plain" or "plain" not in runs or is_uncoupled(engine.settings(how)):
        return None
    return compare(engine, how, plain=runs["plain"].token_ids, run=runs[mode], tie_tolerance=tie_tolerance).verdict


def is_uncoupled(settings: DecodeSettings) -> bool:
    """Whether speculative decoding keeps only the distribution of plain decoding, and not its tokens."""
    return not settings.is_greedy and settings.sampling == "rejection"


def _settings_json(settings: DecodeSettings, repeat: int) -> dict[str, object]:
    data = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name not in ("mode", "stopping")}
    data |= {"exit_threshold": None, **dataclasses.asdict(settings.stopping)}
    data["stop"] = list(settings.stop)
    data |= {"eos_token_ids": sorted(settings.eos_token_ids), "stop_token_ids": sorted(settings.stop_token_ids)}
    return {**data, "repeat": repeat}


def _row(sample: Sample) -> PromptRow:
    return PromptRow(
        id=sample.prompt_id,
        repeat=sample.repeat,
        mode=sample.mode,
        tokens=sample.tokens,
        decode_s=sample.stats.decode_s,
        identical=sample.identical,
    )
