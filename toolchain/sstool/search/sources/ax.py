"""Has Ax suggest candidates from the scores of earlier ones; the only module that imports Ax.

Each sublayer is one integer parameter, 0 or 1 (1: skipped); one more says whether a draft has own weights, if
it may have any. Scores over all texts are deterministic; those of stopped candidates come with their error.
The acquisition function is expected improvement. Ax optimizes it by a local search over flips, which starts
here from fewer points than by default: that takes a third of the time and finds sets that are as good.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Final

from sstool.search.drafts.space import Point

_METRIC: Final = "speedup"
_RESTARTS: Final = 8
_RAW_SAMPLES: Final = 512
"""Starting points of that local search, and random sets that they are chosen from."""


class AxFailedError(Exception):
    """An error inside Ax or a library that it uses."""


class AxDriver:
    """An Ax experiment over the sublayers of one model."""

    def __init__(self, num_sublayers: int, *, has_own_weights: bool, seed: int) -> None:
        """Creates the experiment.

        Args:
            num_sublayers: number of sublayers.
            has_own_weights: whether a draft may have own weights, which is one more parameter.
            seed: seed of Ax's random choices.
        """
        with _quietly():
            from ax.api.client import Client
            from ax.api.configs import RangeParameterConfig

            skipped = [f"skip_{n:03d}" for n in range(num_sublayers)]
            own = ["own_weights"] if has_own_weights else []
            self._names = [*skipped, *own]
            # Ax takes a seed of 32 bits.
            self._client: Any = Client(random_seed=seed % 2**32)
            self._client.configure_experiment(
                name="skip-set",
                parameters=[RangeParameterConfig(name=name, bounds=(0, 1), parameter_type="int") for name in self._names],
                # A draft keeps something, and is not the whole model over shared weights.
                parameter_constraints=[f"{' + '.join(skipped)} <= {num_sublayers - 1}", f"{' + '.join(self._names)} >= 1"],
            )
            self._client.configure_optimization(objective=_METRIC)
            self._client.set_generation_strategy(_strategy())
        self._known: dict[Point, int] = {}

    def attach(self, point: Point, speedup: float | None, error: float = 0.0) -> None:
        """Reports the score of a candidate to Ax, whether or not Ax suggested it.

        Args:
            point: point of the candidate.
            speedup: score of the candidate; None if it failed.
            error: standard error of the score: 0 if the candidate was run over all texts.
        """
        with _quietly():
            index = self._known.pop(point, None)
            if index is None:
                index = self._client.attach_trial(dict(zip(self._names, point, strict=True)))
            if speedup is None:
                # The candidate would fail again. Ax may repeat a trial that is marked failed, but not one
                # marked abandoned.
                self._client.mark_trial_abandoned(index)
            else:
                self._client.complete_trial(index, {_METRIC: (speedup, error)})

    def suggest(self, count: int) -> list[Point]:
        """Returns up to `count` new candidates; their scores must be attached before the next call."""
        with _quietly():
            trials = self._client.get_next_trials(max_trials=count)
        suggested = []
        for index, parameters in trials.items():
            point = tuple(int(parameters[name]) for name in self._names)
            self._known[point] = index
            suggested.append(point)
        return suggested


def _strategy() -> Any:
    """Returns the strategy that suggests every candidate by expected improvement."""
    from ax.adapter.registry import Generators
    from ax.generation_strategy.generation_node import GenerationNode
    from ax.generation_strategy.generation_strategy import GenerationStrategy
    from ax.generation_strategy.generator_spec import GeneratorSpec
    from botorch.acquisition.logei import qLogExpectedImprovement

    spec = GeneratorSpec(
        generator_enum=Generators.BOTORCH_MODULAR,
        generator_kwargs={"botorch_acqf_class": qLogExpectedImprovement},
        generator_gen_kwargs={"model_gen_options": {"optimizer_kwargs": {"num_restarts": _RESTARTS, "raw_samples": _RAW_SAMPLES}}},
    )
    node = GenerationNode(name="expected-improvement", generator_specs=[spec], should_deduplicate=True)
    return GenerationStrategy(name="skip-set", nodes=[node])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Returns a context manager that silences Ax, whose logs and warnings tell a user nothing.

    Raises:
        AxFailedError: if the block raises any exception.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from ax.utils.common.logger import set_ax_logger_levels

            set_ax_logger_levels(logging.ERROR)
            yield
        except Exception as err:
            raise AxFailedError(" ".join(f"{type(err).__name__}: {err}".split())) from err
