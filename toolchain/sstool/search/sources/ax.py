"""Ax, which proposes candidates: the only file that imports it.

One integer parameter of 0 or 1 for each sublayer (1: skipped); the score has no noise, so the acquisition function is the analytic
expected improvement. Ax's own choice of optimizer for it (a local search over flips) starts here from fewer points than by default:
as good after as many trials on a model of the problem, at a third of the time. There it does better than flipping a few sublayers of the
best set at a time with 160 sublayers too (1.293 and 1.276 against 1.282 and 1.231 after 80 trials of two problems), at 10 s a suggestion.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Final

from sstool.search.drafts.space import Bits

_METRIC: Final = "speedup"
_RESTARTS: Final = 8
_RAW_SAMPLES: Final = 512


class AxFailedError(Exception):
    """Something went wrong inside Ax, or what it stands on."""


class AxDriver:
    """An Ax client over one model's sublayers."""

    def __init__(self, num_sublayers: int, *, seed: int) -> None:
        """Makes the experiment.

        Args:
            num_sublayers: parameters.
            seed: of whatever Ax draws.
        """
        with _quietly():
            from ax.api.client import Client
            from ax.api.configs import RangeParameterConfig

            self._names = [f"skip_{n:03d}" for n in range(num_sublayers)]
            # Ax seeds with 32 bits.
            self._client: Any = Client(random_seed=seed % 2**32)
            self._client.configure_experiment(
                name="skip-set",
                parameters=[RangeParameterConfig(name=name, bounds=(0, 1), parameter_type="int") for name in self._names],
                parameter_constraints=[f"{' + '.join(self._names)} <= {num_sublayers - 1}", f"{' + '.join(self._names)} >= 1"],
            )
            self._client.configure_optimization(objective=_METRIC)
            self._client.set_generation_strategy(_strategy())
        self._known: dict[Bits, int] = {}

    def attach(self, bits: Bits, speedup: float | None) -> None:
        """Tells Ax of a candidate that somebody else proposed, or of the result of one it suggested itself.

        Args:
            bits: the skip set.
            speedup: its score; None if it failed.
        """
        with _quietly():
            index = self._known.pop(bits, None)
            if index is None:
                index = self._client.attach_trial(dict(zip(self._names, bits, strict=True)))
            if speedup is None:
                # What failed would fail again, and Ax may suggest again what it calls failed; what it calls abandoned it does not.
                self._client.mark_trial_abandoned(index)
            else:
                self._client.complete_trial(index, {_METRIC: speedup})

    def suggest(self, count: int) -> list[Bits]:
        """Returns up to `count` new candidates, whose results must be attached before the next call."""
        with _quietly():
            trials = self._client.get_next_trials(max_trials=count)
        suggested = []
        for index, parameters in trials.items():
            bits = tuple(int(parameters[name]) for name in self._names)
            self._known[bits] = index
            suggested.append(bits)
        return suggested


def _strategy() -> Any:
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
    """Ax logs every trial at length, and warns of what is none of the user's business.

    Raises:
        AxFailedError: for whatever the block raises.
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
