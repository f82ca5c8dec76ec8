"""Restores what a search used: its calibration texts, its latency table and its scores of skip sets."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sstool.prompts import BUILT_IN_CALIBRATION, read_prompts
from sstool.search.budget import repeat_plan
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, DraftSpace, sharing, skips_some
from sstool.search.log.read import read_search
from sstool.search.log.records import Trial, best_of
from sstool.search.scoring.evaluate import Evaluator
from sstool.search.scoring.objective import Objective
from sstool.search.settings import KINDS, SearchSettings
from sstool.search.speed_model.costs import CostModel
from sstool.search.speed_model.stored import find_latency, prepare_latency
from sstool.search.texts.make import calibration_digest, usable_prompts
from sstool.search.texts.stored import prepare_texts


class Searched:
    """The state of a search with the default calibration prompts.

    Attributes:
        builder: draft builder of the artifact.
        log: records of the search.
        settings: those settings of the search that affect a score.
        texts: calibration texts of the search.
        shares: weight of each kind of text; the weights sum to 1.
        costs: speed model of the latency table.
    """

    def __init__(self, builder: DraftBuilder, artifact: Path, *, measure: bool = False) -> None:
        """Makes the calibration texts again, and loads or measures a latency table.

        Args:
            builder: draft builder of the artifact.
            artifact: folder of the artifact, which has a search.
            measure: whether to measure a new latency table instead of loading the search's own.
        """
        self.builder = builder
        self.log = read_search(artifact / "search")
        self.settings = SearchSettings(
            seed=self.log.header.seed,
            sampled_weight=self.log.header.weights[KINDS[0]],
            greedy_weight=self.log.header.weights[KINDS[1]],
            sampled_tokens=self.log.header.sampled_tokens,
            greedy_tokens=self.log.header.greedy_tokens,
        )
        usable = usable_prompts(builder.engine, read_prompts(BUILT_IN_CALIBRATION))
        prompts = repeat_plan(usable, self.log.header)
        with tempfile.TemporaryDirectory() as name:
            self.texts = prepare_texts(Path(name), builder, prompts.search, self.settings, lambda _done, _total: None)
            if calibration_digest([cached.text for cached in self.texts], prompts.final) != self.log.header.calibration_sha256:
                sys.exit(f"{artifact} was searched with other calibration prompts than the built-in ones of this version; search it again")
            known = None if measure else find_latency(builder, [artifact / "search" / "latency.json"], has_own_weights=False)
            table = prepare_latency(Path(name), builder, DraftSpace(num_layers=builder.num_layers), self.texts, self.settings, known=known)
        self.costs = CostModel(table)
        weights = {kind: self.settings.weight_of(kind) for kind in KINDS}
        self.shares = {kind: weight / sum(weights.values()) for kind, weight in weights.items() if weight > 0}
        self._objective = Objective(self.costs, weights)

    def best(self, name: str, sets: Sequence[Bits]) -> Trial | None:
        """Returns the best trial of some skip sets, None if all fail, and prints its speed-up on stderr."""
        trials = list(self.scored(name, sets))
        found = next(iter(best_of(trials, 1)), None)
        said = "nothing" if found is None else f"{found.speedup:.3f} x plain (modelled)"
        print(f"{name}: {len(trials)} tried, best: {said}", file=sys.stderr, flush=True)
        return found

    def scored(self, name: str, sets: Sequence[Bits], *, whole: bool = False) -> Iterator[Trial]:
        """Yields the trial of every valid skip set; with `whole`, even slow ones run over all texts."""
        evaluator = Evaluator(
            self.builder,
            self.texts,
            self._objective,
            self.costs,
            lambda text: self.builder.engine.settings(self.settings.decoding(text.kind, text.seed)),
        )
        for number, bits in enumerate(dict.fromkeys(sets)):
            if skips_some(bits):
                yield evaluator.run(number, name, sharing(bits), whole=whole)


def tell_decoding(done: int, total: int) -> None:
    """Prints the progress of a head-to-head timing on stderr."""
    print(f"\rdecoding {done} of {total}", end="", file=sys.stderr, flush=True)


def random_sets(num_layers: int, count: int) -> Iterator[Bits]:
    """Yields skip sets with a fifth to four fifths of the sublayers, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield tuple(int(b) for b in rng.random(2 * num_layers) < rng.uniform(0.2, 0.8))
