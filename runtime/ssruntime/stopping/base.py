"""The interface of stopping rules, which say when a draft sequence ends, and of their policies."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, cast

from ssruntime.checks import check_choice, check_float, check_int
from ssruntime.errors import ConfigError, SelfSpecError
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.acceptance import Evidence
from ssruntime.planning.planner import Planner
from ssruntime.registry import STOPPING_RULES
from ssruntime.strict_reader import read_record

MAX_DRAFT_LIMIT: Final = MAX_QUERY_LENGTH - 1
DEFAULT_MAX_DRAFT: Final = 12
DEFAULT_EXIT: Final = "optimal"
DEFAULT_EXIT_THRESHOLD: Final = 0.6

MAX_DRAFT: Final = "max_draft"
EXIT_THRESHOLD: Final = "exit_threshold"
TAG: Final = "exit"
"""Key of a rule's name in files and settings."""


class StoppingPolicy(Protocol):
    """Applies a stopping rule in one request, before the first and after each drafted token."""

    def begin(self, context: int, limit: int) -> bool:
        """Begins a round; returns whether to draft at all.

        A round that was begun and not observed leaves nothing behind, as a search may ask several times.

        Args:
            context: number of tokens before the first one to be drafted.
            limit: largest number of tokens in the draft sequence.
        """

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        """Returns whether to draft another token; the tokens that were drafted are verified in any case.

        Args:
            depth: number of tokens drafted in this round, at least 1.
            evidence: what is known of the last one.
        """

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        """Records the result of the round.

        Args:
            proposed: number of tokens in the draft sequence; alternatives do not count.
            accepted: how many of these were accepted.
            emitted: number of tokens that the round emitted.
        """


@dataclass(frozen=True, kw_only=True)
class StoppingRule(ABC):
    """The settings of a stopping policy; each policy has a subclass, whose fields are its settings.

    A subclass is registered in `ssruntime.registry.STOPPING_RULES` under the name in its `exit`. Each of its
    settings has a default.

    Attributes:
        exit: name of the policy.
        uses_costs: whether the policy needs the costs of passes, which are then measured on each host.
        max_draft: largest number of tokens in a draft sequence, 1 to 15.
    """

    exit: str = field(default="", init=False)
    uses_costs: ClassVar[bool] = False
    max_draft: int = DEFAULT_MAX_DRAFT

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: if a value is out of its range.
        """
        check_int(MAX_DRAFT, self.max_draft, 1, MAX_DRAFT_LIMIT)

    @abstractmethod
    def policy(self, planner: Planner, kind: str) -> StoppingPolicy:
        """Returns a new policy for one request.

        Args:
            planner: costs and acceptance probabilities, which all requests share.
            kind: kind of sampling; each has acceptance probabilities of its own.
        """

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Returns the names of the rule's settings."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.init)

    @classmethod
    def read(cls, data: object, *, where: str, error: type[SelfSpecError]) -> StoppingRule:
        """Returns the rule that a mapping holds: the key `exit` and the settings of that policy.

        Raises:
            SelfSpecError: of class `error`, if the policy or a setting is unknown, or a value is out of its
                range.
        """
        if not isinstance(data, Mapping):
            raise error(f"{where}: expected an object with keys", "correct this value")
        try:
            kind = rule_class(data.get(TAG, DEFAULT_EXIT))
            check_settings(kind, data)
            return read_record(kind, {k: v for k, v in data.items() if k != TAG}, where=where, error=error)
        except ConfigError as err:
            raise error(f"{where}: {err.message}", err.hint) from err

    def short(self) -> str:
        """Returns the rule's name and the values of its settings, such as `confidence 0.6, 6`."""
        values = [_shown(getattr(self, name)) for name in sorted(self.settings())]
        return f"{self.exit} {', '.join(values)}"

    def __str__(self) -> str:
        """Returns the rule in words, such as `confidence, exit_threshold 0.6, max_draft 6`."""
        shown = (f"{name} {_shown(getattr(self, name))}" for name in sorted(self.settings()))
        return ", ".join((self.exit, *shown))


@dataclass(frozen=True, kw_only=True)
class ThresholdRule(StoppingRule):
    """The settings of a policy that compares draft confidence with a threshold.

    Attributes:
        exit_threshold: draft confidence, in [0, 1], below which drafting stops.
    """

    exit_threshold: float = DEFAULT_EXIT_THRESHOLD

    def __post_init__(self) -> None:
        """Checks the settings; raises ConfigError."""
        super().__post_init__()
        check_float(EXIT_THRESHOLD, self.exit_threshold, 0.0, 1.0)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_settings(kind: type[StoppingRule], given: Collection[object]) -> None:
    """Accepts settings of a rule, and unknown ones.

    Raises:
        ConfigError: for a setting that only other rules have.
    """
    for name in STOPPING_RULES.names():
        for key in rule_class(name).settings():
            if key in given and key not in kind.settings():
                others = [other for other in STOPPING_RULES.names() if key in rule_class(other).settings()]
                raise ConfigError(
                    f"{key} has no meaning with exit {kind().exit!r}", f"leave {key} out, or set exit to {' or '.join(map(repr, others))}"
                )


def rule_class(name: object) -> type[StoppingRule]:
    """Returns the class of the rules of a policy.

    Raises:
        ConfigError: if there is no policy of that name.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{TAG} must be one of {', '.join(STOPPING_RULES.names())}, found {name!r}", "give the name of a stopping rule")
    check_choice(TAG, name, STOPPING_RULES.names())
    return cast("type[StoppingRule]", STOPPING_RULES[name])
