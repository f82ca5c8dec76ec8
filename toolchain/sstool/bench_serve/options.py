"""The settings of a load test, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Literal

from ssruntime.checks import check_float, check_int
from ssruntime.config.generation import SEED_LIMIT
from ssruntime.errors import ConfigError

Endpoint = Literal["completions", "chat"]
ENDPOINTS: Final[tuple[Endpoint, ...]] = ("completions", "chat")

_RULES: Final[dict[str, Any]] = {
    "max_tokens": partial(check_int, low=1),
    "temperature": partial(check_float, low=0.0),
    "top_p": partial(check_float, low=0.0, high=1.0, above=True),
    "seed": partial(check_int, low=0, high=SEED_LIMIT - 1),
    "rate": partial(check_float, low=0.0, above=True),
    "requests": partial(check_int, low=1),
    "warmup": partial(check_int, low=0),
    "timeout_s": partial(check_float, low=0.0, above=True),
}


@dataclass(frozen=True, kw_only=True)
class ServeBenchOptions:
    """How requests are made and when they are sent.

    Attributes:
        endpoint: `completions` or `chat`; None for what the prompts are.
        model: name of the model; None for the first that the server lists.
        max_tokens: most tokens of an output.
        temperature: sampling temperature; None for the server's.
        top_p: total probability of the tokens to sample from; None for the server's.
        seed: seed of the run. Arrivals derive from it, and each request is sent one of its own. None: a
            random one for the arrivals, and none is sent.
        ignore_eos: whether to ask that outputs go on after end-of-sequence tokens, which not all servers
            can.
        rate: mean arrivals per second, as a Poisson process (open loop); None for a closed loop.
        concurrency: most requests in flight, once per run; empty: no limit with a rate, else 1.
        requests: number of requests in a run; None for one per prompt. Prompts repeat in their order.
        warmup: number of requests before the first run, which are not measured.
        timeout_s: seconds that a request may take.
    """

    endpoint: Endpoint | None = None
    model: str | None = None
    max_tokens: int = 128
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    rate: float | None = None
    concurrency: tuple[int, ...] = ()
    requests: int | None = None
    warmup: int = 0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: if a value is out of its range.
        """
        for name, check in _RULES.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        for value in self.concurrency:
            check_int("concurrency", value, 1)
        if self.endpoint is not None and self.endpoint not in ENDPOINTS:
            raise ConfigError(
                f"endpoint must be one of {', '.join(ENDPOINTS)}, found {self.endpoint!r}", "leave it out for what the prompts are"
            )

    def levels(self) -> tuple[int | None, ...]:
        """Returns the limits of requests in flight, one per run; None is no limit."""
        return self.concurrency or ((1,) if self.rate is None else (None,))

    def to_json(self) -> dict[str, object]:
        """Returns the settings as JSON values."""
        return asdict(self)
