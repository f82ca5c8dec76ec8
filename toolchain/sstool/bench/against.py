"""Other engines on the prompts of a bench: they take turns with our modes, and are reported beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ssruntime.artifact import CHECKPOINT_CONFIG
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine
from ssruntime.errors import ConfigError
from ssruntime.strict_reader import read_json_object
from sstool.bench.peers import PEERS, PeerError, PeerProcess, PeerSetup, PeerTask
from sstool.bench.report import PeerReport, Spread
from sstool.bench.summary import Sample, ratio_interval, ratios, summarize
from sstool.prompts import PromptRecord


class Peers:
    """The peers of one bench: those that run, and why others do not."""

    def __init__(self) -> None:
        """Begins without any peer."""
        self._asked: list[str] = []
        self._started: dict[str, PeerProcess] = {}
        self._missing: dict[str, str] = {}
        self._samples: list[Sample] = []
        self._texts: dict[tuple[str, int], tuple[int, ...]] = {}
        self._expected: dict[int, tuple[int, ...]] = {}

    @property
    def running(self) -> dict[str, PeerProcess]:
        """The peers that have not failed, by name."""
        return {name: peer for name, peer in self._started.items() if name not in self._missing}

    def start(self, name: str, setup: PeerSetup, stack: ExitStack) -> None:
        """Starts a peer, and keeps the reason if it does not run."""
        self._asked.append(name)
        try:
            self._started[name] = stack.enter_context(PeerProcess(PEERS[name], setup))
        except PeerError as err:
            self._missing[name] = str(err)

    def run(self, task: PeerTask, prompt: PromptRecord, repeat: int | None) -> None:
        """Runs a prompt once in each peer; one that fails takes no further part.

        Args:
            task: what to complete.
            prompt: the prompt's record.
            repeat: number of the repeat; None for the warm-up, which does not count.
        """
        for name, peer in self.running.items():
            try:
                done = peer.decode(task)
            except PeerError as err:
                self._missing[name] = str(err)
                continue
            if repeat is not None:
                sample = Sample(prompt_id=prompt.id, index=prompt.index, repeat=repeat, mode=name, stats=done.stats, identical=None)
                self._samples.append(sample)
                self._texts[name, prompt.index] = done.token_ids

    def expect(self, prompt: PromptRecord, tokens: Sequence[int]) -> None:
        """Takes the tokens of our plain decoding."""
        self._expected[prompt.index] = tuple(tokens)

    def reports(self, ours: Sequence[Sample], *, is_greedy: bool) -> tuple[PeerReport, ...]:
        """Returns the reports.

        Args:
            ours: samples of the mode of ours to compare with.
            is_greedy: whether texts can be compared.
        """
        return tuple(self._report(name, ours, is_greedy=is_greedy) for name in self._asked)

    def _is_same(self, name: str, index: int) -> bool:
        """Returns whether a peer gave our tokens; only our last one may be one that ends the text."""
        found = self._texts.get((name, index))
        return found is not None and found[:-1] == self._expected[index][:-1]

    def _report(self, name: str, ours: Sequence[Sample], *, is_greedy: bool) -> PeerReport:
        version = self._started[name].version if name in self._started else None
        if name in self._missing:
            return PeerReport(name=name, version=version, missing=self._missing[name])
        samples = [s for s in self._samples if s.mode == name]
        summary = summarize(name, samples, refused=0)
        return PeerReport(
            name=name,
            version=version,
            tokens_per_second=summary.tokens_per_second,
            ours_over_this=Spread.of(ratios(samples, ours)),
            ours_over_this_95=ratio_interval(samples, ours),
            prefill_s=summary.prefill_s,
            same_text=sum(self._is_same(name, i) for i in self._expected) if is_greedy else None,
        )


@contextmanager
def open_peers(engine: Engine, names: Sequence[str], model: Path) -> Iterator[Peers]:
    """Yields the peers of a bench with their models loaded, and ends their processes on exit.

    Args:
        engine: our engine, whose number of threads and data type they use too.
        names: names of peers.
        model: folder of the artifact's checkpoint.

    Raises:
        ConfigError: if the checkpoint is not that of the artifact.
    """
    if not names:
        yield Peers()
        return
    manifest = engine.artifact.manifest
    _check_same_model(model, {"num_hidden_layers": manifest.model.num_layers, "vocab_size": engine.backend.vocab_size})
    setup = PeerSetup(
        model=model,
        key=manifest.weights_digest[:16],
        dtype=manifest.dtype,
        threads=engine.backend.threads,
    )
    peers = Peers()
    with ExitStack() as stack:
        for name in names:
            peers.start(name, setup, stack)
        yield peers


def _check_same_model(model: Path, expected: Mapping[str, int]) -> None:
    if not (model / CHECKPOINT_CONFIG).is_file():
        raise ConfigError(f"{model} is not the folder of a checkpoint", f"pass the folder that holds its {CHECKPOINT_CONFIG}")
    config = read_json_object(model / CHECKPOINT_CONFIG, error=ConfigError, hint="copy or download the checkpoint again")
    aliases = {"num_hidden_layers": "n_layer"}
    for name, value in expected.items():
        found = config.get(name, config.get(aliases.get(name, name), value))
        if found != value:
            raise ConfigError(f"{model} has {name} {found}, the artifact {value}", "pass the checkpoint that the artifact was made from")


def peer_task(engine: Engine, ids: Sequence[int], config: GenerationConfig) -> PeerTask:
    """Returns what a peer is to complete: as many tokens as we decode, none of which ends the text.

    Raises:
        ConfigError: if the settings are not ones that all engines have.
    """
    settings = engine.settings(config)
    others = {
        "--top-k": settings.top_k > 0,
        "--min-p": settings.min_p > 0,
        "--stop": bool(settings.stop),
        "--stop-token-id": bool(settings.stop_token_ids),
    }
    named = [flag for flag, is_set in others.items() if is_set]
    if named:
        raise ConfigError(
            f"{named[0]} cannot be used with --against: not every engine has it", "leave it out; all have --temperature and --top-p"
        )
    room = engine.backend.max_context - len(ids)
    temperature = 0.0 if settings.is_greedy else settings.temperature
    tokens = min(settings.max_new_tokens, room)
    return PeerTask(ids=list(ids), tokens=tokens, temperature=temperature, top_p=settings.top_p, seed=settings.seed)
